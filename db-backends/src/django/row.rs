//! The contents of a row, and the version of a session.

use std::time::Duration;

use bytes::Bytes;
use session_core::django::{instant, is_signed_text, signed_at};
use session_core::{PersistenceError, Record, StoredKey, Timestamp, Version};
use sha2::{Digest as _, Sha256};

use super::error::Corrupt;
use super::statements::{DATA, DjangoBackend, EXPIRY, KEY};

/// The largest payload, in bytes. An update carries two of them, the old and the new, in one statement.
pub(super) const MAX_PAYLOAD_BYTES: usize = 7 << 20;

/// The longest of Django's keys, in characters.
pub(super) const MAX_KEY_BYTES: usize = 40;

/// A row of Django's table.
pub(super) struct Row<'r> {
    key: &'r str,
    data: &'r str,
    expires_at: Timestamp,
}

impl<'r> Row<'r> {
    pub(super) fn read<B: DjangoBackend>(row: &'r B::Row) -> Result<Self, PersistenceError> {
        let data = B::read_text(row, DATA)?;
        if data.len() > MAX_PAYLOAD_BYTES {
            return Err(Corrupt::Size.into());
        }
        let expires_at = instant::parse(B::read_text(row, EXPIRY)?).ok_or(Corrupt::Column(EXPIRY))?;
        Ok(Self { key: B::read_text(row, KEY)?, data, expires_at })
    }

    /// Returns `true` if it is the row of `key`: the database may take keys for equal that are not.
    pub(super) fn has_key(&self, key: &StoredKey) -> bool {
        self.key == key.as_str()
    }

    pub(super) fn version(&self) -> Version {
        version(self.key, self.data.as_bytes())
    }

    pub(super) const fn data(&self) -> &'r str {
        self.data
    }

    /// Returns the session in it, of a site whose sessions live for `session_age` unless they have an expiry
    /// of their own.
    pub(super) fn record(&self, now: Timestamp, session_age: Duration) -> Record {
        let touched_at = self.expires_at - session_age;
        let saved_at = signed_at(self.data.as_bytes()).unwrap_or(touched_at);
        Record::new(
            Bytes::copy_from_slice(self.data.as_bytes()),
            // The clock of the node that saved it may be ahead of ours.
            saved_at.min(now),
            self.expires_at,
        )
        .with_last_seen_at(saved_at.max(touched_at).min(now))
        .with_version(self.version())
    }
}

/// Returns the version of a session with this key and these data, which is never that of
/// [`Version::UNSAVED`].
pub(super) fn version(key: &str, data: &[u8]) -> Version {
    let digest = Sha256::new().chain_update(key).chain_update([0]).chain_update(data).finalize();
    let bits = digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    Version::from_u64(bits.max(1))
}

/// Returns the payload as text. Refuses what Django's table cannot keep, and what Django could not read,
/// before any I/O.
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
    fn last_seen_is_the_later_one_of_save_and_touch() {
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
    fn record_without_a_time_of_signing_still_has_times() {
        let record = Row { data: "?", ..row(SIGNED_AT + 14 * DAY) }.record(SIGNED_AT + DAY, 14 * DAY);
        assert_eq!((record.created_at(), record.last_seen_at()), (SIGNED_AT, SIGNED_AT));
    }

    #[test]
    fn payload_that_django_could_not_read_is_refused() {
        let record =
            |payload: &'static [u8]| Record::new(Bytes::from_static(payload), SIGNED_AT, SIGNED_AT + DAY);
        assert!(payload(&record(b"e30:1r31eq:signature")).is_ok());
        for other in [&b""[..], b"1{}", b"e30", b"\xff:1:x"] {
            assert!(matches!(payload(&record(other)), Err(PersistenceError::Config(_))), "{other:?}");
        }
        let subject = session_core::Subject::parse("42").ok();
        let with_subject = record(b"e30:1r31eq:signature").with_subject(subject);
        assert!(matches!(payload(&with_subject), Err(PersistenceError::Config(_))));
    }
}
