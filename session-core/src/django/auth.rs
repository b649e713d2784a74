use std::fmt::Write as _;

use super::keys::{SecretKeys, made_by, tag};

/// The purpose that Django's `AbstractBaseUser.get_session_auth_hash` signs for.
const PURPOSE: &str = "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash";

/// The key that a hash was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifiedBy {
    /// The current `SECRET_KEY`.
    SecretKey,
    /// One of the `SECRET_KEY_FALLBACKS`, which the site had before. Django then rotates the session's key
    /// and stores a new hash.
    Fallback,
}

impl SecretKeys {
    /// Returns Django's `get_session_auth_hash()` of a user whose `password` column contains `password`, in
    /// its stored form (`pbkdf2_sha256$…`). When the password changes, so does the hash, and the sessions
    /// that hold the old one end.
    #[must_use]
    pub fn auth_hash(&self, password: &str) -> String {
        let mut hash = String::with_capacity(64);
        for byte in self.signers(PURPOSE).next().map(|signer| tag(&signer, password)).unwrap_or_default() {
            // Writing to a `String` cannot fail.
            let _ = write!(hash, "{byte:02x}");
        }
        hash
    }

    /// Returns the key by which `hash` is the [`auth_hash`](Self::auth_hash) of `password`, or `None` if it
    /// is so by none.
    #[must_use]
    pub fn verify_auth_hash(&self, password: &str, hash: &str) -> Option<VerifiedBy> {
        let signers: Vec<_> = self.signers(PURPOSE).collect();
        match made_by(&signers, password, &from_hex(hash)?)? {
            0 => Some(VerifiedBy::SecretKey),
            _ => Some(VerifiedBy::Fallback),
        }
    }
}

/// Decodes lower-case hexadecimal digits.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.bytes().map(digit).collect();
    let digits = digits?;
    if digits.len() % 2 != 0 {
        return None;
    }
    Some(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(current: &str, fallbacks: &[&str]) -> SecretKeys {
        SecretKeys::new(current).unwrap().with_fallbacks(fallbacks).unwrap()
    }

    /// `salted_hmac(PURPOSE, "pbkdf2_sha256$1$salt$hash", secret="django-insecure-test-secret-key",
    /// algorithm="sha256").hexdigest()`
    const DJANGOS: &str = "515c221ef671e20fd99b91b458ef701611749d3f3ad67d3b38ef4991db3a89f9";
    const PASSWORD: &str = "pbkdf2_sha256$1$salt$hash";

    #[test]
    fn auth_hash_equals_djangos() {
        assert_eq!(keys("django-insecure-test-secret-key", &[]).auth_hash(PASSWORD), DJANGOS);
    }

    #[test]
    fn hash_is_verified_by_the_key_that_made_it() {
        let old = keys("old", &[]).auth_hash(PASSWORD);
        let rotated = keys("new", &["older", "old"]);
        assert_eq!(rotated.verify_auth_hash(PASSWORD, &old), Some(VerifiedBy::Fallback));
        assert_eq!(
            rotated.verify_auth_hash(PASSWORD, &rotated.auth_hash(PASSWORD)),
            Some(VerifiedBy::SecretKey)
        );
        assert_eq!(keys("new", &[]).verify_auth_hash(PASSWORD, &old), None);
    }

    #[test]
    fn hash_of_another_password_or_form_is_not_verified() {
        let keys = keys("key", &["old"]);
        let hash = keys.auth_hash(PASSWORD);
        assert_eq!(keys.verify_auth_hash("!", &hash), None);
        let (shorter, upper) = (&hash[..62], hash.to_uppercase());
        for text in ["", "0", "é", shorter, upper.as_str(), &format!("{hash}00")] {
            assert_eq!(keys.verify_auth_hash(PASSWORD, text), None, "{text}");
        }
    }
}
