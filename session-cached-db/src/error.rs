use std::sync::Arc;
use std::time::Duration;

use session_core::{
    CodecError, InvalidSubject, MalformedJson, Outcome, PersistenceError, RandomnessUnavailable,
    SchemaProblem,
};

/// An error of a session operation. A cache that is slow or down is no error, except under
/// [`OutagePolicy::FailClosed`](crate::OutagePolicy::FailClosed).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The session was deleted or has expired since it was opened. It is not written again, under any key.
    /// Treat the client as logged out.
    #[error("the session was ended in the meantime; treat the client as logged out")]
    SessionGone,
    /// Another writer changed the same key in the meantime and the policy is
    /// [`ConflictPolicy::Reject`](crate::ConflictPolicy::Reject), or other writers kept changing the session.
    /// Open it again and repeat the change.
    #[error("the session was changed by another writer in the meantime; open it again and repeat the change")]
    Conflict,
    /// A session with this key exists already.
    #[error("a session with this key exists already; choose another key")]
    AlreadyExists,
    /// The session would be larger than the store or its codec allows.
    #[error(
        "the session has {actual} bytes, but at most {limit} are allowed; keep less in it, or raise max_payload_bytes, or \
         the codec's limit"
    )]
    TooLarge {
        /// The payload's size, in bytes.
        actual: usize,
        /// The largest payload, in bytes.
        limit: usize,
    },
    /// The session would hold more values than the store allows.
    #[error(
        "the session has {actual} values, but at most {limit} are allowed; keep fewer in it, or raise max_keys"
    )]
    TooManyKeys {
        /// The number of values.
        actual: usize,
        /// The largest number of values.
        limit: usize,
    },
    /// The stored payload cannot be read. The row was left alone.
    #[error("the stored session cannot be read: {0}")]
    Unreadable(#[source] Arc<CodecError>),
    /// The data cannot be encoded: the [codec](crate::Builder::codec) refuses it, or fails whatever the data is
    /// ([`CodecError::Failed`]).
    #[error("the session cannot be stored: {0}")]
    Unencodable(#[source] Arc<CodecError>),
    /// The value cannot be written as JSON.
    #[error("the value for {key:?} cannot be written as JSON: {source}")]
    Serialize {
        /// The key of the value.
        key: String,
        /// The error of the value's `Serialize`.
        source: Arc<serde_json::Error>,
    },
    /// The value has arrays and objects that are nested too deep to be read again. The session is unchanged.
    #[error(
        "the value for {key:?} is nested more than {limit} deep, which could not be read again; nest less, or store it as text"
    )]
    TooDeep {
        /// The key of the value.
        key: String,
        /// The deepest nesting that is accepted.
        limit: usize,
    },
    /// The stored value is not of the type that was asked for.
    #[error("the value under {key:?} cannot be read as {wanted}: {source}")]
    Deserialize {
        /// The key of the value.
        key: String,
        /// The type that was asked for.
        wanted: &'static str,
        /// The error in reading the value, and its place in it.
        source: MalformedJson,
    },
    /// The key is one that sessions use themselves.
    #[error("{key:?} is reserved; choose another key")]
    ReservedKey {
        /// The key.
        key: String,
    },
    /// The subject is empty, too long, or holds a NUL character.
    #[error(transparent)]
    InvalidSubject(#[from] InvalidSubject),
    /// The cache cannot be fenced, and the policy for this operation is
    /// [`OutagePolicy::FailClosed`](crate::OutagePolicy::FailClosed). The database was not touched. Retry later.
    #[error(
        "the cache does not answer or refuses writes, and the outage policy of this operation is to fail; nothing was \
         changed, retry later"
    )]
    CacheUnavailable,
    /// More than `max_waiting_writes` writes of this session, or logins of this subject, wait for their turn, or this one's
    /// turn did not come within the write timeout. Or another task has kept the session of this request locked for longer than a
    /// write may take.
    /// Nothing was changed. Retry later.
    #[error(
        "too many writes of this session or logins of this subject at once, or the ones before took too long, or another \
         task keeps this request's session locked; nothing was changed, retry later (see max_waiting_writes and write_timeout)"
    )]
    Busy,
    /// This task holds the request's session already, so waiting for it would take for ever. Pass the guard on, or drop it
    /// before the next [`lock`](crate::tower::SessionHandle::lock).
    #[cfg(feature = "tower")]
    #[error(
        "this task holds the request's session already; pass the guard on, or drop it before the next lock"
    )]
    AlreadyLocked,
    /// This machine's clock and the database's differ by more than `clock_slack`. Nothing was deleted: by a
    /// wrong clock, sessions that have not expired would be.
    #[error(
        "this machine's clock and the database's differ by {by:?}; nothing was deleted, set the clock that is wrong"
    )]
    ClockSkew {
        /// The difference.
        by: Duration,
    },
    /// The database call failed.
    #[error("{0}")]
    Database(#[source] Arc<PersistenceError>),
    /// The task that ran the operation ended before it had a result, because the runtime is shutting down.
    /// After a write, find out whether it happened.
    #[error("interrupted by the end of the runtime; find out whether a write happened before repeating it")]
    Interrupted,
    /// The store was closed. Nothing was changed.
    #[error("the session store is closed")]
    Closed,
    /// No session key could be generated.
    #[error(transparent)]
    RandomnessUnavailable(#[from] RandomnessUnavailable),
}

impl Error {
    /// Returns whether a write that failed with this error may have happened.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Database(error) => error.outcome(),
            Self::Interrupted => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Returns `true` if the same call may succeed later. After an [unknown outcome](Outcome::Unknown), find
    /// out first whether the write happened.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Database(error) => error.is_retryable(),
            Self::CacheUnavailable | Self::Busy | Self::Interrupted => true,
            _ => false,
        }
    }

    /// Returns `true` if the database is out of reach, for this call as for others.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Database(error) if matches!(**error, PersistenceError::Unavailable(_)))
    }

    /// Returns the error of a codec that could not encode a session.
    pub(crate) fn of_encoding(error: CodecError) -> Self {
        match error {
            CodecError::TooLarge { actual, limit } => Self::TooLarge { actual, limit },
            error => Self::Unencodable(Arc::new(error)),
        }
    }

    /// Returns `true` if the data that was to be saved is to blame.
    pub(crate) const fn is_data_error(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::TooManyKeys { .. } | Self::Unencodable(_))
    }

    /// Returns `true` if only this session's row or payload cannot be read, and the database itself is fine.
    pub(crate) fn is_row_error(&self) -> bool {
        match self {
            Self::Unreadable(_) => true,
            Self::Database(error) => matches!(**error, PersistenceError::CorruptRow(_)),
            _ => false,
        }
    }
}

impl From<PersistenceError> for Error {
    fn from(error: PersistenceError) -> Self {
        match error {
            PersistenceError::NotFound => Self::SessionGone,
            PersistenceError::Conflict => Self::Conflict,
            PersistenceError::AlreadyExists => Self::AlreadyExists,
            PersistenceError::TooLarge { actual, limit } => Self::TooLarge { actual, limit },
            error => Self::Database(Arc::new(error)),
        }
    }
}

/// An error while building a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A setting contradicts another, or does not fit the cache or the database.
    #[error("{0}")]
    Invalid(String),
    /// No tokio runtime is running in this thread.
    #[error("no tokio runtime is running here; build the store inside one, or set another with runtime()")]
    NoRuntime,
    /// The session table is not usable.
    #[error("the session table is not usable: {0}")]
    Schema(#[source] SchemaProblem),
    /// The database call failed.
    #[error("{0}")]
    Database(#[source] PersistenceError),
}

impl From<PersistenceError> for BuildError {
    fn from(error: PersistenceError) -> Self {
        match error {
            PersistenceError::Schema(problem) => Self::Schema(problem),
            error => Self::Database(error),
        }
    }
}
