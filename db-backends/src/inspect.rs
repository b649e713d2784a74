use async_trait::async_trait;
use session_core::{DynDatabase, PersistenceError, Timestamp};

/// A database that an operator can ask more than a store has to.
///
/// The databases that have a URL implement it: see [`connect_to_inspect`](crate::connect_to_inspect).
#[async_trait]
pub trait Inspect: DynDatabase {
    /// Returns the database's state.
    ///
    /// # Errors
    ///
    /// The errors of [`load`](session_core::Persistence::load).
    async fn inspect(&self) -> Result<Inspection, PersistenceError>;

    /// Counts the sessions that expired at `before` or earlier. Uses the index on the expiry, but passes over
    /// all of them.
    ///
    /// # Errors
    ///
    /// The errors of [`load`](session_core::Persistence::load).
    async fn count_expired(&self, before: Timestamp) -> Result<u64, PersistenceError>;
}

/// The state of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The version, in the database's own words.
    pub version: String,
    /// The database's clock. `None` when that is the clock of this machine.
    pub clock: Option<Timestamp>,
    /// `true` if the database takes no writes, for instance because it is a replica. Only servers report
    /// this.
    pub is_read_only: bool,
    /// The settings that are wrong, or may be.
    pub findings: Vec<Finding>,
    /// The columns of the session table that sessions are looked for by, and that no index begins with.
    pub missing_indexes: Vec<&'static str>,
}

/// A setting of a database, of a session or of an existing pool that is wrong, or may be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The weight of it.
    pub severity: FindingSeverity,
    /// The setting, its effect, and the remedy.
    pub text: String,
}

/// The weight of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FindingSeverity {
    /// Harmless as long as nothing else goes wrong.
    Note,
    /// Less is promised than with another value. A store logs it when it is built.
    Warning,
    /// The contract cannot be kept. A store is not built.
    Problem,
}

#[cfg(feature = "_sqlx")]
impl Finding {
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "SQLite has none"))]
    pub(crate) fn note(text: impl Into<String>) -> Self {
        Self { severity: FindingSeverity::Note, text: text.into() }
    }

    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "SQLite has none"))]
    pub(crate) fn warning(text: impl Into<String>) -> Self {
        Self { severity: FindingSeverity::Warning, text: text.into() }
    }

    #[cfg_attr(
        not(any(feature = "mysql", feature = "sqlite")),
        expect(dead_code, reason = "Postgres has none")
    )]
    pub(crate) fn problem(text: impl Into<String>) -> Self {
        Self { severity: FindingSeverity::Problem, text: text.into() }
    }
}
