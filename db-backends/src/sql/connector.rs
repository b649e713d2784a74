//! Connections to one kind of database.

use sqlx::{Database, query};

use crate::sql::errors::DriverErrors;

/// Opens the connections to one database, and closes those that cannot be used again.
pub(crate) trait Connector: Send + Sync + 'static {
    type Database: Database;

    const ERRORS: DriverErrors;

    /// `true` if the database is reached over a network. Then a connection may be dead without showing it,
    /// and one whose statement did not end in time is not used again. Otherwise the next caller waits for
    /// that statement.
    const IS_REMOTE: bool;

    /// Opens a connection.
    fn open(&self) -> impl Future<Output = sqlx::Result<OpenConnection<Self>>> + Send;

    /// Returns how many rows a statement matched.
    fn rows_affected(done: &<Self::Database as Database>::QueryResult) -> u64;

    /// Takes a remote connection whose statement did not end in time, or broke off.
    fn abandon(&self, connection: OpenConnection<Self>) {
        drop(connection);
    }
}

/// An open connection.
pub(crate) struct OpenConnection<C: Connector + ?Sized> {
    pub(crate) connection: Connection<C>,
    /// The number by which the server can be asked to end this connection's statement, if
    /// [`abandon`](Connector::abandon) needs it; otherwise 0.
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "only MySQL needs it"))]
    pub(crate) server_id: u64,
}

pub(crate) type Arguments<C> = <<C as Connector>::Database as Database>::Arguments;

pub(crate) type Connection<C> = <<C as Connector>::Database as Database>::Connection;

pub(crate) type Query<B> = query::Query<'static, B, <B as Database>::Arguments>;
