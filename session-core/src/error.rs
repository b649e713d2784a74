use std::error::Error;

/// The error that a backend's driver gave, behind a wall: no driver's type is part of this crate's interface.
///
/// A backend must make sure that its text holds no key, no payload and no password.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// What an error says about the write it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not happen, and will not.
    NotApplied,
    /// It may have happened, or may happen later.
    Unknown,
}

/// Why a cache call failed. None of these fails a session operation: the database is asked instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The call never left this process, or the cache was not reached. Retry later.
    #[error("the cache cannot be reached ({0}); check that it runs and that its address is right")]
    Unavailable(#[source] BoxError),
    /// The call left, and no answer came: it may have been applied, or may be applied later.
    #[error("the cache did not answer ({0}); whether the call was applied is unknown")]
    Unknown(#[source] BoxError),
    /// The cache answered that it will not do it: value too large, memory full, read-only replica, wrong password.
    #[error("the cache refused the call ({0})")]
    Refused(#[source] BoxError),
    /// The entry under this key is one of another key. It was not used.
    #[error("the cache answered with an entry of another key; check what else writes to this cache")]
    WrongKey,
}

impl CacheError {
    /// Whether the call may have been applied.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) => Outcome::Unknown,
            Self::Unavailable(_) | Self::Refused(_) | Self::WrongKey => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }
}

/// Why a database call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PersistenceError {
    /// There is no such session, or it has expired.
    #[error("no such session, or it has expired")]
    NotFound,
    /// The session has another version than the one that was expected: somebody wrote in between. Load it again.
    #[error("the session was changed in the meantime; load it again and repeat the change")]
    Conflict,
    /// There is a session under this key already. Choose another key.
    #[error("a session with this key exists already; choose another key")]
    AlreadyExists,
    /// The payload is larger than this database takes.
    #[error(
        "the session's payload has {actual} bytes, but this database takes at most {limit}; keep less in the session"
    )]
    TooLarge {
        /// The payload's size, in bytes.
        actual: usize,
        /// The largest payload, in bytes.
        limit: usize,
    },
    /// The row is there but cannot be read. It was left alone.
    #[error("a session's row cannot be read ({0}); it was left alone for you to look at")]
    CorruptRow(#[source] BoxError),
    /// The database was not reached; the statement was not sent. Retry later.
    #[error(
        "the database cannot be reached ({0}); check that it runs and that its address and password are right"
    )]
    Unavailable(#[source] BoxError),
    /// The database is busy with somebody else's lock; the statement had no effect. Retry.
    #[error("the database is locked ({0}); retry, or find out who keeps the lock")]
    Busy(#[source] BoxError),
    /// The database refused the statement, and will again: disk full, read-only, privileges missing.
    #[error("the database refused the statement ({0})")]
    Refused(#[source] BoxError),
    /// The statement was sent and no answer came. Find out whether it happened before repeating it.
    #[error("the database did not answer ({0}); find out whether the change happened before repeating it")]
    Unknown(#[source] BoxError),
    /// The table is not as this version needs it.
    #[error("the session table is not usable: {0}")]
    Schema(#[from] SchemaProblem),
    /// A URL, a table name or an option is wrong. Shows no password.
    #[error("invalid configuration: {0}")]
    Config(String),
}

impl PersistenceError {
    /// Whether a write that failed with this may have happened.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later. After an [unknown outcome](Outcome::Unknown), find out first.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_) | Self::Unknown(_))
    }

    /// Whether the caller has to change what it asks for: the database is fine.
    #[must_use]
    pub const fn is_caller_error(&self) -> bool {
        matches!(
            self,
            Self::NotFound | Self::Conflict | Self::AlreadyExists | Self::TooLarge { .. } | Self::Config(_)
        )
    }
}

/// What is wrong with the session table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaProblem {
    /// There is none.
    #[error("table {table} does not exist; call migrate(), or run the statements of schema_sql()")]
    Missing {
        /// Its name.
        table: String,
    },
    /// It was made by an older version.
    #[error("table {table} has schema version {found}, this version needs {needed}; call migrate()")]
    Outdated {
        /// Its name.
        table: String,
        /// The version it has.
        found: u32,
        /// The version needed.
        needed: u32,
    },
    /// It was made by a newer version.
    #[error(
        "table {table} has schema version {found}, this version knows only {known}; upgrade this program"
    )]
    TooNew {
        /// Its name.
        table: String,
        /// The version it has.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// A table of this name is there, but it is not a session table.
    #[error("table {table} is not a session table ({reason}); choose another table name")]
    Foreign {
        /// Its name.
        table: String,
        /// What does not fit.
        reason: String,
    },
}
