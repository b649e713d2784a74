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
    /// The columns of the session table that sessions are looked for by, and that no index begins with.
    pub missing_indexes: Vec<&'static str>,
}
