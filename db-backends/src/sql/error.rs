//! The meaning of a driver's error: whether the statement took effect, whether a retry makes sense, and how
//! much of the error's text may be shown. A server's message can quote values, which are keys and payloads,
//! so it is shown only for codes that are known to quote none.

use session_core::{BoxError, PersistenceError, SchemaProblem};
use sqlx::error::DatabaseError;

use crate::sql::table::TableName;

/// The meaning of an error that the database answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// There is a row with this key.
    Duplicate,
    /// There is no such table.
    NoTable,
    /// Another client holds a lock. The statement was undone.
    Busy,
    /// Another client's statement came first, or both held what the other needs. The statement was undone, and
    /// can be run again at once.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file is no server"))]
    Undone,
    /// The database is not there, or does not let us in.
    Unavailable,
    /// The server takes no writes: it is a replica, or is the primary no more. The statement was refused.
    NotPrimary,
    /// The database will not run the statement.
    Refused,
    /// The database may have run the statement.
    Unknown,
}

/// The errors of one kind of database, and their translation.
pub(crate) struct DriverErrors {
    pub(crate) name: &'static str,
    pub(crate) meaning: fn(&dyn DatabaseError) -> Meaning,
    /// Returns `true` if the message quotes no values.
    pub(crate) may_be_shown: fn(&dyn DatabaseError) -> bool,
    /// Advice for when the driver cannot do what the URL or the server asks for.
    pub(crate) advice: &'static str,
}

impl DriverErrors {
    /// Returns `true` if the statement that failed with `error` has ended and its connection can be used
    /// again.
    pub(crate) fn leaves_connection_usable(&self, error: &sqlx::Error) -> bool {
        match error {
            sqlx::Error::Database(answer) => !matches!(
                (self.meaning)(&**answer),
                Meaning::Unavailable | Meaning::NotPrimary | Meaning::Unknown
            ),
            sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => true,
            // Includes an answer that could not be decoded: the rest of it may still come.
            _ => false,
        }
    }

    /// Returns `true` if the server undid the statement for another client's.
    #[cfg(feature = "_server")]
    pub(crate) fn is_undone(&self, error: &sqlx::Error) -> bool {
        matches!(error, sqlx::Error::Database(answer) if (self.meaning)(&**answer) == Meaning::Undone)
    }

    /// Returns `true` if another client's lock kept the server from running the statement in time.
    #[cfg(feature = "_server")]
    pub(crate) fn is_busy(&self, error: &sqlx::Error) -> bool {
        matches!(error, sqlx::Error::Database(answer) if (self.meaning)(&**answer) == Meaning::Busy)
    }

    /// Returns `true` if the server answered that it takes no writes.
    pub(crate) fn is_not_primary(&self, error: &sqlx::Error) -> bool {
        matches!(error, sqlx::Error::Database(answer) if (self.meaning)(&**answer) == Meaning::NotPrimary)
    }

    /// Returns `true` if the connection was lost, or is of no more use, so that the statement may succeed on a
    /// new one. It may have been run.
    #[cfg(feature = "_server")]
    pub(crate) fn is_lost(&self, error: &sqlx::Error) -> bool {
        let is_connection_error = matches!(
            error,
            sqlx::Error::Database(_) | sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)
        );
        is_connection_error && !self.leaves_connection_usable(error)
    }

    /// Translates an error in reading a URL. The driver's own message may quote a password.
    #[cfg(feature = "_server")]
    pub(crate) fn parsing(&self, _: &sqlx::Error) -> PersistenceError {
        PersistenceError::Config(format!(
            "the {} URL cannot be parsed, or has an unknown option or value; check it, and write special characters \
             in a password as %40 and the like",
            self.name
        ))
    }

    /// Translates an error in reaching the database. No statement was sent.
    pub(crate) fn connecting(&self, error: &sqlx::Error) -> PersistenceError {
        match error {
            sqlx::Error::Configuration(_) => PersistenceError::Config(self.advice.to_owned()),
            sqlx::Error::Tls(_) if cfg!(not(feature = "_tls")) => {
                PersistenceError::Config(self.advice.to_owned())
            }
            sqlx::Error::Database(answer) => match (self.meaning)(&**answer) {
                Meaning::Busy | Meaning::Undone => PersistenceError::Busy(self.shown(error)),
                Meaning::Refused => PersistenceError::Refused(self.shown(error)),
                _ => PersistenceError::Unavailable(self.shown(error)),
            },
            // Of TLS: why the server's certificate, or ours, was not accepted. No value has been sent yet.
            sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                PersistenceError::Unavailable(Box::new(ShownError(format!("{}: {error}", self.name))))
            }
            _ => PersistenceError::Unavailable(self.shown(error)),
        }
    }

    /// Translates an error of a statement that changes nothing, so that its outcome is never in doubt.
    pub(crate) fn reading(&self, error: &sqlx::Error, table: &TableName) -> PersistenceError {
        match self.writing(error, table) {
            PersistenceError::Unknown(source) => PersistenceError::Unavailable(source),
            other => other,
        }
    }

    /// Translates an error of a statement that changes something.
    pub(crate) fn writing(&self, error: &sqlx::Error, table: &TableName) -> PersistenceError {
        let sqlx::Error::Database(answer) = error else {
            return match error {
                // Refused in this process.
                sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => {
                    PersistenceError::Refused(self.shown(error))
                }
                sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                    PersistenceError::Unavailable(self.shown(error))
                }
                // The connection broke, or its answer could not be parsed.
                _ => PersistenceError::Unknown(self.shown(error)),
            };
        };
        match (self.meaning)(&**answer) {
            Meaning::Duplicate => PersistenceError::AlreadyExists,
            Meaning::NoTable => SchemaProblem::Missing { table: table.as_str().to_owned() }.into(),
            Meaning::Busy | Meaning::Undone => PersistenceError::Busy(self.shown(error)),
            Meaning::Unavailable | Meaning::NotPrimary => PersistenceError::Unavailable(self.shown(error)),
            Meaning::Refused => PersistenceError::Refused(self.shown(error)),
            Meaning::Unknown => PersistenceError::Unknown(self.shown(error)),
        }
    }

    /// Returns what may be shown of `error`.
    fn shown(&self, error: &sqlx::Error) -> BoxError {
        let text = match error {
            sqlx::Error::Database(answer) => {
                let code = answer.code().unwrap_or_default();
                let message = if (self.may_be_shown)(&**answer) {
                    answer.message()
                } else if (self.meaning)(&**answer) == Meaning::NotPrimary {
                    "the server takes no writes"
                } else {
                    "its message is withheld"
                };
                format!("{} error {code}: {message}", self.name)
            }
            sqlx::Error::Io(error) => format!("{}: {}", self.name, error.kind()),
            // About certificates.
            sqlx::Error::Tls(error) => format!("{}, TLS: {error}", self.name),
            sqlx::Error::PoolTimedOut => {
                format!("{}: no connection became free, or could be made, in time", self.name)
            }
            sqlx::Error::PoolClosed => format!("{}: the connection pool is closed", self.name),
            sqlx::Error::WorkerCrashed => format!("{}: the connection's thread has ended", self.name),
            sqlx::Error::Protocol(_) => format!("{}: an answer broke the protocol", self.name),
            _ => format!("{}: the driver failed", self.name),
        };
        Box::new(ShownError(text))
    }
}

/// The part of a driver's error that may be shown.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ShownError(String);
