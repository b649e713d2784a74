//! The connections to a database, as statements use them.

use session_core::PersistenceError;
use sqlx::Database;

#[cfg(feature = "_server")]
use crate::Finding;
use crate::sql::checkout::{Checkout, Work};
use crate::sql::connector::{Connection, Connector, Query};
use crate::sql::table::TableName;

/// The use that a store makes of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// The connections are the application's, with settings of its own.
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "only MySQL asks for it"))]
    pub(crate) is_application: bool,
    /// The number of connections that this store may open.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file is no server"))]
    pub(crate) max_connections: u32,
    /// The number of connections that this store, or the application's pool, has open.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file is no server"))]
    pub(crate) open: u32,
}

#[cfg(feature = "_server")]
impl Usage {
    /// Returns a warning if a node of this store may open more connections than a limit leaves it. `used` are open by now,
    /// among them those of this node. A negative limit is none.
    pub(crate) fn beyond(self, limit: i64, name: &str, used: i64) -> Option<Finding> {
        let (wanted, others) =
            (i64::from(self.max_connections), used.saturating_sub(self.open.into()).max(0));
        if limit < 0 || limit.saturating_sub(others) >= wanted {
            return None;
        }
        let others = if others == 0 { String::new() } else { format!(", and others have opened {others}") };
        Some(Finding::warning(format!(
            "{name} is {limit}{others}, but each node of this store may open {wanted} connections; raise it to the sum of all \
             nodes, or lower max_connections of the store"
        )))
    }
}

/// The connections to one database: our own, or those of the application's pool.
pub(crate) trait Connections: Send + Sync + 'static {
    type Database: Database;
    type Connector: Connector<Database = Self::Database>;

    /// Waits for a connection to read with.
    fn reader(&self) -> impl Future<Output = Result<Checkout<Self::Connector>, PersistenceError>> + Send;

    /// Waits for a connection to write with.
    fn writer(&self) -> impl Future<Output = Result<Checkout<Self::Connector>, PersistenceError>> + Send;

    /// Runs a statement that finds at most one row.
    fn read(
        &self,
        query: Query<Self::Database>,
        table: &TableName,
    ) -> impl Future<Output = Result<Option<<Self::Database as Database>::Row>, PersistenceError>> + Send;

    /// Runs a statement that finds several rows.
    fn read_all(
        &self,
        query: Query<Self::Database>,
        table: &TableName,
    ) -> impl Future<Output = Result<Vec<<Self::Database as Database>::Row>, PersistenceError>> + Send;

    /// Runs a statement that writes, and returns how many rows it matched.
    fn write(
        &self,
        query: Query<Self::Database>,
        table: &TableName,
    ) -> impl Future<Output = Result<u64, PersistenceError>> + Send;

    /// Runs a statement that writes and returns rows, as one transaction if `is_transaction`. `run` sends it, and what else
    /// belongs to it.
    fn write_all(
        &self,
        query: Query<Self::Database>,
        is_transaction: bool,
        run: impl for<'c> Fn(
            &'c mut Connection<Self::Connector>,
            Query<Self::Database>,
        ) -> Work<'c, Vec<<Self::Database as Database>::Row>, sqlx::Error>
        + Clone
        + Send
        + Sync
        + 'static,
        table: &TableName,
    ) -> impl Future<Output = Result<Vec<<Self::Database as Database>::Row>, PersistenceError>> + Send;

    /// Returns how this store uses its connections.
    fn usage(&self) -> Usage;

    /// Refuses connections whose settings differ from those of the builder.
    fn check(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Waits for the statements on our own connections, and closes these. Later calls get none.
    fn close(&self) -> impl Future<Output = ()> + Send;
}
