//! Connections to SQLite's file: one that writes, and those that read.
//!
//! SQLite has one writer at a time. Waiting for it here, in order, is faster and fairer than SQLite's own
//! way, which is to sleep and look again. And a caller that waits here keeps no connection from a reader.

use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteQueryResult, SqliteRow};
use sqlx::{ConnectOptions as _, Connection as _, Sqlite, SqliteConnection, SqlitePool, query, query_scalar};

use super::error::ERRORS;
use super::space;
use crate::sql::checkout::{Checkout, Work};
use crate::sql::connections::{Connections, Usage};
use crate::sql::connector::{Connector, OpenConnection, Query};
use crate::sql::error::DriverErrors;
use crate::sql::own_pool::OwnPool;
use crate::sql::queue::FairQueue;
use crate::sql::session_check::{ServerId, Session, Unfit};
use crate::sql::table::TableName;

/// The number of writes after which the log is begun anew: some 10 MiB.
const WRITES_IN_LOG: u32 = 1_000;

/// The file that a URL names, or memory.
pub(super) struct Target {
    pub(super) options: SqliteConnectOptions,
    pub(super) is_in_memory: bool,
    pub(super) is_read_only: bool,
}

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, PersistenceError> {
        let invalid = |what: &str| {
            PersistenceError::Config(format!("{what}; write sqlite://sessions.db or sqlite::memory:"))
        };
        let Some(rest) = url.strip_prefix("sqlite:") else {
            return Err(invalid("the URL does not begin with sqlite:"));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = path.strip_prefix("//").unwrap_or(path);
        let mode = query.split('&').find_map(|pair| pair.strip_prefix("mode="));
        let is_in_memory = path == ":memory:" || mode == Some("memory");
        // SQLite would take these for a temporary file, and for a URI with options that are not checked here.
        if (path.is_empty() && !is_in_memory) || path.starts_with("file:") {
            return Err(invalid("the URL names no file"));
        }
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|_| invalid("the URL has an unknown option, or an option with an invalid value"))?;
        Ok(Self {
            options: options.create_if_missing(matches!(mode, None | Some("rwc"))),
            is_in_memory,
            is_read_only: mode == Some("ro"),
        })
    }
}

/// Opens the file.
pub(crate) struct SqliteConnector(Arc<SqliteConnectOptions>);

impl Connector for SqliteConnector {
    type Database = Sqlite;
    const ERRORS: DriverErrors = ERRORS;
    const IS_REMOTE: bool = false;

    async fn open(&self) -> Result<OpenConnection<Self>, Unfit> {
        Ok(OpenConnection { connection: self.0.connect().await?, session: Session::default() })
    }

    /// Waits for the statements that were sent before. A file is read or written by its options, and an
    /// application may want to read only.
    async fn check(connection: &mut SqliteConnection, _: bool) -> Result<Option<ServerId>, Unfit> {
        connection.ping().await?;
        Ok(None)
    }

    fn rows_affected(done: &SqliteQueryResult) -> u64 {
        done.rows_affected()
    }
}

/// The connections to a database.
pub(crate) enum SqliteConnections {
    Own {
        writer: OwnPool<SqliteConnector>,
        /// `None` if the writer's connection is the only one.
        readers: Option<OwnPool<SqliteConnector>>,
        /// The number of writes since the log was begun anew.
        logged: AtomicU32,
    },
    /// The application's pool, the queue of those that want to write with one of its connections, and the
    /// longest that these wait for locks, as set in the builder.
    Application { pool: SqlitePool, writers: FairQueue, busy_timeout: Duration },
}

impl SqliteConnections {
    /// Makes connections of our own: one to write with, and `readers` to read with.
    pub(super) fn own(options: SqliteConnectOptions, readers: u16, acquire_timeout: Duration) -> Self {
        let options = Arc::new(options);
        let pool = |count| OwnPool::new(SqliteConnector(Arc::clone(&options)), count, acquire_timeout);
        Self::Own {
            writer: pool(1),
            readers: (readers > 0).then(|| pool(readers)),
            logged: AtomicU32::new(0),
        }
    }

    /// Begins the write-ahead log anew after many writes. SQLite does so only at a moment when nothing is read, which
    /// never comes where some request always reads: the log would grow for ever.
    async fn bound_log(&self, writes: u32) {
        let Self::Own { writer, readers: Some(_), logged } = self else { return };
        if logged.fetch_add(writes, Ordering::Relaxed).saturating_add(writes) < WRITES_IN_LOG {
            return;
        }
        let Ok(writer) = writer.checkout().await else { return };
        let begun =
            Checkout::Own(writer).perform(|connection| Box::pin(space::restart_log(connection))).await;
        // The write is committed, whatever becomes of the log.
        logged.store(if begun.unwrap_or(false) { 0 } else { WRITES_IN_LOG / 2 }, Ordering::Relaxed);
    }

    /// Uses the application's pool.
    pub(super) fn of_pool(pool: SqlitePool, acquire_timeout: Duration, busy_timeout: Duration) -> Self {
        Self::Application { pool, writers: FairQueue::new(1, acquire_timeout), busy_timeout }
    }
}

