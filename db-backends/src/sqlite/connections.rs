//! SQLite has one writer at a time. Waiting for it here, in order, is faster and fairer than SQLite's own way, which is to
//! sleep and look again; and who waits here keeps no connection from a reader.

use std::sync::Arc;
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteQueryResult};
use sqlx::{ConnectOptions as _, Sqlite, SqlitePool, query_scalar};

use super::DIALECT;
use crate::sql::connections::{Lanes, Lease, Link, Numbered, Turns};
use crate::sql::error::Dialect;

/// How to open the file.
pub(crate) struct SqliteLink(Arc<SqliteConnectOptions>);

impl Link for SqliteLink {
    type Database = Sqlite;
    const DIALECT: Dialect = DIALECT;
    const IS_REMOTE: bool = false;

    async fn open(&self) -> sqlx::Result<Numbered<Self>> {
        Ok(Numbered { connection: self.0.connect().await?, number: 0 })
    }

    fn rows_affected(done: &SqliteQueryResult) -> u64 {
        done.rows_affected()
    }
}

/// The connections to a database.
pub(crate) enum Connections {
    Own {
        writer: Lanes<SqliteLink>,
        /// None: the writer's connection is the only one.
        readers: Option<Lanes<SqliteLink>>,
    },
    /// A pool that the application has, and whose turn it is to write with one of its connections. These wait at most
    /// so long for locks, as we were told.
    Pool { pool: SqlitePool, turn: Turns, busy_timeout: Duration },
}

impl Connections {
    /// Connections of our own: one to write with, and `readers` to read with.
    pub(super) fn own(options: SqliteConnectOptions, readers: u16, patience: Duration) -> Self {
        let options = Arc::new(options);
        let lanes = |count| Lanes::new(SqliteLink(Arc::clone(&options)), count, patience);
        Self::Own { writer: lanes(1), readers: (readers > 0).then(|| lanes(readers)) }
    }

    pub(super) fn of_pool(pool: SqlitePool, patience: Duration, busy_timeout: Duration) -> Self {
        Self::Pool { pool, turn: Turns::new(1, patience), busy_timeout }
    }

    /// The right to write, which one caller in this process has at a time.
    pub(super) async fn writer(&self) -> Result<Lease<SqliteLink>, PersistenceError> {
        match self {
            Self::Own { writer, .. } => writer.lease().await,
            Self::Pool { pool, turn, .. } => {
                let turn = turn.next().await?;
                Lease::from_pool(pool, Some(turn)).await
            }
        }
    }

    /// The right to read.
    pub(super) async fn reader(&self) -> Result<Lease<SqliteLink>, PersistenceError> {
        match self {
            Self::Own { writer, readers } => readers.as_ref().unwrap_or(writer).lease().await,
            Self::Pool { pool, .. } => Lease::from_pool(pool, None).await,
        }
    }

    /// Refuses a pool of the application's that waits longer for locks than we were told: an abandoned statement would
    /// outlive its bound.
    pub(crate) async fn check(&self) -> Result<(), PersistenceError> {
        let Self::Pool { busy_timeout, .. } = self else { return Ok(()) };
        let millis = query_scalar::<_, i64>("PRAGMA busy_timeout");
        let millis = self
            .reader()
            .await?
            .perform(move |connection| Box::pin(async move { millis.fetch_one(connection).await }))
            .await;
        let found = Duration::from_millis(millis.map_err(|error| DIALECT.connecting(&error))?.unsigned_abs());
        if found <= *busy_timeout {
            return Ok(());
        }
        Err(PersistenceError::Config(format!(
            "the pool's connections have a busy_timeout of {found:?}, longer than the {busy_timeout:?} that this was \
             told; pass it to SqliteBuilder::busy_timeout"
        )))
    }

    /// Waits for the statements on our own connections, and closes these. No call gets one afterwards.
    pub(super) async fn close(&self) {
        if let Self::Own { writer, readers } = self {
            // The writer last: who closes the last connection tidies up the file.
            for lanes in readers.iter().chain([writer]) {
                lanes.close().await;
            }
        }
    }
}
