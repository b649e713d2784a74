//! The check of a connection before it is used: which server it leads to, whether that server takes writes,
//! and how the session is set.
//!
//! It runs on every new connection, on one that was not checked for a while, and at each use of a connection
//! of the application's pool. So a replica, or a primary that was deposed while its connections stayed open,
//! is never taken for the database.

#[cfg(feature = "_server")]
use std::collections::BTreeMap;

use session_core::{BoxError, PersistenceError};

/// The values that a server reported of itself and of the session, by name.
#[cfg(feature = "_server")]
#[derive(Default)]
pub(crate) struct Report(BTreeMap<String, String>);

#[cfg(feature = "_server")]
impl Report {
    /// Adds a value. Names are compared without regard to case.
    pub(crate) fn add(&mut self, name: &str, value: Option<&str>) {
        self.0.insert(name.to_ascii_lowercase(), value.unwrap_or_default().to_owned());
    }

    /// Returns the value of this name. Empty if the server has none.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Returns `true` if the value of this name is one for "on". A server without such a setting has it off.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        !matches!(&*self.get(name).to_ascii_lowercase(), "" | "0" | "off" | "f" | "false" | "no")
    }
}

/// The identity of a running server: two connections with the same one lead to the same process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerId {
    /// The server's own name, or anything else that no other server has.
    pub(crate) name: String,
    /// The time since 1970 at which the server started, in seconds.
    pub(crate) started_at: i64,
}

impl ServerId {
    /// Returns `true` if both are the same running server. A server counts the seconds since its start, so
    /// the difference to its clock may vary by one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.started_at.abs_diff(other.started_at) <= 1
    }
}

/// The session at the server's end of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    pub(crate) server: ServerId,
    /// The servers that take writes together, if there are several: their common identity.
    pub(crate) group: Option<ServerId>,
    /// The name by which the server can be asked to end this connection. Empty if it is not known.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file is no server"))]
    pub(crate) connection_id: String,
}

impl Session {
    /// Returns the identity of the database: another one has taken its place if this differs.
    pub(crate) fn primary(&self) -> &ServerId {
        self.group.as_ref().unwrap_or(&self.server)
    }
}

/// The reason why a connection cannot be used.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// It cannot be opened, or is broken.
    Driver(sqlx::Error),
    /// The server takes no writes, for this reason.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file is no server"))]
    NotPrimary(&'static str),
    /// The application returned no password to connect with.
    #[cfg(feature = "_server")]
    NoPassword(BoxError),
    /// A setting that is needed cannot be kept. The text says what to set.
    #[cfg(feature = "_server")]
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "only Postgres has such poolers"))]
    Config(String),
}

impl From<sqlx::Error> for Unfit {
    fn from(error: sqlx::Error) -> Self {
        Self::Driver(error)
    }
}

/// The error for a server that takes no writes.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server {0}, so it is not the primary, and was not used; connect to the primary, or wait until there is one"
)]
struct NotPrimary(&'static str);

/// The error for a password that could not be had.
#[cfg(feature = "_server")]
#[derive(Debug, thiserror::Error)]
#[error("there is no password to connect with: {0}")]
struct NoPassword(BoxError);

impl Unfit {
    /// Returns the reason of the two that says more: a server that answered rather than one that did not.
    #[cfg(feature = "_server")]
    pub(crate) fn or_worse(self, other: Option<Self>) -> Self {
        let rank = |unfit: &Self| match unfit {
            Self::Driver(sqlx::Error::Io(_)) => 0,
            Self::Driver(_) => 1,
            Self::NotPrimary(_) => 2,
            Self::NoPassword(_) | Self::Config(_) => 3,
        };
        other.into_iter().fold(self, |worse, unfit| if rank(&unfit) > rank(&worse) { unfit } else { worse })
    }

    /// Translates into the error of an operation for which no statement was sent. `connecting` translates a
    /// driver's error.
    pub(crate) fn into_error(
        self,
        connecting: impl FnOnce(&sqlx::Error) -> PersistenceError,
    ) -> PersistenceError {
        let source: BoxError = match self {
            Self::Driver(error) => return connecting(&error),
            Self::NotPrimary(reason) => Box::new(NotPrimary(reason)),
            #[cfg(feature = "_server")]
            Self::NoPassword(error) => Box::new(NoPassword(error)),
            #[cfg(feature = "_server")]
            Self::Config(text) => return PersistenceError::Config(text),
        };
        PersistenceError::Unavailable(source)
    }
}

#[cfg(all(test, feature = "_server"))]
mod tests {
    use super::*;

    #[test]
    fn server_that_restarted_or_was_replaced_is_another() {
        let id = |name: &str, started_at| ServerId { name: name.to_owned(), started_at };
        assert!(id("a", 100).is_same(&id("a", 101)));
        assert!(!id("a", 100).is_same(&id("a", 102)));
        assert!(!id("a", 100).is_same(&id("b", 100)));
    }

    #[test]
    fn setting_is_off_in_any_of_its_spellings() {
        let mut report = Report::default();
        for (name, value) in [("a", "OFF"), ("b", "0"), ("c", "false"), ("D", "on"), ("e", "NO_LOCK")] {
            report.add(name, Some(value));
        }
        report.add("f", None);
        assert!(["a", "b", "c", "f", "missing"].iter().all(|name| !report.is_on(name)));
        assert!(["d", "e"].iter().all(|name| report.is_on(name)));
    }
}
