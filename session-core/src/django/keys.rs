use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

pub(super) type HmacSha256 = Hmac<Sha256>;

/// A Django site's `SECRET_KEY`, and its `SECRET_KEY_FALLBACKS`: the keys that it had before and still
/// accepts.
///
/// `Debug` shows none of them.
///
/// ```
/// use session_core::django::SecretKeys;
///
/// let keys = SecretKeys::new("the site's SECRET_KEY")?.with_fallbacks(["the one before"])?;
/// # Ok::<(), session_core::django::InvalidSecretKeys>(())
/// ```
#[derive(Clone)]
pub struct SecretKeys {
    current: Box<[u8]>,
    fallbacks: Vec<Box<[u8]>>,
}

impl SecretKeys {
    /// Takes the site's `SECRET_KEY` as it is in its settings. White space around it counts.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSecretKeys::Empty`] if the key is empty, because everyone can guess that.
    pub fn new(secret_key: impl AsRef<[u8]>) -> Result<Self, InvalidSecretKeys> {
        match secret_key.as_ref() {
            [] => Err(InvalidSecretKeys::Empty),
            key => Ok(Self { current: key.into(), fallbacks: Vec::new() }),
        }
    }

    /// Reads the site's `SECRET_KEY` from an environment variable.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSecretKeys::Unset`] if the variable does not exist, is empty, or is not valid
    /// Unicode.
    pub fn from_env(variable: &str) -> Result<Self, InvalidSecretKeys> {
        let unset = || InvalidSecretKeys::Unset { variable: variable.to_owned() };
        let secret_key = std::env::var(variable).map_err(|_| unset())?;
        Self::new(secret_key).map_err(|_| unset())
    }

    /// Adds keys whose signatures are accepted, too. They sign nothing new.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSecretKeys::EmptyFallback`] if one of `fallbacks` is empty.
    pub fn with_fallbacks<K: AsRef<[u8]>>(
        mut self,
        fallbacks: impl IntoIterator<Item = K>,
    ) -> Result<Self, InvalidSecretKeys> {
        for key in fallbacks {
            match key.as_ref() {
                [] => return Err(InvalidSecretKeys::EmptyFallback),
                key => self.fallbacks.push(key.into()),
            }
        }
        Ok(self)
    }

    /// Returns the signers for `purpose`: first the one with the current key, then those with the fallbacks.
    pub(super) fn signers(&self, purpose: &str) -> impl Iterator<Item = HmacSha256> {
        [&self.current].into_iter().chain(&self.fallbacks).map(move |secret| signer(purpose, secret))
    }
}

/// Django's `salted_hmac`: its key is a hash of the purpose and the secret.
fn signer(purpose: &str, secret: &[u8]) -> HmacSha256 {
    let derived = Sha256::new().chain_update(purpose).chain_update(secret).finalize();
    // An HMAC's key has the length of a block of its hash; zeros follow a shorter one.
    let mut block = [0; 64];
    for (slot, byte) in block.iter_mut().zip(derived) {
        *slot = byte;
    }
    HmacSha256::new(&block.into())
}

/// Returns the tag of `message`.
pub(super) fn tag(signer: &HmacSha256, message: &str) -> [u8; 32] {
    let mut signer = signer.clone();
    signer.update(message.as_bytes());
    signer.finalize().into_bytes().into()
}

/// Returns the number of the signer that has made `tag` of `message`. The comparison takes constant time.
pub(super) fn made_by<'a>(
    signers: impl IntoIterator<Item = &'a HmacSha256>,
    message: &str,
    tag: &[u8],
) -> Option<usize> {
    signers.into_iter().position(|signer| {
        let mut signer = signer.clone();
        signer.update(message.as_bytes());
        signer.verify_slice(tag).is_ok()
    })
}

impl fmt::Debug for SecretKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKeys").field("fallbacks", &self.fallbacks.len()).finish_non_exhaustive()
    }
}

/// The error for secret keys that cannot be used. Shows none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSecretKeys {
    /// The current key is empty.
    #[error("the SECRET_KEY is empty; set it to the one of the Django site's settings")]
    Empty,
    /// A fallback is empty.
    #[error(
        "one of the SECRET_KEY_FALLBACKS is empty; remove it, or signatures with the empty key are accepted"
    )]
    EmptyFallback,
    /// The environment variable is missing or empty.
    #[error(
        "the environment variable {variable} is missing or empty; set it to the SECRET_KEY of the Django site's settings"
    )]
    Unset {
        /// The variable's name.
        variable: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_keys_are_refused() {
        assert_eq!(SecretKeys::new("").unwrap_err(), InvalidSecretKeys::Empty);
        let keys = SecretKeys::new("key").unwrap();
        assert_eq!(keys.with_fallbacks(["old", ""]).unwrap_err(), InvalidSecretKeys::EmptyFallback);
    }

    #[test]
    fn error_names_the_missing_variable() {
        let error = SecretKeys::from_env("NO_SUCH_SECRET_KEY").unwrap_err();
        assert!(error.to_string().contains("NO_SUCH_SECRET_KEY"));
    }

    #[test]
    fn debug_shows_no_key() {
        let keys = SecretKeys::new("hunter2").unwrap().with_fallbacks(["hunter1"]).unwrap();
        let codec = crate::django::DjangoCodec::new(&keys);
        let shown = format!("{keys:?} {codec:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        let as_bytes = format!("{:?}", b"hunter");
        assert!(!shown.contains(as_bytes.trim_matches(['[', ']'])), "{shown}");
    }
}
