use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, SqlSafeStr as _};

use super::{DIALECT, PostgresLink, PostgresPersistence, statements};
use crate::sql::attended::GRACE;
use crate::sql::remote::Remote;
use crate::sql::table::TableName;

/// How a [`PostgresPersistence`] is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct PostgresBuilder {
    table: Option<String>,
    statement_timeout: Duration,
    lock_timeout: Duration,
    acquire_timeout: Duration,
    max_connections: u16,
}

impl PostgresBuilder {
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
    /// Default `sessions`. It is looked for in the schemas of the connection's `search_path`, and made in the first.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = Some(name.into());
        self
    }

    /// How long a statement may take before the server ends it, and it fails with [`PersistenceError::Busy`].
    /// Default 5 s. Also for one whose caller has gone.
    pub const fn statement_timeout(mut self, statement_timeout: Duration) -> Self {
        self.statement_timeout = statement_timeout;
        self
    }

    /// How long a statement waits for somebody else's lock before it fails with [`PersistenceError::Busy`]. Default 3 s.
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

    /// Connects to the database of `url`: `postgres://user:password@host:5432/database`. The server must answer; more
    /// connections are made when they are needed.
    ///
    /// `?sslmode=require`, `verify-ca` or `verify-full` need the feature `postgres-tls`; `?options=-c%20search_path=app`
    /// chooses a schema.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] for a bad URL or table name; [`PersistenceError::Unavailable`] when the server does
    /// not answer, or does not let this user in.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a connection that is still opened by a task, and then closed.
    pub async fn connect(self, url: &str) -> Result<PostgresPersistence, PersistenceError> {
        let table = TableName::parse_or_default(self.table.as_deref())?;
        if !["postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(PersistenceError::Config("the URL does not begin with postgres:".to_owned()));
        }
        let options = PgConnectOptions::from_str(url).map_err(|error| DIALECT.parsing(&error))?.options([
            ("statement_timeout", millis(self.statement_timeout)),
            ("lock_timeout", millis(self.lock_timeout)),
            // Otherwise one of two writes of a session at the same time would be an error.
            ("default_transaction_isolation", "read committed".to_owned()),
        ]);
        let database = options.get_database().map(str::to_owned);
        let connections =
            Remote::own(PostgresLink(Arc::new(options)), self.max_connections.max(1), self.acquire_timeout);
        connections.lease().await?.release();
        Ok(self.finish(connections, table).in_database(database.as_deref()))
    }

    /// Over a pool that the application has. Its connections are used as they are. Every write is a transaction of its
    /// own, which takes two more round trips, with the timeouts of this builder.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] for a bad table name.
    pub fn on_pool(self, pool: PgPool) -> Result<PostgresPersistence, PersistenceError> {
        let table = TableName::parse_or_default(self.table.as_deref())?;
        Ok(self.on_pool_with(pool, table))
    }

    pub(super) fn on_pool_with(&self, pool: PgPool, table: TableName) -> PostgresPersistence {
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}",
            millis(self.statement_timeout),
            millis(self.lock_timeout)
        );
        // Safe, because these are numbers.
        let options = pool.connect_options();
        self.finish(Remote::Pool { pool, begin: AssertSqlSafe(begin).into_sql_str() }, table)
            .in_database(options.get_database())
    }

    fn finish(&self, connections: Remote<PostgresLink>, table: TableName) -> PostgresPersistence {
        let sql = statements(&table);
        // The statement may be sent when its grace is nearly over. The commit takes some time of its own.
        let bound = GRACE + self.statement_timeout + Duration::from_secs(5);
        PostgresPersistence::new(connections, table, sql, bound)
    }
}

/// As the server takes it, where zero would mean "for ever".
fn millis(timeout: Duration) -> String {
    timeout.as_millis().clamp(1, i32::MAX as u128).to_string()
}
