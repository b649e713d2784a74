use std::str::FromStr;
use std::time::{Duration, Instant};

use session_core::PersistenceError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};
use sqlx::{SqlitePool, query_scalar};

use super::connections::Connections;
use super::{DIALECT, SqlitePersistence, statements};
use crate::sql::table::TableName;

/// How a [`SqlitePersistence`] is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct SqliteBuilder {
    table: Option<String>,
    busy_timeout: Duration,
    acquire_timeout: Duration,
    readers: u16,
}

impl SqliteBuilder {
    pub(super) const fn new() -> Self {
        Self {
            table: None,
            busy_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(5),
            readers: 4,
        }
    }

    /// The name of the session table: 1 to 48 characters of `[A-Za-z0-9_]`, not beginning with a digit or `sqlite_`.
    /// Default `sessions`. What belongs to it has names that begin with its own.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = Some(name.into());
        self
    }

    /// How long a statement waits for the lock of another connection or process, before it fails with
    /// [`PersistenceError::Busy`]. Default 5 s.
    ///
    /// It also bounds how long an abandoned statement may take to commit, so a pool of the application's must have no
    /// longer one: then say here what that pool has, if it is not 5 s, which is sqlx's default.
    pub const fn busy_timeout(mut self, busy_timeout: Duration) -> Self {
        self.busy_timeout = busy_timeout;
        self
    }

    /// How long a call waits for its turn before it fails with [`PersistenceError::Busy`]. Default 5 s. For connections,
    /// a pool of the application's has its own.
    pub const fn acquire_timeout(mut self, acquire_timeout: Duration) -> Self {
        self.acquire_timeout = acquire_timeout;
        self
    }

    /// The most connections to read with, beside the one that writes; each has a thread of its own. Default 4. With 0,
    /// and in memory, one connection does both. A pool of the application's has its own number.
    pub const fn readers(mut self, readers: u16) -> Self {
        self.readers = readers;
        self
    }

    /// Opens the database of `url`, and makes the file if there is none: `sqlite://sessions.db`,
    /// `sqlite:///var/lib/app/sessions.db`, or `sqlite::memory:`. With `?mode=rw` the file must be there, with
    /// `?mode=ro` nothing is ever written.
    ///
    /// The file is put into write-ahead mode. `synchronous` is `NORMAL`: what was acknowledged outlives the process, but
    /// the last writes before a power failure may be lost, with the file whole. Who wants `FULL` makes the pool.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] for a bad URL or table name; [`PersistenceError::Unavailable`] when the file cannot
    /// be opened; [`PersistenceError::Refused`] when it is no database or cannot be written;
    /// [`PersistenceError::Busy`] when another process keeps it locked.
    ///
    /// # Cancel safety
    ///
    /// A file may be there already when this future is dropped. Calling again is right.
    pub async fn connect(self, url: &str) -> Result<SqlitePersistence, PersistenceError> {
        let table = TableName::parse_or_default(self.table.as_deref())?;
        let Target { options, is_in_memory, is_read_only } = Target::parse(url)?;
        let options = options
            .busy_timeout(self.busy_timeout)
            .synchronous(SqliteSynchronous::Normal)
            .thread_name(|n| format!("sessions-sqlite-{n}"));
        let options = if is_in_memory { options.shared_cache(false) } else { options };

        // Its directory may be another one on each machine, or be given in another way.
        let file = options.get_filename().file_name().map(|name| name.to_string_lossy().into_owned());
        // Every connection to a database in memory has a database of its own, which ends with it.
        let readers = if is_in_memory { 0 } else { self.readers };
        let connections = Connections::own(options, readers, self.acquire_timeout);
        if !is_in_memory && !is_read_only {
            self.enter_wal_mode(&connections).await?;
        }
        Ok(self.finish(connections, table).in_database(file.as_deref()))
    }

    /// Over a pool that the application has. Its connections are used as they are: no pragma is set.
    ///
    /// A database in memory needs a pool of one connection that never closes, or a shared cache.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] for a bad table name.
    pub fn on_pool(self, pool: SqlitePool) -> Result<SqlitePersistence, PersistenceError> {
        let table = TableName::parse_or_default(self.table.as_deref())?;
        Ok(self.on_pool_with(pool, table))
    }

    pub(super) fn on_pool_with(&self, pool: SqlitePool, table: TableName) -> SqlitePersistence {
        self.finish(Connections::of_pool(pool, self.acquire_timeout, self.busy_timeout), table)
    }

    fn finish(&self, connections: Connections, table: TableName) -> SqlitePersistence {
        let sql = statements(&table);
        // Beside the waiting, a statement takes some time of its own.
        SqlitePersistence::new(connections, table, sql, self.busy_timeout + Duration::from_secs(5))
    }

    /// Puts the file into write-ahead mode, which it then keeps: readers and the writer do not wait for each other.
    /// SQLite does not wait for the lock that the change itself takes, so processes that start at once have to try again.
    async fn enter_wal_mode(&self, connections: &Connections) -> Result<(), PersistenceError> {
        let deadline = Instant::now() + self.busy_timeout;
        loop {
            let enter = query_scalar::<_, String>("PRAGMA journal_mode = WAL");
            let entered = connections
                .writer()
                .await?
                .perform(move |connection| Box::pin(async move { enter.fetch_one(connection).await }))
                .await;
            match entered.map_err(|error| DIALECT.connecting(&error)) {
                Ok(mode) => return check_mode(&mode),
                Err(PersistenceError::Busy(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn check_mode(mode: &str) -> Result<(), PersistenceError> {
    if mode == "wal" {
        return Ok(());
    }
    Err(PersistenceError::Config(format!(
        "SQLite's write-ahead log is not possible on this file system, the journal mode stays {mode}; \
         put the file on a local disk, or make the pool yourself"
    )))
}

/// What a URL names.
struct Target {
    options: SqliteConnectOptions,
    is_in_memory: bool,
    is_read_only: bool,
}

impl Target {
    fn parse(url: &str) -> Result<Self, PersistenceError> {
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
        // SQLite would take these for a temporary file, and for a URI with options that nobody here sees.
        if (path.is_empty() && !is_in_memory) || path.starts_with("file:") {
            return Err(invalid("the URL names no file"));
        }
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|_| invalid("the URL has an option that is not understood"))?;
        Ok(Self {
            options: options.create_if_missing(matches!(mode, None | Some("rwc"))),
            is_in_memory,
            is_read_only: mode == Some("ro"),
        })
    }
}
