//! The ids that stand in logs instead of stored keys.

use std::fmt;
use std::sync::OnceLock;

use hmac::{Hmac, KeyInit as _, Mac as _};
use session_core::StoredKey;
use sha2::Sha256;

/// The key of the hash that stands in logs for a session's key. A reader of the log can follow a session
/// through it, but cannot find the session in the database. The key is random, and made when it is first
/// needed, unless the application sets one.
pub(crate) struct LogKey {
    chosen: Option<Box<[u8]>>,
    random: OnceLock<[u8; 32]>,
}

impl LogKey {
    pub(crate) const fn new(chosen: Option<Box<[u8]>>) -> Self {
        Self { chosen, random: OnceLock::new() }
    }

    /// Returns the id of `key`. It is computed only when it is logged.
    pub(crate) const fn log_id<'a>(&'a self, key: &'a StoredKey) -> LogId<'a> {
        LogId { log_key: self, key }
    }

    fn bytes(&self) -> &[u8] {
        self.chosen.as_deref().unwrap_or_else(|| {
            self.random.get_or_init(|| {
                let mut bytes = [0; 32];
                if getrandom::fill(&mut bytes).is_err() {
                    // Without the system's randomness, no session key can be made either.
                    bytes = std::array::from_fn(|_| fastrand::u8(..));
                }
                bytes
            })
        })
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogKey(..)")
    }
}

/// 16 hexadecimal digits of HMAC-SHA256.
pub(crate) struct LogId<'a> {
    log_key: &'a LogKey,
    key: &'a StoredKey,
}

impl fmt::Display for LogId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.log_key.bytes()) else {
            return Err(fmt::Error);
        };
        mac.update(self.key.as_bytes());
        let tag: [u8; 32] = mac.finalize().into_bytes().into();
        tag.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_id_is_an_hmac_of_the_key_cut_to_64_bits() {
        let key = StoredKey::parse("some-stored-key").unwrap();
        // printf some-stored-key | openssl dgst -sha256 -hmac log-key
        let log_key = LogKey::new(Some(Box::from(*b"log-key")));
        assert_eq!(log_key.log_id(&key).to_string(), "d1fa5b8e41ca8c56");
        let (one, other) = (LogKey::new(None), LogKey::new(None));
        assert_eq!(one.log_id(&key).to_string(), one.log_id(&key).to_string());
        assert_ne!(one.log_id(&key).to_string(), other.log_id(&key).to_string());
        assert!(!format!("{log_key:?}").contains("108"));
    }
}
