//! What a row holds, and which version of a session that is.

use std::time::Duration;

use bytes::Bytes;
use session_core::django::{instant, is_signed_text, signed_at};
use session_core::{PersistenceError, Record, StoredKey, Timestamp, Version};
use sha2::{Digest as _, Sha256};

use super::{Column, DjangoBackend};

/// The largest payload, in bytes. An update carries two of them, the old and the new, in one statement.
pub(super) const MAX_PAYLOAD_BYTES: usize = 7 << 20;

/// Of Django's keys, in characters.
pub(super) const MAX_KEY_BYTES: usize = 40;

const KEY: Column = Column { index: 0, name: "session_key" };
const DATA: Column = Column { index: 1, name: "session_data" };
const EXPIRY: Column = Column { index: 2, name: "expire_date" };

/// A row of Django's.
pub(super) struct Row<'r> {
    key: &'r str,
    data: &'r str,
    expires_at: Timestamp,
}

impl<'r> Row<'r> {
    pub(super) fn read<B: DjangoBackend>(row: &'r B::Row) -> Result<Self, PersistenceError> {
        let data = B::text(row, DATA)?;
        if data.len() > MAX_PAYLOAD_BYTES {
            return Err(Corrupt::Size.into());
        }
        let expires_at = instant::parse(B::text(row, EXPIRY)?).ok_or(Corrupt::Column(EXPIRY.name))?;
        Ok(Self { key: B::text(row, KEY)?, data, expires_at })
    }

    /// Whether it is the row of `key`: the database may take keys for equal that are not.
    pub(super) fn is_of(&self, key: &StoredKey) -> bool {
        self.key == key.as_str()
    }

    pub(super) fn version(&self) -> Version {
        version(self.key, self.data.as_bytes())
    }

    pub(super) const fn data(&self) -> &'r str {
        self.data
    }

    /// The session in it. One that does not choose otherwise lives for `session_age`.
    pub(super) fn record(&self, now: Timestamp, session_age: Duration) -> Record {
        let touched_at = self.expires_at - session_age;
        let saved_at = signed_at(self.data.as_bytes()).unwrap_or(touched_at);
        Record::new(
            Bytes::copy_from_slice(self.data.as_bytes()),
            // The clock of who saved it may be ahead of ours.
            saved_at.min(now),
            self.expires_at,
        )
        .with_last_seen_at(saved_at.max(touched_at).min(now))
        .with_version(self.version())
    }
}

/// The version of a session with this key and these data, and never that of [`Version::UNSAVED`].
pub(super) fn version(key: &str, data: &[u8]) -> Version {
    let digest = Sha256::new().chain_update(key).chain_update([0]).chain_update(data).finalize();
    let bits = digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    Version::from_u64(bits.max(1))
}

/// Refuses what Django's table cannot keep, and what Django could not read, before any I/O; else the payload as text.
pub(super) fn payload(record: &Record) -> Result<&str, PersistenceError> {
    let payload = record.payload();
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(PersistenceError::TooLarge { actual: payload.len(), limit: MAX_PAYLOAD_BYTES });
    }
    if record.subject().is_some() {
        return Err(PersistenceError::Config(
            "Django's table has no column for a subject; keep whose session it is in its data, as _auth_user_id"
                .to_owned(),
        ));
    }
    let text = std::str::from_utf8(payload).ok().filter(|_| is_signed_text(payload));
    text.ok_or_else(|| {
        PersistenceError::Config(
            "the payload is not of the form that Django signs; build the store with codec(DjangoCodec::new(..))"
                .to_owned(),
        )
    })
}

/// Why a row cannot be read. Says nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corrupt {
    #[error("column {0} has a value that Django never writes")]
    Column(&'static str),
    #[error("column session_data holds more than this version ever reads")]
    Size,
}

impl From<Corrupt> for PersistenceError {
    fn from(corrupt: Corrupt) -> Self {
        Self::CorruptRow(Box::new(corrupt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const SIGNED_AT: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn row(expires_at: Timestamp) -> Row<'static> {
        Row { key: "k", data: "e30:1r31eq:signature", expires_at }
    }

    #[test]
    fn versions_differ_by_key_and_data() {
        let one = version("a", b"data");
        assert_eq!(version("a", b"data"), one);
        for other in [version("b", b"data"), version("a", b"datA"), version("ad", b"ata"), version("a", b"")]
        {
            assert_ne!(other, one);
        }
    }

    #[test]
    fn a_session_was_last_used_when_it_was_saved_or_touched() {
        let last_seen = |expires_at, now| row(expires_at).record(now, 14 * DAY).last_seen_at();
        let now = SIGNED_AT + 2 * DAY;
        // Saved, and left alone.
        assert_eq!(last_seen(SIGNED_AT + 14 * DAY, now), SIGNED_AT);
        // Touched a day later.
        assert_eq!(last_seen(SIGNED_AT + 15 * DAY, now), SIGNED_AT + DAY);
        // With an expiry of its own, shorter or longer.
        assert_eq!(last_seen(SIGNED_AT + 3 * DAY, now), SIGNED_AT);
        assert_eq!(last_seen(SIGNED_AT + 90 * DAY, now), now);
    }

    #[test]
    fn a_session_that_does_not_say_when_it_was_saved_has_instants_all_the_same() {
        let record = Row { data: "?", ..row(SIGNED_AT + 14 * DAY) }.record(SIGNED_AT + DAY, 14 * DAY);
        assert_eq!((record.created_at(), record.last_seen_at()), (SIGNED_AT, SIGNED_AT));
    }

    #[test]
    fn what_django_could_not_read_is_refused() {
        let record =
            |payload: &'static [u8]| Record::new(Bytes::from_static(payload), SIGNED_AT, SIGNED_AT + DAY);
        assert!(payload(&record(b"e30:1r31eq:signature")).is_ok());
        for other in [&b""[..], b"1{}", b"e30", b"\xff:1:x"] {
            assert!(matches!(payload(&record(other)), Err(PersistenceError::Config(_))), "{other:?}");
        }
        let subject = session_core::Subject::parse("42").ok();
        let of_somebody = record(b"e30:1r31eq:signature").with_subject(subject);
        assert!(matches!(payload(&of_somebody), Err(PersistenceError::Config(_))));
    }
}
