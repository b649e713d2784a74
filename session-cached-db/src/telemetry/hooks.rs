//! The application's hooks into the life of sessions.

use std::fmt;

use session_core::{ExpiredSession, Record, StoredKey};

use crate::Error;

/// Hooks that a store calls when something happens to a session: for an audit log, for alarms, for custom figures.
/// Passed to [`Builder::hooks`](crate::Builder::hooks). Without hooks, nothing is called and nothing is paid.
///
/// # Behavior
///
/// - Each method is called once, by the task that did the work, after the database has confirmed it. The work of other nodes
///   is reported to the hooks there. To learn here of an end that is made there, [watch](crate::SessionWatch) the session.
/// - A method must return soon and must not panic: a request, or the result of a write, waits for it. Send longer work through
///   a channel.
/// - Methods get stored keys, which open no session as long as keys are hashed. Records may hold data that must not reach a
///   log.
/// - A write with an unknown outcome is not reported.
///
/// ```
/// use session_cached_db::StoredKey;
/// use session_cached_db::{Hooks, PresentedKey, Revocation};
///
/// #[derive(Debug)]
/// struct Audit;
///
/// impl Hooks for Audit {
///     fn revoked(&self, key: &StoredKey, cause: Revocation) {
///         println!("session {} was ended: {cause:?}", key.as_str());
///     }
///     fn unknown_key(&self, presented: PresentedKey) {
///         if presented == PresentedKey::LooksLikeStoredKey {
///             println!("a client presented a stored key");
///         }
///     }
/// }
/// ```
pub trait Hooks: Send + Sync + fmt::Debug + 'static {
    /// Called after a session is stored for the first time.
    fn created(&self, key: &StoredKey, record: &Record) {
        let _ = (key, record);
    }

    /// Called after a session is loaded for a client or for the application, from the cache or from the database.
    fn loaded(&self, key: &StoredKey, record: &Record) {
        let _ = (key, record);
    }

    /// Called after a session gets another key, as at a login: `old` is dead, `key` is its key from now on.
    fn renewed(&self, old: &StoredKey, key: &StoredKey, record: &Record) {
        let _ = (old, key, record);
    }

    /// Called after a request that came with the `old` key of a session, or was opened with it, follows the session to its new
    /// `key`, within the [grace](crate::Builder::rotation_grace).
    fn followed(&self, old: &StoredKey, key: &StoredKey) {
        let _ = (old, key);
    }

    /// Called after a session is ended by the request that has it open, with [`flush`](crate::Session::flush) or
    /// [`delete`](crate::Session::delete).
    fn destroyed(&self, key: &StoredKey) {
        let _ = key;
    }

    /// Called after a session is ended from outside.
    fn revoked(&self, key: &StoredKey, cause: Revocation) {
        let _ = (key, cause);
    }

    /// Called after `count` expired sessions are deleted, which were `sessions`: by the [reaper](crate::Builder::reaper) and
    /// by [`clear_expired`](crate::CachedDb::clear_expired), some time after they expired. They are at most as many as the
    /// reaper's [batch](crate::Reaper::batch).
    ///
    /// Each session is in one call, on the node that deleted it. Not among `sessions` are the rows whose keys are no stored
    /// keys, and the sessions of other applications on the same table, which have another
    /// [`key_prefix`](crate::Builder::key_prefix). Subjects are missing where the table has none, as in Django's. What other
    /// programs delete, `sessionctl clear-expired` included, is not reported.
    ///
    /// A client that presents the key of an expired session is reported as an [unknown key](Self::unknown_key).
    fn expired(&self, count: u64, sessions: &[ExpiredSession]) {
        let _ = (count, sessions);
    }

    /// Called after a client presents a key that opens no session.
    fn unknown_key(&self, presented: PresentedKey) {
        let _ = presented;
    }

    /// Called when the session under `key` cannot be read. Its row is left alone. With sealed payloads this may be an attack:
    /// see [`CodecError::reason`](session_core::CodecError::reason) of the error's source.
    fn payload_unreadable(&self, key: &StoredKey, error: &Error) {
        let _ = (key, error);
    }
}

/// The cause by which a session was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revocation {
    /// A call of [`revoke`](crate::CachedDb::revoke).
    One,
    /// A call of [`revoke_subject`](crate::CachedDb::revoke_subject).
    Subject,
    /// Its subject has more sessions than
    /// [`max_sessions_per_subject`](crate::Builder::max_sessions_per_subject) allows.
    TooMany,
    /// No client knows its key: the answer of the write that stored the session was lost, and so was the key.
    Abandoned,
}

/// A key that opens no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresentedKey {
    /// The text cannot be a key. (The layer for [tower](https://docs.rs/tower) drops such a cookie before it gets here.)
    Malformed,
    /// The key is well formed: the session has ended, or the client guesses.
    Unknown,
    /// The key looks like a stored key: the client has seen a table or a cache, and tries what is in there.
    LooksLikeStoredKey,
}

/// The way in which a session is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By the request that has it open.
    Destroyed,
    Revoked(Revocation),
}
