use std::error::Error;

/// The error of a backend's driver, boxed, so that no driver's type is part of this crate's interface.
///
/// A backend must make sure that its text contains no key, no payload and no password.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The outcome of a write that failed with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write did not happen, and will not.
    NotApplied,
    /// The write may have happened, or may happen later.
    Unknown,
}

/// An error of a cache call. No session operation fails for it, because the database is asked instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The call never left this process, or the cache was not reached. Retry later.
    #[error("the cache cannot be reached ({0}); check that it runs and that its address is right")]
    Unavailable(#[source] BoxError),
    /// The call was sent, and no answer came: it may have been applied, or may be applied later.
    #[error("the cache did not answer ({0}); whether the call was applied is unknown")]
    Unknown(#[source] BoxError),
    /// The cache answered that it refuses this call: value too large, memory full. Others may succeed.
    #[error("the cache refused the call ({0})")]
    Refused(#[source] BoxError),
    /// The cache refuses every caller until an operator mends it: wrong password, missing right, forbidden or
    /// unknown command, a server that is too old. The text says what to do.
    #[error("the cache cannot be used ({0})")]
    Unusable(#[source] BoxError),
    /// The entry under this key is another key's. It was not used.
    #[error("the cache answered with an entry of another key; check what else writes to this cache")]
    WrongKey,
}

impl CacheError {
    /// Returns whether the call may have been applied.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) => Outcome::Unknown,
            Self::Unavailable(_) | Self::Refused(_) | Self::Unusable(_) | Self::WrongKey => {
                Outcome::NotApplied
            }
        }
    }

    /// Returns `true` if the same call may succeed later, without an operator's help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }

    /// Returns `true` if the error is the server's state and not the call's: other calls fail as well, so the
    /// server is not to be called for a while.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown(_) | Self::Unusable(_))
    }
}

/// An error of a database call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PersistenceError {
    /// There is no such session, or it has expired.
    #[error("no such session, or it has expired")]
    NotFound,
    /// The session has another version than the expected one, because another writer came first. Load it
    /// again.
    #[error("the session was changed in the meantime; load it again and repeat the change")]
    Conflict,
    /// There is a session under this key already. Choose another key.
    #[error("a session with this key exists already; choose another key")]
    AlreadyExists,
    /// The payload is larger than this database accepts.
    #[error(
        "the session's payload has {actual} bytes, but this database takes at most {limit}; keep less in the session"
    )]
    TooLarge {
        /// The payload's size, in bytes.
        actual: usize,
        /// The largest payload, in bytes.
        limit: usize,
    },
    /// The row exists but cannot be read. It was left alone.
    #[error("a session's row cannot be read ({0}); it was left alone for you to look at")]
    CorruptRow(#[source] BoxError),
    /// The database was not reached; the statement was not sent. Retry later.
    #[error(
        "the database cannot be reached ({0}); check that it runs and that its address and password are right"
    )]
    Unavailable(#[source] BoxError),
    /// Another client's lock keeps the database busy; the statement had no effect. Retry.
    #[error("the database is locked ({0}); retry, or find out who keeps the lock")]
    Busy(#[source] BoxError),
    /// The database refused the statement, and will refuse it again: disk full, read-only, privileges
    /// missing.
    #[error("the database refused the statement ({0})")]
    Refused(#[source] BoxError),
    /// The statement was sent, and no answer came. Find out whether it happened before you repeat it.
    #[error("the database did not answer ({0}); find out whether the change happened before repeating it")]
    Unknown(#[source] BoxError),
    /// The table does not have the schema that this version needs.
    #[error("the session table is not usable: {0}")]
    Schema(#[from] SchemaProblem),
    /// A URL, a table name or an option is wrong. The text shows no password.
    #[error("invalid configuration: {0}")]
    Config(String),
}

impl PersistenceError {
    /// Returns whether a write that failed with this error may have happened.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Returns `true` if the same call may succeed later. After an [unknown outcome](Outcome::Unknown), find
    /// out first whether it has.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_) | Self::Unknown(_))
    }

    /// Returns `true` if the database is fine and the caller has to change the call.
    #[must_use]
    pub const fn is_caller_error(&self) -> bool {
        matches!(
            self,
            Self::NotFound | Self::Conflict | Self::AlreadyExists | Self::TooLarge { .. } | Self::Config(_)
        )
    }
}

/// The problem with the session table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaProblem {
    /// The table does not exist.
    #[error("table {table} does not exist; call migrate(), or run the statements of schema_sql()")]
    Missing {
        /// The table's name.
        table: String,
    },
    /// The table of the notes of [rotations](crate::Rotations) does not exist.
    #[error(
        "table {table} does not exist, which a grace after rotations needs; call migrate_rotations(), or run the \
         statements of rotations_sql()"
    )]
    MissingRotations {
        /// The table's name.
        table: String,
    },
    /// An older version has made the table.
    #[error("table {table} has schema version {found}, this version needs {needed}; call migrate()")]
    Outdated {
        /// The table's name.
        table: String,
        /// The table's schema version.
        found: u32,
        /// The schema version that this program needs.
        needed: u32,
    },
    /// A newer version has made the table.
    #[error(
        "table {table} has schema version {found}, this version knows only {known}; upgrade this program"
    )]
    TooNew {
        /// The table's name.
        table: String,
        /// The table's schema version.
        found: u32,
        /// The newest schema version that this program knows.
        known: u32,
    },
    /// A table of this name exists, but it is no session table.
    #[error("table {table} is not a session table ({reason}); choose another table name")]
    Foreign {
        /// The table's name.
        table: String,
        /// The difference from a session table.
        reason: String,
    },
}
