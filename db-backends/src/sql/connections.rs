//! Connections of our own: who may use which, and when.
//!
//! Not a pool of sqlx's, for three reasons. That makes a round trip on every connection that it takes back. It takes back
//! connections whose user has gone in the middle of a statement, and cannot tell which statement of theirs the next
//! answer belongs to. And it does not know by which number a server can be told to end one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use session_core::PersistenceError;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Database, Executor, IntoArguments, Pool};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::sql::Query;
use crate::sql::error::Dialect;
use crate::sql::table::TableName;

/// How one kind of database is reached.
pub(crate) trait Link: Send + Sync + 'static {
    type Database: Database;

    const DIALECT: Dialect;

    /// Whether there is a network in between. Then a connection may be dead without anybody's knowing, and one whose user
    /// has gone in the middle of a statement is not used again. Otherwise such a statement is waited for.
    const IS_REMOTE: bool;

    /// Opens a connection; with the number that the server knows it by, if [`give_up`](Self::give_up) needs it.
    fn open(&self) -> impl Future<Output = sqlx::Result<Numbered<Self>>> + Send;

    fn rows_affected(done: &<Self::Database as Database>::QueryResult) -> u64;

    /// Is left a remote connection whose user has gone in the middle of a statement.
    fn give_up(&self, connection: Numbered<Self>) {
        drop(connection);
    }
}

pub(crate) type Arguments<L> = <<L as Link>::Database as Database>::Arguments;

pub(crate) type Connection<L> = <<L as Link>::Database as Database>::Connection;

pub(crate) struct Numbered<L: Link + ?Sized> {
    pub(crate) connection: Connection<L>,
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "the others need none"))]
    pub(crate) number: u64,
}

/// A remote connection that was used within this time is believed to be alive.
const FRESH: Duration = Duration::from_secs(1);
/// A remote connection is replaced after this time, so that a changed address or password is noticed.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Connections of which each has one user at a time, opened when they are needed.
pub(crate) struct Lanes<L: Link> {
    link: L,
    turns: Turns,
    idle: Mutex<Idle<L>>,
}

struct Idle<L: Link> {
    lanes: Vec<Lane<L>>,
    /// When a connection was last given up: those that were idle then are suspects.
    broken_at: Option<Instant>,
}

struct Lane<L: Link> {
    open: Option<Numbered<L>>,
    opened_at: Instant,
    used_at: Instant,
    /// Its last user did not see the end of a statement.
    is_abandoned: bool,
    is_suspect: bool,
}

impl<L: Link> Lanes<L> {
    /// At most `count` connections. Who cannot have one within `patience` gets an error.
    pub(crate) fn new(link: L, count: u16, patience: Duration) -> Self {
        let idle = Idle { lanes: Vec::new(), broken_at: None };
        Self { link, turns: Turns::new(count, patience), idle: Mutex::new(idle) }
    }

