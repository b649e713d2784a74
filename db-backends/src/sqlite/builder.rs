//! The settings of a SQLite database, and how it is opened with them.

use std::time::{Duration, Instant};

use session_core::PersistenceError;
use sqlx::sqlite::SqliteSynchronous;
use sqlx::{Sqlite, SqlitePool, query_scalar};

use super::connect::{SqliteConnections, Target};
use super::error::ERRORS;
use super::space;
use crate::sql::connections::Connections as _;
use crate::sql::persistence::SqlPersistence;
use crate::sql::table::TableName;
use crate::url;

impl SqlPersistence<Sqlite> {
    /// Opens the database of `url` with the defaults, and creates the file if there is none. See
    /// [`SqliteBuilder::connect`].
    ///
    /// ```
    /// # use db_backends::sqlite::SqlitePersistence;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use session_core::Persistence as _;
    ///
    /// let db = SqlitePersistence::connect("sqlite::memory:").await?;
    /// db.migrate().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`SqliteBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// The same as [`SqliteBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, PersistenceError> {
        Self::builder().connect(url).await
    }

    /// Returns a builder, for another table name, other timeouts, another number of connections, or an
    /// existing pool.
    pub const fn builder() -> SqliteBuilder {
        SqliteBuilder::new()
    }

    /// Uses an existing pool, and the table `sessions`. See [`SqliteBuilder::on_pool`], which takes another
    /// name.
    #[must_use]
    pub fn from_pool(pool: SqlitePool) -> Self {
        SqliteBuilder::new().on_pool_with(pool, TableName::default())
    }
}

/// A builder for a [`SqlitePersistence`](super::SqlitePersistence).
#[derive(Clone, Debug)]
#[must_use]
pub struct SqliteBuilder {
    table: Option<String>,
    busy_timeout: Duration,
    acquire_timeout: Duration,
    readers: u16,
}

impl SqliteBuilder {
    const fn new() -> Self {
        Self {
            table: None,
            busy_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(5),
            readers: 4,
        }
    }