impl Connections for SqliteConnections {
    type Database = Sqlite;
    type Connector = SqliteConnector;

    async fn reader(&self) -> Result<Checkout<SqliteConnector>, PersistenceError> {
        match self {
            Self::Own { writer, readers, .. } => {
                readers.as_ref().unwrap_or(writer).checkout().await.map(Checkout::Own)
            }
            Self::Application { pool, .. } => Checkout::from_pool(pool, None, None, None).await,
        }
    }

    /// Waits for the right to write, which one caller in this process has at a time.
    async fn writer(&self) -> Result<Checkout<SqliteConnector>, PersistenceError> {
        match self {
            Self::Own { writer, .. } => writer.checkout().await.map(Checkout::Own),
            Self::Application { pool, writers, .. } => {
                let permit = writers.admit().await?;
                Checkout::from_pool(pool, None, Some(permit), None).await
            }
        }
    }

    async fn read(
        &self,
        query: Query<Sqlite>,
        table: &TableName,
    ) -> Result<Option<SqliteRow>, PersistenceError> {
        self.reader().await?.read(query, table).await
    }

    async fn read_all(
        &self,
        query: Query<Sqlite>,
        table: &TableName,
    ) -> Result<Vec<SqliteRow>, PersistenceError> {
        self.reader().await?.read_all(query, table).await
    }

    async fn write(&self, query: Query<Sqlite>, table: &TableName) -> Result<u64, PersistenceError> {
        let written = self.writer().await?.write(query, table).await;
        self.bound_log(1).await;
        written
    }

    async fn write_all(
        &self,
        query: Query<Sqlite>,
        _: bool,
        run: impl for<'c> Fn(&'c mut SqliteConnection, Query<Sqlite>) -> Work<'c, Vec<SqliteRow>, sqlx::Error>
        + Clone
        + Send
        + Sync
        + 'static,
        table: &TableName,
    ) -> Result<Vec<SqliteRow>, PersistenceError> {
        let done = self.writer().await?.perform(move |connection| run(connection, query)).await;
        // A batch of the reaper.
        self.bound_log(WRITES_IN_LOG / 4).await;
        done.map_err(|error| ERRORS.writing(&error, table))
    }

    /// Refuses an application's pool whose connections have a database of their own each, and one that waits longer for locks than is set in the builder: an abandoned
    /// statement would outlive its bound.
    async fn check(&self) -> Result<(), PersistenceError> {
        let Self::Application { pool, busy_timeout, .. } = self else { return Ok(()) };
        check_memory(pool).await?;
        let millis = query_scalar::<_, i64>("PRAGMA busy_timeout");
        let millis = self
            .reader()
            .await?
            .perform(move |connection| Box::pin(async move { millis.fetch_one(connection).await }))
            .await;
        let found = Duration::from_millis(millis.map_err(|error| ERRORS.connecting(&error))?.unsigned_abs());
        if found <= *busy_timeout {
            return Ok(());
        }
        Err(PersistenceError::Config(format!(
            "the pool's connections have a busy_timeout of {found:?}, longer than the {busy_timeout:?} that \
             the builder allows for; pass the pool's busy_timeout to SqliteBuilder::busy_timeout"
        )))
    }

    fn usage(&self) -> Usage {
        match self {
            Self::Own { .. } => Usage { is_application: false, max_connections: 1, open: 1 },
            Self::Application { pool, .. } => {
                let max_connections = pool.options().get_max_connections();
                Usage { is_application: true, max_connections, open: pool.size() }
            }
        }
    }

    async fn close(&self) {
        if let Self::Own { writer, readers, .. } = self {
            // The writer last: closing the last connection merges the log into the file.
            for pool in readers.iter().chain([writer]) {
                pool.close().await;
            }
        }
    }
}

/// Refuses a pool of several connections to memory, each of which has a database of its own.
async fn check_memory(pool: &SqlitePool) -> Result<(), PersistenceError> {
    let count = pool.options().get_max_connections();
    let failed = |error: sqlx::Error| ERRORS.connecting(&error);
    let mut first = pool.acquire().await.map_err(failed)?;
    let file = "SELECT coalesce(file, '') FROM pragma_database_list WHERE name = 'main'";
    let file: String = query_scalar(file).fetch_one(&mut *first).await.map_err(failed)?;
    if !file.is_empty() || count == 1 {
        return Ok(());
    }
    // A table that one makes, the other must see.
    let mut second = pool.acquire().await.map_err(failed)?;
    query("CREATE TABLE IF NOT EXISTS sessions_pool_probe (x)").execute(&mut *first).await.map_err(failed)?;
    let seen = "SELECT count(*) FROM sqlite_master WHERE name = 'sessions_pool_probe'";
    let seen = query_scalar::<_, i64>(seen).fetch_one(&mut *second).await;
    query("DROP TABLE sessions_pool_probe").execute(&mut *first).await.map_err(failed)?;
    if seen.map_err(failed)? > 0 {
        return Ok(());
    }
    Err(PersistenceError::Config(format!(
        "the pool has {count} connections to memory, and each has a database of its own; make it a pool of one \
         connection that never closes, or turn on shared_cache"
    )))
}