    pub(crate) async fn lease(&self) -> Result<Lease<'_, L>, PersistenceError> {
        let turn = self.turns.next().await?;
        Ok(Lease::Own(OwnLease { lanes: self, lane: self.take(), _turn: turn }))
    }

    /// Waits for those who have a connection, and closes all. Nobody gets one afterwards.
    pub(crate) async fn close(&self) {
        self.turns.close().await;
        let lanes = std::mem::take(&mut self.idle().lanes);
        for open in lanes.into_iter().filter_map(|lane| lane.open) {
            // It is gone in any case; there is nobody to tell how.
            let _ = open.connection.close().await;
        }
    }

    fn take(&self) -> Lane<L> {
        let mut idle = self.idle();
        match idle.lanes.pop() {
            Some(mut lane) => {
                lane.is_suspect = idle.broken_at.is_some_and(|broken_at| lane.used_at <= broken_at);
                lane
            }
            None => Lane {
                open: None,
                opened_at: Instant::now(),
                used_at: Instant::now(),
                is_abandoned: false,
                is_suspect: false,
            },
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle<L>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Link> Lane<L> {
    /// Whether the connection can be used as it is.
    fn is_ready(&self) -> bool {
        let is_sound = !self.is_abandoned && !self.is_suspect;
        let is_fresh = || self.used_at.elapsed() < FRESH && self.opened_at.elapsed() < LIFETIME;
        self.open.is_some() && is_sound && (!L::IS_REMOTE || is_fresh())
    }

    /// Makes sure that there is a connection, that it is alive, and that what was abandoned on it has ended. Otherwise
    /// statements would queue up in it, and the last one run long after its user has given up.
    async fn make_ready(&mut self, link: &L) -> Result<(), PersistenceError> {
        let is_old = L::IS_REMOTE && self.opened_at.elapsed() >= LIFETIME;
        if let Some(open) = &mut self.open
            && (is_old || open.connection.ping().await.is_err())
        {
            self.open = None;
        }
        if self.open.is_none() {
            let open = link.open().await.map_err(|error| L::DIALECT.connecting(&error))?;
            *self = Self {
                open: Some(open),
                opened_at: Instant::now(),
                used_at: Instant::now(),
                is_abandoned: false,
                is_suspect: false,
            };
        }
        Ok(())
    }
}

/// The right to use a connection.
pub(crate) enum Lease<'a, L: Link> {
    /// One of our own.
    Own(OwnLease<'a, L>),
    /// One of a pool that the application has.
    Pool(PoolLease<'a, L>),
}

impl<'a, L: Link> Lease<'a, L> {
    pub(crate) async fn from_pool(
        pool: &Pool<L::Database>,
        turn: Option<SemaphorePermit<'a>>,
    ) -> Result<Self, PersistenceError> {
        let connection = Box::pin(pool.acquire()).await.map_err(|error| L::DIALECT.connecting(&error))?;
        Ok(Self::Pool(PoolLease { connection, is_abandoned: false, _turn: turn }))
    }

    /// The connection, ready for a statement.
    pub(crate) async fn connection(&mut self) -> Result<&mut Connection<L>, PersistenceError> {
        match self {
            Self::Own(lease) => lease.connection().await,
            Self::Pool(lease) => {
                lease.is_abandoned = true;
                Ok(&mut lease.connection)
            }
        }
    }

    /// Gives the connection back after its statements, of which the last one had this error or none.
    pub(crate) fn settle(mut self, error: Option<&sqlx::Error>) {
        let is_abandoned = error.is_some_and(|error| !L::DIALECT.is_over(error));
        match &mut self {
            Self::Own(lease) => lease.lane.is_abandoned = is_abandoned,
            Self::Pool(lease) => lease.is_abandoned = is_abandoned,
        }
    }
}

impl<L: Link> Lease<'_, L>
where
    for<'c> &'c mut Connection<L>: Executor<'c, Database = L::Database>,
    Arguments<L>: IntoArguments<L::Database>,
{
    /// Runs a statement that writes; how many rows it matched.
    pub(crate) async fn write(
        mut self,
        query: Query<L::Database>,
        table: &TableName,
    ) -> Result<u64, PersistenceError> {
        let done = query.execute(self.connection().await?).await;
        self.settle(done.as_ref().err());
        done.map(|done| L::rows_affected(&done)).map_err(|error| L::DIALECT.writing(&error, table))
    }

    /// Runs a statement that finds at most one row.
    pub(crate) async fn read(
        mut self,
        query: Query<L::Database>,
        table: &TableName,
    ) -> Result<Option<<L::Database as Database>::Row>, PersistenceError> {
        let row = query.fetch_optional(self.connection().await?).await;
        self.settle(row.as_ref().err());
        row.map_err(|error| L::DIALECT.reading(&error, table))
    }

    /// Runs a statement that finds several rows.
    pub(crate) async fn read_all(
        mut self,
        query: Query<L::Database>,
        table: &TableName,
    ) -> Result<Vec<<L::Database as Database>::Row>, PersistenceError> {
        let rows = query.fetch_all(self.connection().await?).await;
        self.settle(rows.as_ref().err());
        rows.map_err(|error| L::DIALECT.reading(&error, table))
    }
}

pub(crate) struct OwnLease<'a, L: Link> {
    lanes: &'a Lanes<L>,
    lane: Lane<L>,
    _turn: SemaphorePermit<'a>,
}

impl<L: Link> OwnLease<'_, L> {
    async fn connection(&mut self) -> Result<&mut Connection<L>, PersistenceError> {
        if !self.lane.is_ready() {
            // Only who has to wait pays for a timer. Boxed, because every statement's future has room for this one.
            let make_ready = Box::pin(self.lane.make_ready(&self.lanes.link));
            match timeout(self.lanes.turns.patience, make_ready).await {
                Ok(ready) => ready?,
                Err(_) if L::IS_REMOTE => {
                    self.lane.open = None;
                    return Err(PersistenceError::Unavailable(Box::new(NotNow::Silent)));
                }
                Err(_) => return Err(PersistenceError::Busy(Box::new(NotNow::Busy))),
            }
        }
        self.lane.is_abandoned = true;
        match &mut self.lane.open {
            Some(open) => Ok(&mut open.connection),
            None => Err(PersistenceError::Unavailable(Box::new(NotNow::Silent))),
        }
    }
}

impl<L: Link> Drop for OwnLease<'_, L> {
    fn drop(&mut self) {
        let Some(open) = self.lane.open.take() else { return };
        let mut idle = self.lanes.idle();
        if self.lane.is_abandoned && L::IS_REMOTE {
            idle.broken_at = Some(Instant::now());
            drop(idle);
            self.lanes.link.give_up(open);
        } else {
            idle.lanes.push(Lane {
                open: Some(open),
                opened_at: self.lane.opened_at,
                used_at: Instant::now(),
                is_abandoned: self.lane.is_abandoned,
                is_suspect: false,
            });
        }
    }
}

pub(crate) struct PoolLease<'a, L: Link> {
    connection: PoolConnection<L::Database>,
    is_abandoned: bool,
    _turn: Option<SemaphorePermit<'a>>,
}

impl<L: Link> Drop for PoolLease<'_, L> {
    fn drop(&mut self) {
        if self.is_abandoned && L::IS_REMOTE {
            self.connection.close_on_drop();
        }
    }
}

/// A queue, in order of arrival.
pub(crate) struct Turns {
    semaphore: Semaphore,
    /// How many have their turn at a time.
    count: u16,
    /// How long to wait for one's turn.
    patience: Duration,
}

impl Turns {
    pub(crate) fn new(count: u16, patience: Duration) -> Self {
        Self { semaphore: Semaphore::new(count.into()), count, patience }
    }

    pub(crate) async fn next(&self) -> Result<SemaphorePermit<'_>, PersistenceError> {
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

    /// Waits until it is nobody's turn. Then it never is anybody's again.
    async fn close(&self) {
        // Refused only when this has been closed already.
        if let Ok(_all) = self.semaphore.acquire_many(self.count.into()).await {
            self.semaphore.close();
        }
    }
}

/// Why there is no connection to be had. Nothing was sent.
#[derive(Debug, thiserror::Error)]
enum NotNow {
    #[error("the statements before this one did not end in time")]
    Busy,
    #[error("the server did not answer in time")]
    Silent,
    #[error("it was closed")]
    Closed,
}
