use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::data::{Dense, Object, Source};
use crate::{Codec, CodecError, SessionData, StoredKey, Subject, Timestamp};

/// The version of a session's committed state. Opaque, compared for equality only.
///
/// Every committed change of payload, subject or key gives the session another version; a touch does not. A
/// version that a key has had never comes back, not even after the session was deleted and created again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(u64);

impl Version {
    /// The version of a record that is not in a database yet.
    pub const UNSAVED: Self = Self(0);

    /// Creates a version from the number that a database stored.
    #[must_use]
    pub const fn from_u64(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the number for a database to store.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// One stored session.
///
/// The payload is encoded; [`data`](Self::data) decodes it at most once and shares the result, so that an
/// in-process cache hands the same decoded map to every reader. `Debug` shows neither payload nor subject.
#[derive(Clone)]
// The order of the fields is chosen: the ones that every cache hit reads come first, in the cache line of the
// reference count or the next one.
#[repr(C)]
pub struct Record {
    expires_at: Timestamp,
    decoded: OnceLock<Decoded>,
    payload: Bytes,
    created_at: Timestamp,
    last_seen_at: Timestamp,
    version: Version,
    subject: Option<Subject>,
}

/// The map that the payload was found to hold.
#[derive(Clone)]
enum Decoded {
    /// In the payload itself, at these places.
    InPlace(Dense),
    /// Decoded into a map of its own.
    Apart(Box<SessionData>),
}

/// The stored fields of a [`Record`]: all of them, and not what was decoded.
// Hidden, because it is for this workspace's crates. Code that compares or copies a record field by field
// destructures this without `..`, so that a new field is a compile error in each such place until it is
// handled there.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordParts<'a> {
    pub payload: &'a Bytes,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub last_seen_at: Timestamp,
    pub version: Version,
    pub subject: Option<&'a Subject>,
}

impl Record {
    /// Creates a record that is not stored yet: unversioned, last seen when it was created, without a
    /// subject.
    #[must_use]
    pub const fn new(payload: Bytes, created_at: Timestamp, expires_at: Timestamp) -> Self {
        Self {
            payload,
            created_at,
            expires_at,
            last_seen_at: created_at,
            version: Version::UNSAVED,
            subject: None,
            decoded: OnceLock::new(),
        }
    }

    /// Replaces the payload, and forgets the map that was decoded from the one before. Keeps everything else,
    /// the version included.
    ///
    /// ```
    /// use session_core::{Record, Timestamp, bytes::Bytes};
    ///
    /// let record = Record::new(Bytes::from_static(b"1{}"), Timestamp::from_secs(0), Timestamp::from_secs(60));
    /// let sealed = record.clone().with_payload(Bytes::from_static(b"sealed"));
    /// assert_eq!(sealed.expires_at(), record.expires_at());
    /// ```
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Self {
        self.payload = payload;
        self.decoded = OnceLock::new();
        self
    }

    /// Sets the instant at which the session began: for a record that is written over the row of an older
    /// one, which keeps its own.
    #[must_use]
    pub const fn with_created_at(mut self, created_at: Timestamp) -> Self {
        self.created_at = created_at;
        self
    }

    /// Sets the instant of last use.
    #[must_use]
    pub const fn with_last_seen_at(mut self, last_seen_at: Timestamp) -> Self {
        self.last_seen_at = last_seen_at;
        self
    }

    /// Sets the expiry.
    #[must_use]
    pub const fn with_expires_at(mut self, expires_at: Timestamp) -> Self {
        self.expires_at = expires_at;
        self
    }

    /// Sets the version.
    #[must_use]
    pub const fn with_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Sets the subject, or removes it.
    #[must_use]
    pub fn with_subject(mut self, subject: Option<Subject>) -> Self {
        self.subject = subject;
        self
    }

    /// Returns the encoded payload.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Returns the instant at which the session began. Rotating its key does not change this.
    #[must_use]
    pub const fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// Returns the instant from which on the session counts as absent.
    #[must_use]
    pub const fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Returns the instant of last use, as fresh as the touch throttle makes it.
    #[must_use]
    pub const fn last_seen_at(&self) -> Timestamp {
        self.last_seen_at
    }

    /// Returns the version of this state.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Returns the subject: the application's id of the user whose session this is.
    #[must_use]
    pub const fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref()
    }

