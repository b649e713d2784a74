use bytes::Bytes;
use session_core::{PersistenceError, Record, StoredKey, Subject, Timestamp, Version};

/// The largest payload, in bytes: what fits into one statement at MariaDB's default `max_allowed_packet` of 16 MiB. The
/// same for every database, so that sessions can move.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 15 << 20;

/// Refuses a payload that is too large, before any I/O.
pub(crate) fn check_size(record: &Record) -> Result<(), PersistenceError> {
    match record.payload().len() {
        actual if actual > MAX_PAYLOAD_BYTES => {
            Err(PersistenceError::TooLarge { actual, limit: MAX_PAYLOAD_BYTES })
        }
        _ => Ok(()),
    }
}

/// A version that its key has never had: random, so that it needs no look at the row, and never that of
/// [`Version::UNSAVED`]. It does not have to be unforeseeable.
pub(crate) fn fresh_version() -> Version {
    Version::from_u64(fastrand::u64(1..))
}

/// What a row holds, as the driver gives it.
pub(crate) struct Row<'r> {
    pub(crate) key: &'r [u8],
    pub(crate) payload: &'r [u8],
    pub(crate) created_at: i64,
    pub(crate) expires_at: i64,
    pub(crate) last_seen_at: i64,
    pub(crate) version: i64,
    pub(crate) subject: Option<&'r [u8]>,
}

impl Row<'_> {
    /// The session in it, if it is that of `key`.
    pub(crate) fn record_of(&self, key: &StoredKey) -> Result<Record, PersistenceError> {
        if self.key != key.as_bytes() {
            return Err(Corrupt::WrongKey.into());
        }
        Ok(self.record()?)
    }

    /// The session in it, whatever its key.
    pub(crate) fn record(&self) -> Result<Record, Corrupt> {
        if self.payload.len() > MAX_PAYLOAD_BYTES {
            return Err(Corrupt::Payload);
        }
        let subject = match self.subject {
            None => None,
            Some(bytes) => {
                let subject = std::str::from_utf8(bytes).ok().and_then(|text| Subject::parse(text).ok());
                Some(subject.ok_or(Corrupt::Subject)?)
            }
        };
        let instant = Timestamp::from_micros;
        Ok(Record::new(
            Bytes::copy_from_slice(self.payload),
            instant(self.created_at),
            instant(self.expires_at),
        )
        .with_last_seen_at(instant(self.last_seen_at))
        .with_version(Version::from_u64(self.version.cast_unsigned()))
        .with_subject(subject))
    }
}

/// Why a row cannot be read. Says nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corrupt {
    #[error("column {0} has a value of the wrong type")]
    Type(&'static str),
    #[error("it is the row of another key")]
    WrongKey,
    #[error("column payload holds more than this version ever writes")]
    Payload,
    #[error("column subject holds no subject")]
    Subject,
    #[error("the database's clock shows no instant")]
    Clock,
}

impl From<Corrupt> for PersistenceError {
    fn from(corrupt: Corrupt) -> Self {
        Self::CorruptRow(Box::new(corrupt))
    }
}