    /// Sets the name of the session table: 1 to 48 characters of `[A-Za-z0-9_]`, not beginning with a digit
    /// or `sqlite_`. Defaults to `sessions`. The names of its indexes and of its schema table begin with this
    /// name.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = Some(name.into());
        self
    }

    /// Sets how long a statement waits for the lock of another connection or process, before it fails with
    /// [`PersistenceError::Busy`]. Defaults to 5 s.
    ///
    /// It also bounds how long an abandoned statement may take to commit, so the connections of an existing
    /// pool must not wait longer. If that pool's timeout is not 5 s, which is sqlx's default, set the same
    /// one here.
    pub const fn busy_timeout(mut self, busy_timeout: Duration) -> Self {
        self.busy_timeout = busy_timeout;
        self
    }

    /// Sets how long a call waits for its turn before it fails with [`PersistenceError::Busy`]. Defaults to 5
    /// s. An existing pool has a timeout of its own for connections.
    pub const fn acquire_timeout(mut self, acquire_timeout: Duration) -> Self {
        self.acquire_timeout = acquire_timeout;
        self
    }

    /// Sets the maximum number of connections to read with, beside the one that writes. Each has a thread of
    /// its own. Defaults to 4. With 0, and in memory, one connection does both. An existing pool has a number
    /// of its own.
    pub const fn readers(mut self, readers: u16) -> Self {
        self.readers = readers;
        self
    }

    /// Opens the database of `url`, and creates the file if there is none: `sqlite://sessions.db`,
    /// `sqlite:///var/lib/app/sessions.db`, or `sqlite::memory:`. With `?mode=rw` the file must exist; with
    /// `?mode=ro` nothing is ever written.
    ///
    /// A new file gives back space bit by bit, after sessions were reaped (`auto_vacuum = INCREMENTAL`); `sessionctl
    /// vacuum` makes an older file do so.
    ///
    /// The file is put into write-ahead mode. `synchronous` is `NORMAL`: an acknowledged write outlives the
    /// process, but the last writes before a power failure may be lost, with the file whole. To have `FULL`,
    /// make the pool.
    ///
    /// # Errors
    ///
    /// - [`PersistenceError::Config`] if the URL or the table name is bad.
    /// - [`PersistenceError::Unavailable`] if the file cannot be opened.
    /// - [`PersistenceError::Refused`] if the file is no database or cannot be written.
    /// - [`PersistenceError::Busy`] if another process keeps it locked.
    ///
    /// # Cancel safety
    ///
    /// When this future is dropped, the file may have been created. It is safe to call again.
    pub async fn connect(self, url: &str) -> Result<SqlPersistence<Sqlite>, PersistenceError> {
        let table = TableName::parse_or_default(self.table.as_deref())?;
        let Target { options, is_in_memory, is_read_only } = Target::parse(url)?;
        let options = options
            // The driver panics over a longer one: SQLite takes the number of milliseconds in 31 bits.
            .busy_timeout(self.busy_timeout.min(Duration::from_millis(i32::MAX.unsigned_abs().into())))
            .synchronous(SqliteSynchronous::Normal)
            .thread_name(|n| format!("sessions-sqlite-{n}"));
        let options = if is_in_memory { options.shared_cache(false) } else { options };

        // The name alone: the directory may differ between machines, or be written in another way.
        let file = options.get_filename().file_name().map(|name| name.to_string_lossy().into_owned());
        // Every connection to a database in memory has a database of its own, which ends with it.
        let readers = if is_in_memory { 0 } else { self.readers };
        let connections = SqliteConnections::own(options, readers, self.acquire_timeout);
        if !is_in_memory && !is_read_only {
            self.enter_wal_mode(&connections).await?;
        }
        Ok(self.finish(connections, table).in_database(file.as_deref()))
    }

    /// Opens the database of `url`, with the settings that its parameters name.
    pub(crate) async fn connect_by_url(url: &str) -> Result<SqlPersistence<Sqlite>, PersistenceError> {
        let mut builder = Self::new();
        let url = url::take_parameters(url, DRIVER_PARAMETERS, |name, value| {
            match name {
                "table" => builder.table = Some(value.to_owned()),
                "readers" => builder.readers = url::number(name, value)?,
                "busy_timeout_ms" => builder.busy_timeout = url::millis(name, value)?,
                "acquire_timeout_ms" => builder.acquire_timeout = url::millis(name, value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        builder.connect(&url).await
    }

    /// Uses an existing pool. Its connections are used as they are: no pragma is set.
    ///
    /// A database in memory needs a pool of one connection that never closes, or a shared cache.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] if the table name is bad.
    pub fn on_pool(self, pool: SqlitePool) -> Result<SqlPersistence<Sqlite>, PersistenceError> {
        let table = TableName::parse_or_default(self.table.as_deref())?;
        Ok(self.on_pool_with(pool, table))
    }

    fn on_pool_with(&self, pool: SqlitePool, table: TableName) -> SqlPersistence<Sqlite> {
        self.finish(SqliteConnections::of_pool(pool, self.acquire_timeout, self.busy_timeout), table)
    }

    fn finish(&self, connections: SqliteConnections, table: TableName) -> SqlPersistence<Sqlite> {
        // Beside the waiting, a statement takes some time of its own.
        SqlPersistence::new(connections, table, self.busy_timeout.saturating_add(Duration::from_secs(5)))
    }

    /// Puts the file into write-ahead mode, which it then keeps: readers and the writer do not wait for each
    /// other. SQLite does not wait for the lock that this change takes, so processes that start at once have
    /// to try again.
    async fn enter_wal_mode(&self, connections: &SqliteConnections) -> Result<(), PersistenceError> {
        let began = Instant::now();
        loop {
            let enter = query_scalar::<_, String>("PRAGMA journal_mode = WAL");
            let entered = connections
                .writer()
                .await?
                .perform(move |connection| {
                    Box::pin(async move {
                        space::prepare_new_file(connection).await?;
                        enter.fetch_one(connection).await
                    })
                })
                .await;
            match entered.map_err(|error| ERRORS.connecting(&error)) {
                Ok(mode) => return check_mode(&mode),
                Err(PersistenceError::Busy(_)) if began.elapsed() < self.busy_timeout => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The parameters of a URL that the driver understands.
const DRIVER_PARAMETERS: &[&str] = &["mode", "cache", "immutable", "vfs"];

fn check_mode(mode: &str) -> Result<(), PersistenceError> {
    if mode == "wal" {
        return Ok(());
    }
    Err(PersistenceError::Config(format!(
        "SQLite's write-ahead log is not possible on this file system, the journal mode stays {mode}; \
         put the file on a local disk, or make the pool yourself"
    )))
}
