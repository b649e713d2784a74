//! What a store tells the application about its sessions, as it happens.

use std::fmt;

use session_core::{Record, StoredKey};

use crate::Error;

/// Is told what becomes of sessions: for an audit log, for alarms, for figures of one's own. Given to
/// [`Builder::events`](crate::Builder::events); by default nobody is told, and that costs nothing.
///
/// # Behavior
///
/// - A method is called by the task that did it, after the database has said yes, and once. What is done by other nodes is
///   told there.
/// - It must return soon, and must not panic: a request waits for it, or a write's result does. What takes longer belongs
///   into a channel.
/// - It is told stored keys, which open no session as long as keys are hashed. Records hold what their users would not want
///   in a log.
/// - A write whose outcome is unknown is not told.
///
/// ```
/// use session_cached_db::StoredKey;
/// use session_cached_db::{Events, PresentedKey, Revocation};
///
/// #[derive(Debug)]
/// struct Audit;
///
/// impl Events for Audit {
///     fn revoked(&self, key: &StoredKey, cause: Revocation) {
///         println!("session {} was ended: {cause:?}", key.as_str());
///     }
///     fn unknown_key(&self, presented: PresentedKey) {
///         if presented == PresentedKey::LooksLikeStoredKey {
///             println!("somebody tries what stands in the database");
///         }
///     }
/// }
/// ```
pub trait Events: Send + Sync + fmt::Debug + 'static {
    /// A session was stored for the first time.
    fn created(&self, key: &StoredKey, record: &Record) {
        let _ = (key, record);
    }

    /// A session was loaded for a client or for the application, from the cache or from the database.
    fn loaded(&self, key: &StoredKey, record: &Record) {
        let _ = (key, record);
    }

    /// A session got another key, as at a login: `old` is dead, `key` is what it has now.
    fn renewed(&self, old: &StoredKey, key: &StoredKey, record: &Record) {
        let _ = (old, key, record);
    }

    /// A session was ended by whoever had it open: by [`flush`](crate::Session::flush) or
    /// [`delete`](crate::Session::delete).
    fn destroyed(&self, key: &StoredKey) {
        let _ = key;
    }

    /// A session was ended from outside.
    fn revoked(&self, key: &StoredKey, cause: Revocation) {
        let _ = (key, cause);
    }

    /// So many expired sessions were deleted. Which ones they were is not known, and neither is when a session expires
    /// that nobody opens; one that somebody does try to open is an [unknown key](Self::unknown_key).
    fn expired(&self, count: u64) {
        let _ = count;
    }

    /// A client presented a key that opens no session.
    fn unknown_key(&self, presented: PresentedKey) {
        let _ = presented;
    }

    /// The session under `key` cannot be read. Its row was left alone. With sealed payloads, this may be an attack: see
    /// [`CodecError::reason`](session_core::CodecError::reason) of what is in the error.
    fn payload_unreadable(&self, key: &StoredKey, error: &Error) {
        let _ = (key, error);
    }
}

/// By what a session was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revocation {
    /// By [`revoke`](crate::CachedDb::revoke).
    One,
    /// By [`revoke_subject`](crate::CachedDb::revoke_subject).
    Subject,
    /// Its subject has more sessions than
    /// [`max_sessions_per_subject`](crate::Builder::max_sessions_per_subject) allows.
    TooMany,
}

/// A key that opens no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresentedKey {
    /// It is none at all. (The layer of [tower](https://docs.rs/tower) drops such a cookie before it gets here.)
    Malformed,
    /// It could be one: the session has ended, or somebody guesses.
    Unknown,
    /// It looks like what the database holds instead of keys: somebody has seen a table or a cache, and tries what stands
    /// there.
    LooksLikeStoredKey,
}

/// Who ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Whoever has it open.
    Destroyed,
    Revoked(Revocation),
}
