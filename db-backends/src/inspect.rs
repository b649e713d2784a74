use async_trait::async_trait;
use session_core::{DynDatabase, PersistenceError, Timestamp};

/// What an operator asks a database, beside what a store has it do.
#[async_trait]
pub trait Inspect: DynDatabase {
    /// How the database is.
    ///
    /// # Errors
    ///
    /// As [`load`](session_core::Persistence::load).
    async fn inspect(&self) -> Result<Inspection, PersistenceError>;

    /// How many sessions expired at `before` or earlier. Goes by the index on the expiry, but past all of them.
    ///
    /// # Errors
    ///
    /// As [`load`](session_core::Persistence::load).
    async fn count_expired(&self, before: Timestamp) -> Result<u64, PersistenceError>;
}

/// How a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The version, as it says it itself.
    pub version: String,
    /// Its clock; `None` when that is the clock of this machine.
    pub clock: Option<Timestamp>,
    /// Whether it takes no writes: a replica, for instance. Known of servers only.
    pub is_read_only: bool,
    /// The columns of the session table that sessions are looked for by, and that no index begins with.
    pub missing_indexes: Vec<&'static str>,
}

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
impl Inspection {
    /// With an index that begins with each of these columns.
    pub(crate) fn new(
        version: String,
        clock: Option<Timestamp>,
        is_read_only: bool,
        indexed: &[String],
    ) -> Self {
        let is_missing = |column: &&str| !indexed.iter().any(|indexed| indexed == column);
        let missing_indexes = ["key", "expires_at", "subject"].into_iter().filter(is_missing).collect();
        Self { version, clock, is_read_only, missing_indexes }
    }
}
