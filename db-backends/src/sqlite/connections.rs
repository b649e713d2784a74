//! Who may use which connection, and when.
//!
//! SQLite has one writer at a time. Waiting for it here, in order, is faster and fairer than SQLite's own way, which is to
//! sleep and look again; and who waits here keeps no connection from a reader.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::ERRORS;

/// The connections to a database.
pub(super) enum Connections {
    /// Our own. Not a pool of sqlx's, which makes a round trip to the connection's thread, in a task of its own, before it
    /// takes a connection back: that costs as much again as reading a session.
    Own {
        writer: Lanes,
        /// None: the writer's connection is the only one.
        readers: Option<Lanes>,
    },
    /// Those of a pool that the application has, and whose turn it is to write with one of them.
    Pool { pool: SqlitePool, turn: Turns },
}

impl Connections {
    /// Connections of our own: one to write with, and `readers` to read with. Opened when they are needed.
    pub(super) fn own(options: SqliteConnectOptions, readers: u16, patience: Duration) -> Self {
        let options = Arc::new(options);
        let lanes = |count| Lanes {
            options: Arc::clone(&options),
            turns: Turns::new(count, patience),
            idle: Mutex::default(),
        };
        Self::Own { writer: lanes(1), readers: (readers > 0).then(|| lanes(readers)) }
    }

    pub(super) fn of_pool(pool: SqlitePool, patience: Duration) -> Self {
        Self::Pool { pool, turn: Turns::new(1, patience) }
    }

    /// The right to write: nobody else in this process has it.
    pub(super) async fn writer(&self) -> Result<Lease<'_>, PersistenceError> {
        match self {
            Self::Own { writer, .. } => writer.lease().await,
            Self::Pool { pool, turn } => {
                let turn = turn.next().await?;
                Ok(Lease::Pool { connection: acquire(pool).await?, _turn: Some(turn) })
            }
        }
    }

    /// The right to read.
    pub(super) async fn reader(&self) -> Result<Lease<'_>, PersistenceError> {
        match self {
            Self::Own { writer, readers } => readers.as_ref().unwrap_or(writer).lease().await,
            Self::Pool { pool, .. } => Ok(Lease::Pool { connection: acquire(pool).await?, _turn: None }),
        }
    }

    /// Waits for those who have one of our own connections, and closes these. Nobody gets one afterwards.
    pub(super) async fn close(&self) {
        if let Self::Own { writer, readers } = self {
            // The writer last: who closes the last connection tidies up the file.
            for lanes in readers.iter().chain([writer]) {
                lanes.close().await;
            }
        }
    }
}

async fn acquire(pool: &SqlitePool) -> Result<PoolConnection<Sqlite>, PersistenceError> {
    pool.acquire().await.map_err(|error| ERRORS.connecting(&error))
}

/// A queue, in order of arrival.
pub(super) struct Turns {
    semaphore: Semaphore,
    /// How many there are at a time.
    count: u16,
    /// How long to wait for one.
    patience: Duration,
}

impl Turns {
    fn new(count: u16, patience: Duration) -> Self {
        Self { semaphore: Semaphore::new(count.into()), count, patience }
    }

    async fn next(&self) -> Result<SemaphorePermit<'_>, PersistenceError> {
        // Only who has to wait pays for a timer.
        if let Ok(turn) = self.semaphore.try_acquire() {
            return Ok(turn);
        }
        match timeout(self.patience, self.semaphore.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(PersistenceError::Unavailable(Box::new(NotNow::Closed))),
            Err(_) => Err(PersistenceError::Busy(Box::new(NotNow::Busy))),
        }
    }
}

/// Connections of which each has one user at a time.
pub(super) struct Lanes {
    options: Arc<SqliteConnectOptions>,
    turns: Turns,
    idle: Mutex<Vec<Lane>>,
}

/// A connection, if it has been opened yet.
#[derive(Default)]
pub(super) struct Lane {
    connection: Option<SqliteConnection>,
    /// Its last user did not see the end of a statement: dropped, or failed.
    is_abandoned: bool,
}

impl Lanes {
    async fn lease(&self) -> Result<Lease<'_>, PersistenceError> {
        let turn = self.turns.next().await?;
        let lane = self.idle().pop().unwrap_or_default();
        Ok(Lease::Own(OwnLease { lanes: self, lane, _turn: turn }))
    }

    async fn close(&self) {
        // Refused only when this has been closed already.
        if let Ok(_all) = self.turns.semaphore.acquire_many(self.turns.count.into()).await {
            self.turns.semaphore.close();
        }
        let lanes = std::mem::take(&mut *self.idle());
        for connection in lanes.into_iter().filter_map(|lane| lane.connection) {
            // It closes in any case; there is nobody to tell how.
            let _ = connection.close().await;
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to use a connection.
pub(super) enum Lease<'a> {
    Own(OwnLease<'a>),
    Pool { connection: PoolConnection<Sqlite>, _turn: Option<SemaphorePermit<'a>> },
}

impl Lease<'_> {
    /// The connection. What was abandoned on it has ended.
    pub(super) async fn connection(&mut self) -> Result<&mut SqliteConnection, PersistenceError> {
        match self {
            Self::Own(lease) => lease.connection().await,
            Self::Pool { connection, .. } => Ok(connection),
        }
    }

    /// Says that all statements were seen to their end.
    pub(super) fn finish(mut self) {
        if let Self::Own(lease) = &mut self {
            lease.lane.is_abandoned = false;
        }
    }
}

pub(super) struct OwnLease<'a> {
    lanes: &'a Lanes,
    lane: Lane,
    _turn: SemaphorePermit<'a>,
}

impl OwnLease<'_> {
    async fn connection(&mut self) -> Result<&mut SqliteConnection, PersistenceError> {
        // Otherwise statements would queue up in the connection's thread, and the last one run long after its user has
        // given up.
        if self.lane.is_abandoned
            && let Some(connection) = &mut self.lane.connection
        {
            match timeout(self.lanes.turns.patience, connection.ping()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => self.lane.connection = None,
                Err(_) => return Err(PersistenceError::Busy(Box::new(NotNow::Busy))),
            }
        }
        self.lane.is_abandoned = true;
        match &mut self.lane.connection {
            Some(connection) => Ok(connection),
            none => {
                let opened = self.lanes.options.connect().await;
                Ok(none.insert(opened.map_err(|error| ERRORS.connecting(&error))?))
            }
        }
    }
}

impl Drop for OwnLease<'_> {
    fn drop(&mut self) {
        let lane = std::mem::take(&mut self.lane);
        if lane.connection.is_some() {
            self.lanes.idle().push(lane);
        }
    }
}

/// Why there is no connection to be had. Nothing was sent.
#[derive(Debug, thiserror::Error)]
enum NotNow {
    #[error("the statements before this one did not end in time")]
    Busy,
    #[error("the database was closed")]
    Closed,
}
