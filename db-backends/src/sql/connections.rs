//! The connections to a database, as statements use them.

use session_core::PersistenceError;
use sqlx::Database;

use crate::sql::checkout::Checkout;
use crate::sql::connector::{Connector, Query};
use crate::sql::table::TableName;

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

    /// Refuses connections whose settings differ from those of the builder.
    fn check(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Waits for the statements on our own connections, and closes these. Later calls get none.
    fn close(&self) -> impl Future<Output = ()> + Send;
}
