//! Connections to one kind of database.

use session_core::PersistenceError;
use sqlx::database::HasStatementCache;
use sqlx::{Database, Pool, SqlStr, query};

use crate::sql::error::DriverErrors;
use crate::sql::session_check::{ServerId, Session, Unfit};

/// Opens the connections to one database, and closes those that cannot be used again.
pub(crate) trait Connector: Send + Sync + 'static {
    type Database: Database + HasStatementCache;

    const ERRORS: DriverErrors;

    /// `true` if the database is reached over a network. Then a connection may be dead without showing it,
    /// and one whose statement did not end in time is not used again. Otherwise the next caller waits for
    /// that statement.
    const IS_REMOTE: bool;

    /// Opens a connection, sets it up, and checks it as [`check`](Self::check) does.
    fn open(&self) -> impl Future<Output = Result<OpenConnection<Self>, Unfit>> + Send;

    /// Checks an open connection in one round trip: that it is alive, and that its server still takes writes. Of a
    /// connection to a pooler, it checks the server that the pooler has chosen. Returns the server, if the check has learnt
    /// which one it is.
    fn check(
        connection: &mut Connection<Self>,
        is_pooled: bool,
    ) -> impl Future<Output = Result<Option<ServerId>, Unfit>> + Send;

    /// Returns `true` if a pooler stands before the server, which may run each transaction on another connection
    /// of its own. Then every statement is a transaction that brings its settings.
    fn is_pooled(&self) -> bool {
        false
    }

    /// Returns the statement that begins a transaction to read in, where `begin` begins one to write in. It fails on a server
    /// that takes no writes: a pooler may have chosen another server than for the check before, and what is read there
    /// may be old.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file has no pooler before it"))]
    fn begin_reading(begin: &SqlStr) -> SqlStr {
        begin.clone()
    }

    /// Finds out whether a pooler stands between an application's pool and the server.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file is no server"))]
    fn pools_over_pooler(
        _pool: &Pool<Self::Database>,
    ) -> impl Future<Output = Result<bool, PersistenceError>> + Send {
        std::future::ready(Ok(false))
    }

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
