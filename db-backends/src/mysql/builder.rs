use std::str::FromStr as _;
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::mysql::MySqlConnectOptions;
use sqlx::{MySqlPool, SqlStr};

use super::connection::MySqlLink;
use super::{DIALECT, MySqlPersistence, statements};
use crate::sql::attended::GRACE;
use crate::sql::remote::Remote;
use crate::sql::table::TableName;

/// How a [`MySqlPersistence`] is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct MySqlBuilder {
    table: Option<String>,
    statement_timeout: Duration,
    lock_timeout: Duration,
    acquire_timeout: Duration,
    max_connections: u16,
}

impl MySqlBuilder {
    pub(super) const fn new() -> Self {
        Self {
            table: None,
            statement_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(3),
            acquire_timeout: Duration::from_secs(5),
            max_connections: 10,
        }
    }

    /// The name of the session table: 1 to 48 characters of `[A-Za-z0-9_]`, not beginning with a digit or `sqlite_`.
    /// Default `sessions`.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = Some(name.into());
        self
    }

    /// How long a statement may take before MariaDB ends it, and it fails with [`PersistenceError::Busy`]. Default 5 s.
    /// Also for one whose caller has gone. MySQL has no such thing.
    pub const fn statement_timeout(mut self, statement_timeout: Duration) -> Self {
        self.statement_timeout = statement_timeout;
        self
    }

    /// How long a statement waits for somebody else's lock before it fails with [`PersistenceError::Busy`]. Default 3 s,
    /// whole seconds. A pool of the application's has its own.
    pub const fn lock_timeout(mut self, lock_timeout: Duration) -> Self {
        self.lock_timeout = lock_timeout;
        self
    }

    /// How long a call waits for a connection: for its turn, and for the server's answer. Default 5 s each. A pool of the
    /// application's has its own.
    pub const fn acquire_timeout(mut self, acquire_timeout: Duration) -> Self {
        self.acquire_timeout = acquire_timeout;
        self
    }

    /// The most connections. Default 10, at least 1. A pool of the application's has its own number.
    pub const fn max_connections(mut self, max_connections: u16) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Connects to the database of `url`: `mysql://user:password@host:3306/database`. The server must answer; more
    /// connections are made when they are needed.
    ///
    /// `?ssl-mode=required`, `verify_ca` or `verify_identity` need the feature `mysql-tls`, and so does a password that
    /// MySQL's default `caching_sha2_password` checks; on a network that is trusted, `mysql-rsa` does for that.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] for a bad URL or table name; [`PersistenceError::Unavailable`] when the server does
    /// not answer, or does not let this user in.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a connection that is still opened by a task, and then closed.
    pub async fn connect(self, url: &str) -> Result<MySqlPersistence, PersistenceError> {
        let table = TableName::parse_or_default(self.table.as_deref())?;
        let options = ["mysql:", "mariadb:"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let Some(rest) = options else {
            return Err(PersistenceError::Config("the URL does not begin with mysql:".to_owned()));
        };
        let options = MySqlConnectOptions::from_str(&format!("mysql:{rest}"));
        let options = options.map_err(|error| DIALECT.parsing(&error))?;
        if options.get_database().is_none() {
            return Err(PersistenceError::Config("the URL names no database".to_owned()));
        }
        let database = options.get_database().map(str::to_owned);
        let link = MySqlLink::new(options, self.statement_timeout, self.lock_timeout, self.acquire_timeout);
        let connections = Remote::own(link, self.max_connections.max(1), self.acquire_timeout);
        connections.lease().await?.release();
        Ok(self.finish(connections, table).in_database(database.as_deref()))
    }

    /// Over a pool that the application has. Its connections are used as they are. Every write is a transaction of its
    /// own, which takes two more round trips.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] for a bad table name.
    pub fn on_pool(self, pool: MySqlPool) -> Result<MySqlPersistence, PersistenceError> {
        let table = TableName::parse_or_default(self.table.as_deref())?;
        Ok(self.on_pool_with(pool, table))
    }

    pub(super) fn on_pool_with(&self, pool: MySqlPool, table: TableName) -> MySqlPersistence {
        // Before a transaction, this is for that one only.
        let begin = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
        let options = pool.connect_options();
        self.finish(Remote::Pool { pool, begin: SqlStr::from_static(begin) }, table)
            .in_database(options.get_database())
    }

    fn finish(&self, connections: Remote<MySqlLink>, table: TableName) -> MySqlPersistence {
        let sql = statements(&table);
        // The statement may be sent when its grace is nearly over. Killing takes a connection, and the commit some time
        // of its own.
        let bound = GRACE + self.statement_timeout.max(self.lock_timeout) + Duration::from_secs(5);
        MySqlPersistence::new(connections, table, sql, bound)
    }
}
