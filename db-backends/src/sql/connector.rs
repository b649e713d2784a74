//! Connections to one kind of database.

use sqlx::{Database, query};

use crate::sql::errors::DriverErrors;
use crate::sql::session_check::{Session, Unfit};

/// Opens the connections to one database, and closes those that cannot be used again.
pub(crate) trait Connector: Send + Sync + 'static {
    type Database: Database;

    const ERRORS: DriverErrors;

    /// `true` if the database is reached over a network. Then a connection may be dead without showing it,
    /// and one whose statement did not end in time is not used again. Otherwise the next caller waits for
    /// that statement.
    const IS_REMOTE: bool;

    /// Opens a connection, sets it up, and checks it as [`check`](Self::check) does.
    fn open(&self) -> impl Future<Output = Result<OpenConnection<Self>, Unfit>> + Send;

    /// Checks an open connection in one round trip: that it is alive, and that its server still takes writes.
    fn check(connection: &mut Connection<Self>) -> impl Future<Output = Result<(), Unfit>> + Send;

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
    pub(crate) session: Session,
}

pub(crate) type Arguments<C> = <<C as Connector>::Database as Database>::Arguments;

pub(crate) type Connection<C> = <<C as Connector>::Database as Database>::Connection;

pub(crate) type Query<B> = query::Query<'static, B, <B as Database>::Arguments>;
