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

    /// Rewrites a SQLite file without its empty pages, so that it gives back space bit by bit from then on, as a
    /// file that this crate has made does. No other connection can write meanwhile, and the disk needs room for
    /// a copy. Returns `false`, and does nothing, for a server, which reuses its space by itself.
    ///
    /// # Errors
    ///
    /// The errors of [`migrate`](session_core::Persistence::migrate), and
    /// [`PersistenceError::Busy`] if another connection uses the file.
    async fn vacuum(&self) -> Result<bool, PersistenceError>;
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
    /// The condition of the session table after use: how many updates touch no index, what is dead, what is
    /// empty, and the remedy where that is too much. Empty if there is no table.
    pub condition: Vec<Finding>,
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
    pub(crate) fn note(text: impl Into<String>) -> Self {
        Self { severity: FindingSeverity::Note, text: text.into() }
    }

    /// Makes a warning if something `is_too_much`, and a note otherwise.
    pub(crate) fn noted_or_warned(is_too_much: bool, text: String, remedy: &str) -> Self {
        if is_too_much { Self::warning(format!("{text}; {remedy}")) } else { Self::note(text) }
    }

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

/// Returns the share of `part` in `whole`, in percent.
#[cfg(feature = "_sqlx")]
pub(crate) fn percent(part: i64, whole: i64) -> i64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or_default()
}

/// Returns a number of bytes in MiB, as text.
#[cfg(feature = "_sqlx")]
pub(crate) fn mebibytes(bytes: i64) -> String {
    format!("{} MiB", bytes >> 20)
}
