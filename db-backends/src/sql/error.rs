//! What a driver's error means: did the statement happen, is it worth a retry. And what of its text may be shown: a
//! server's message can quote values, which are keys and payloads, so it is shown only for codes that are known to quote
//! none.

use session_core::{PersistenceError, SchemaProblem};
use sqlx::error::DatabaseError;

use crate::sql::table::TableName;

/// What an error that the database answered with means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// There is a row with this key.
    Duplicate,
    /// There is no such table.
    NoTable,
    /// Somebody else's lock, or ours together with theirs; the statement was undone.
    Busy,
    /// The database is not there, or not for us.
    Unavailable,
    /// It will not do it.
    Refused,
    /// It may have done it.
    Unknown,
}

/// A kind of database, as far as its errors go.
pub(crate) struct Dialect {
    pub(crate) name: &'static str,
    pub(crate) meaning: fn(&dyn DatabaseError) -> Meaning,
    /// Whether the message quotes no values.
    pub(crate) may_be_shown: fn(&dyn DatabaseError) -> bool,
    /// What to do when the driver cannot do what the URL or the server asks for.
    pub(crate) advice: &'static str,
}

impl Dialect {
    /// Whether the statement that failed with this is over, and its connection as good as before.
    pub(crate) fn is_over(&self, error: &sqlx::Error) -> bool {
        match error {
            sqlx::Error::Database(answer) => {
                !matches!((self.meaning)(&**answer), Meaning::Unavailable | Meaning::Unknown)
            }
            sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => true,
            // Also when an answer could not be decoded: the rest of it may still come.
            _ => false,
        }
    }

    /// An error in reading a URL. What the driver says may quote a password.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(crate) fn parsing(&self, _: &sqlx::Error) -> PersistenceError {
        PersistenceError::Config(format!(
            "the {} URL is not one, or has an option that is not understood; characters in a password may have to be \
             written as %40 and the like",
            self.name
        ))
    }

    /// An error in reaching the database. No statement was sent.
    pub(crate) fn connecting(&self, error: &sqlx::Error) -> PersistenceError {
        match error {
            sqlx::Error::Configuration(_) => PersistenceError::Config(self.advice.to_owned()),
            sqlx::Error::Tls(_) if cfg!(not(feature = "_tls")) => {
                PersistenceError::Config(self.advice.to_owned())
            }
            sqlx::Error::Database(answer) => match (self.meaning)(&**answer) {
                Meaning::Busy => PersistenceError::Busy(self.shown(error)),
                Meaning::Refused => PersistenceError::Refused(self.shown(error)),
                _ => PersistenceError::Unavailable(self.shown(error)),
            },
            _ => PersistenceError::Unavailable(self.shown(error)),
        }
    }

    /// An error of a statement that changes nothing, so that there is no doubt about its outcome.
    pub(crate) fn reading(&self, error: &sqlx::Error, table: &TableName) -> PersistenceError {
        match self.writing(error, table) {
            PersistenceError::Unknown(source) => PersistenceError::Unavailable(source),
            other => other,
        }
    }

    /// An error of a statement that changes something.
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
                // The connection broke, or its answer was not understood.
                _ => PersistenceError::Unknown(self.shown(error)),
            };
        };
        match (self.meaning)(&**answer) {
            Meaning::Duplicate => PersistenceError::AlreadyExists,
            Meaning::NoTable => SchemaProblem::Missing { table: table.as_str().to_owned() }.into(),
            Meaning::Busy => PersistenceError::Busy(self.shown(error)),
            Meaning::Unavailable => PersistenceError::Unavailable(self.shown(error)),
            Meaning::Refused => PersistenceError::Refused(self.shown(error)),
            Meaning::Unknown => PersistenceError::Unknown(self.shown(error)),
        }
    }

    /// What of the error may be shown.
    fn shown(&self, error: &sqlx::Error) -> session_core::BoxError {
        let text = match error {
            sqlx::Error::Database(answer) => {
                let code = answer.code().unwrap_or_default();
                let message =
                    if (self.may_be_shown)(&**answer) { answer.message() } else { "its message is withheld" };
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
            sqlx::Error::Protocol(_) => format!("{}: an answer was not understood", self.name),
            _ => format!("{}: the driver failed", self.name),
        };
        Box::new(DriverError(text))
    }
}

/// What a driver's error may show.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct DriverError(String);