    #[doc(hidden)]
    #[must_use]
    pub const fn parts(&self) -> RecordParts<'_> {
        let Self { expires_at, decoded: _, payload, created_at, last_seen_at, version, subject } = self;
        RecordParts {
            payload,
            created_at: *created_at,
            expires_at: *expires_at,
            last_seen_at: *last_seen_at,
            version: *version,
            subject: subject.as_ref(),
        }
    }

    /// Returns `true` if the session has ended at `now`. A session whose expiry is `now` has ended.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    /// Returns the map that the payload holds. The map shares this record instead of copying from it.
    ///
    /// The first caller decodes the payload; all later callers share the result. So always pass the codec
    /// that the record was written with and the key that it was read under.
    ///
    /// # Errors
    ///
    /// Returns [`CodecError`] if the codec cannot read the payload. The error is not remembered: the next
    /// call decodes again.
    pub fn data(self: &Arc<Self>, key: &StoredKey, codec: &dyn Codec) -> Result<SessionData, CodecError> {
        Ok(match self.decoded(key, codec)? {
            Decoded::InPlace(_) => SessionData::shared(self.clone()),
            Decoded::Apart(data) => SessionData::clone(data),
        })
    }

    /// Decodes the payload, so that later calls of [`data`](Self::data) find it decoded.
    ///
    /// # Errors
    ///
    /// Returns [`CodecError`] if the codec cannot read the payload.
    pub fn decode(&self, key: &StoredKey, codec: &dyn Codec) -> Result<(), CodecError> {
        self.decoded(key, codec).map(drop)
    }

    fn decoded(&self, key: &StoredKey, codec: &dyn Codec) -> Result<&Decoded, CodecError> {
        if let Some(decoded) = self.decoded.get() {
            return Ok(decoded);
        }
        let dense = codec.json_start(&self.payload).and_then(|start| Dense::read(&self.payload, start));
        let decoded = match dense {
            Some(dense) => Decoded::InPlace(dense),
            None => Decoded::Apart(Box::new(codec.decode(key, &self.payload)?)),
        };
        Ok(self.decoded.get_or_init(|| decoded))
    }
}

/// The object that was found in the payload itself.
impl Source for Record {
    fn object(&self) -> Object<'_> {
        match self.decoded.get() {
            Some(Decoded::InPlace(dense)) => dense.object(&self.payload),
            Some(Decoded::Apart(_)) | None => Object::EMPTY,
        }
    }
}

/// Compares what is stored. Whether a record has been decoded yet does not count.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Record {}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.parts(), f)
    }
}

