use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;

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
// In this order, because what every cache hit looks at comes first: beside the reference count, in one cache line.
#[repr(C)]
pub struct Record {
    expires_at: Timestamp,
    decoded: OnceLock<SessionData>,
    payload: Bytes,
    created_at: Timestamp,
    last_seen_at: Timestamp,
    version: Version,
    subject: Option<Subject>,
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

    /// The decoded payload. Decoded by the first caller and shared with all that come after, so a record must always
    /// be read with the codec it was written with and the key it was read under.
    ///
    /// # Errors
    ///
    /// [`CodecError`] when the codec cannot read the payload. Nothing is remembered then.
    pub fn data(&self, key: &StoredKey, codec: &dyn Codec) -> Result<&SessionData, CodecError> {
        if let Some(data) = self.decoded.get() {
            return Ok(data);
        }
        let data = codec.decode(key, &self.payload)?;
        Ok(self.decoded.get_or_init(|| data))
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
