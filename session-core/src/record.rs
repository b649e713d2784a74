use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::data::{Dense, Object};
use crate::{Codec, CodecError, SessionData, StoredKey, Subject, Timestamp};

/// Which committed state of a session this is. Opaque, compared for equality only.
///
/// A different one after every committed change of payload, subject or key; the same after a touch. A version that a
/// key has had never comes back, not even after the session was deleted and made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(u64);

impl Version {
    /// The version of a record that is not in a database yet.
    pub const UNSAVED: Self = Self(0);

    /// From what a database stored.
    #[must_use]
    pub const fn from_u64(bits: u64) -> Self {
        Self(bits)
    }

    /// For a database to store.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// One stored session.
///
/// The payload is encoded; [`data`](Self::data) decodes it at most once, and shares the result, so that an in-process
/// cache hands the same decoded map to every reader. `Debug` shows neither payload nor subject.
#[derive(Clone)]
// In this order, because what every cache hit looks at comes first, beside the reference count: in its cache line or the next.
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

/// Where the map is that the payload was found to hold.
#[derive(Clone)]
enum Decoded {
    /// In the payload itself, at these places.
    InPlace(Dense),
    Apart(Box<SessionData>),
}

impl Record {
    /// A record that nobody has stored yet: last seen when it was created, without a subject.
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

    /// The same with another instant of last use.
    #[must_use]
    pub const fn with_last_seen_at(mut self, last_seen_at: Timestamp) -> Self {
        self.last_seen_at = last_seen_at;
        self
    }

    /// The same with another expiry.
    #[must_use]
    pub const fn with_expires_at(mut self, expires_at: Timestamp) -> Self {
        self.expires_at = expires_at;
        self
    }

    /// The same with another version.
    #[must_use]
    pub const fn with_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// The same with another subject, or none.
    #[must_use]
    pub fn with_subject(mut self, subject: Option<Subject>) -> Self {
        self.subject = subject;
        self
    }

    /// The encoded payload.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// When the session began. Rotating its key does not change this.
    #[must_use]
    pub const fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// From when on the session counts as absent.
    #[must_use]
    pub const fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// When the session was last used, as fresh as the touch throttle makes it.
    #[must_use]
    pub const fn last_seen_at(&self) -> Timestamp {
        self.last_seen_at
    }

    /// Which committed state this is.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Whose session it is.
    #[must_use]
    pub const fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref()
    }

    /// Whether the session is over at `now`. A session whose expiry is `now` is over.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    /// The map that the payload holds, which shares this record rather than copy it. Decoded by the first caller; all that
    /// come after share the result, so a record must always be read with the codec it was written with and the key it was
    /// read under.
    ///
    /// # Errors
    ///
    /// [`CodecError`] when the codec cannot read the payload. Nothing is remembered then.
    pub fn data(self: &Arc<Self>, key: &StoredKey, codec: &dyn Codec) -> Result<SessionData, CodecError> {
        Ok(match self.decoded(key, codec)? {
            Decoded::InPlace(_) => SessionData::of(Arc::clone(self)),
            Decoded::Apart(data) => SessionData::clone(data),
        })
    }

    /// Does what [`data`](Self::data) does before it can share the map, so that it finds it done.
    ///
    /// # Errors
    ///
    /// As [`data`](Self::data).
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

    /// The object that was found in the payload itself.
    pub(crate) fn object(&self) -> Object<'_> {
        match self.decoded.get() {
            Some(Decoded::InPlace(dense)) => dense.object(&self.payload),
            Some(Decoded::Apart(_)) | None => Object::EMPTY,
        }
    }
}

/// By what is stored; whether it has been decoded yet does not count.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.payload == other.payload
            && self.created_at == other.created_at
            && self.expires_at == other.expires_at
            && self.last_seen_at == other.last_seen_at
            && self.version == other.version
            && self.subject == other.subject
    }
}

impl Eq for Record {}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("payload_len", &self.payload.len())
            .field("created_at", &self.created_at)
            .field("expires_at", &self.expires_at)
            .field("last_seen_at", &self.last_seen_at)
            .field("version", &self.version)
            .field("has_subject", &self.subject.is_some())
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

    /// An object in any of the ways in which it can be written.
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
        fn a_map_that_is_read_in_the_payload_is_the_one_that_the_codec_decodes(object in any_object()) {
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
    fn payloads_on_both_sides_of_what_two_bytes_can_tell_are_read() {
        let around = r#"1{"a":"","b":2}"#.len();
        for len in [0xfffe, 0xffff, 0x1_0000, 0x1_0010] {
            let long = format!("\"{}\"", "x".repeat(len - around));
            let data = record(format!(r#"1{{"a":{long},"b":2}}"#)).data(&key(), &JsonCodec).unwrap();
            assert_eq!(data.iter().collect::<Vec<_>>(), [("a", &*long), ("b", "2")], "{len}");
            assert_eq!((data.get("b"), written(&data).len()), (Some("2"), len - 1));
        }
    }

    #[test]
    fn what_a_codec_makes_of_a_payload_that_is_no_json_is_remembered_and_shared() {
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
    fn a_payload_that_cannot_be_read_is_an_error_each_time() {
        let record = record("1{\"a\":");
        for _ in 0..2 {
            assert!(matches!(record.decode(&key(), &JsonCodec), Err(CodecError::Malformed(_))));
            assert!(record.data(&key(), &JsonCodec).is_err());
        }
    }
}