impl fmt::Debug for RecordParts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { payload, created_at, expires_at, last_seen_at, version, subject } = self;
        f.debug_struct("Record")
            .field("payload_len", &payload.len())
            .field("created_at", created_at)
            .field("expires_at", expires_at)
            .field("last_seen_at", last_seen_at)
            .field("version", version)
            .field("has_subject", &subject.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::JsonCodec;

    fn key() -> StoredKey {
        StoredKey::parse("some-stored-key").unwrap()
    }

    fn record(payload: impl Into<Bytes>) -> Arc<Record> {
        Arc::new(Record::new(payload.into(), Timestamp::from_secs(0), Timestamp::MAX))
    }

    fn written(data: &SessionData) -> Vec<u8> {
        let mut out = Vec::new();
        data.write_json(&mut out);
        out
    }

    /// Generates objects in every way in which they can be written.
    fn any_object() -> impl Strategy<Value = String> {
        let key = prop_oneof!["[a-e]{0,2}", Just(r"\u0061".to_owned()), Just("é".to_owned())];
        let value = prop_oneof![Just("1"), Just(r#""x,\"y""#), Just("[1 , 2]"), Just(r#"{"a":{}}"#)];
        let space = || prop_oneof![5 => Just(""), 1 => Just(" ")];
        let member = (key, space(), value, space())
            .prop_map(|(key, before, value, after)| format!("\"{key}\"{before}:{value}{after}"));
        (prop::collection::vec(member, 0..5), any::<bool>(), space(), space()).prop_map(
            |(mut members, sorted, before, after)| {
                if sorted {
                    members.sort();
                }
                format!("{before}{{{}}}{after}", members.join(","))
            },
        )
    }

    proptest! {
        #[test]
        fn map_read_in_place_equals_the_map_that_the_codec_decodes(object in any_object()) {
            let payload = Bytes::from(format!("1{object}"));
            let mut decoded = JsonCodec.decode(&key(), &payload).unwrap();
            let mut read = record(payload).data(&key(), &JsonCodec).unwrap();
            prop_assert_eq!(&read, &decoded);
            prop_assert_eq!(written(&read), object.into_bytes());
            prop_assert!(decoded.iter().all(|(key, value)| read.get(key) == Some(value)));
            for data in [&mut read, &mut decoded] {
                data.insert("b", "2".into()).unwrap();
                data.remove("a");
            }
            prop_assert_eq!(written(&read), written(&decoded));
        }
    }

    #[test]
    fn payloads_on_both_sides_of_64_kib_are_read() {
        let around = r#"1{"a":"","b":2}"#.len();
        for len in [0xfffe, 0xffff, 0x1_0000, 0x1_0010] {
            let long = format!("\"{}\"", "x".repeat(len - around));
            let data = record(format!(r#"1{{"a":{long},"b":2}}"#)).data(&key(), &JsonCodec).unwrap();
            assert_eq!(data.iter().collect::<Vec<_>>(), [("a", &*long), ("b", "2")], "{len}");
            assert_eq!((data.get("b"), written(&data).len()), (Some("2"), len - 1));
        }
    }

    #[test]
    fn payload_that_is_not_json_is_decoded_once_and_shared() {
        #[derive(Debug, Default)]
        struct Counting(std::sync::atomic::AtomicU32);
        impl Codec for Counting {
            fn encode(&self, _: &StoredKey, _: &SessionData) -> Result<Bytes, CodecError> {
                Err(CodecError::Unencodable("not in this test".into()))
            }
            fn decode(&self, _: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let mut data = SessionData::new();
                data.insert("len", payload.len().to_string())
                    .map_err(|error| CodecError::Malformed(error.into()))?;
                Ok(data)
            }
        }
        let (record, codec) = (record("three"), Counting::default());
        for _ in 0..2 {
            record.decode(&key(), &codec).unwrap();
            assert_eq!(record.data(&key(), &codec).unwrap().get("len"), Some("5"));
        }
        assert_eq!(codec.0.into_inner(), 1);
    }

    #[test]
    fn unreadable_payload_is_an_error_at_every_call() {
        let record = record("1{\"a\":");
        for _ in 0..2 {
            assert!(matches!(record.decode(&key(), &JsonCodec), Err(CodecError::Malformed(_))));
            assert!(record.data(&key(), &JsonCodec).is_err());
        }
    }

    fn with_every_field(payload: &'static [u8]) -> Record {
        Record::new(Bytes::from_static(payload), Timestamp::from_secs(1), Timestamp::from_secs(2))
            .with_last_seen_at(Timestamp::from_secs(3))
            .with_version(Version::from_u64(4))
            .with_subject(Some(Subject::parse("user-5").unwrap()))
    }

    #[test]
    fn with_payload_decodes_the_new_payload_and_keeps_every_other_field() {
        let record = Arc::new(with_every_field(br#"1{"a":1}"#));
        record.decode(&key(), &JsonCodec).unwrap();
        let replaced = Arc::new(Record::clone(&record).with_payload(Bytes::from_static(br#"1{"b":2}"#)));
        assert_eq!(replaced.data(&key(), &JsonCodec).unwrap().iter().collect::<Vec<_>>(), [("b", "2")]);
        assert_eq!(*replaced, with_every_field(br#"1{"b":2}"#));
        assert_eq!(record.data(&key(), &JsonCodec).unwrap().get("a"), Some("1"));
    }

    #[test]
    fn records_that_differ_in_one_field_are_not_equal() {
        let record = with_every_field(b"1{}");
        let other = Timestamp::from_secs(9);
        // `created_at` has no setter: it is given when a record is created.
        let of_other_age = Record::new(record.payload().clone(), other, record.expires_at())
            .with_last_seen_at(record.last_seen_at())
            .with_version(record.version())
            .with_subject(record.subject().cloned());
        for changed in [
            record.clone().with_payload(Bytes::from_static(b"1{ }")),
            record.clone().with_expires_at(other),
            record.clone().with_last_seen_at(other),
            record.clone().with_version(Version::from_u64(9)),
            record.clone().with_subject(None),
            of_other_age,
        ] {
            assert_ne!(changed, record);
        }
    }
}
