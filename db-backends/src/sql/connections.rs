//! Connections of our own: who may use which, and when.
//!
//! Not a pool of sqlx's, for three reasons. That makes a round trip on every connection that it takes back. It takes back
//! connections whose user has gone in the middle of a statement, and cannot tell which statement of theirs the next
//! answer belongs to. And it does not know by which number a server can be told to end one.
//!
//! What is done with a connection goes on when the caller goes: see [`attended`](super::attended). So a lease owns all
//! that it needs.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use session_core::PersistenceError;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Database, Executor, IntoArguments, Pool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::sql::Query;
use crate::sql::attended::{GRACE, GRACE_TO_CONNECT, attended};
use crate::sql::error::Dialect;
use crate::sql::table::TableName;

/// How one kind of database is reached.
pub(crate) trait Link: Send + Sync + 'static {
    type Database: Database;

    const DIALECT: Dialect;

    /// `true` if there is a network in between. Then a connection may be dead and nothing shows it, and one whose statement
    /// did not end in time is not used again. Otherwise such a statement is waited for.
    const IS_REMOTE: bool;

    /// Opens a connection; with the number that the server knows it by, if [`give_up`](Self::give_up) needs it.
    fn open(&self) -> impl Future<Output = sqlx::Result<Numbered<Self>>> + Send;

    fn rows_affected(done: &<Self::Database as Database>::QueryResult) -> u64;

    /// Takes a remote connection whose statement did not end in time, or broke off.
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
pub(crate) struct Lanes<L: Link>(Arc<Shared<L>>);

struct Shared<L: Link> {
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
    /// The end of its last statement was not seen.
    is_abandoned: bool,
    is_suspect: bool,
}

impl<L: Link> Lanes<L> {
    /// At most `count` connections. Who cannot have one within `patience` gets an error.
    pub(crate) fn new(link: L, count: u16, patience: Duration) -> Self {
        let idle = Idle { lanes: Vec::new(), broken_at: None };
        Self(Arc::new(Shared { link, turns: Turns::new(count, patience), idle: Mutex::new(idle) }))
    }

    /// Waits for a connection that is alive, and has done with what was sent on it before.
    pub(crate) async fn lease(&self) -> Result<Lease<L>, PersistenceError> {
        let turn = self.0.turns.next().await?;
        let lease = OwnLease { lane: self.0.take(), lanes: Arc::clone(&self.0), _turn: turn };
        if lease.lane.is_ready() {
            return Ok(Lease::Own(lease));
        }
        attended(GRACE_TO_CONNECT, lease.made_ready()).await.map(Lease::Own)
    }

    /// Waits for the statements that run, also for those whose callers have gone, and closes all connections. No call
    /// gets one afterwards.
    pub(crate) async fn close(&self) {
        self.0.turns.close().await;
        let lanes = std::mem::take(&mut self.0.idle().lanes);
        for open in lanes.into_iter().filter_map(|lane| lane.open) {
            // The connection is gone, however it closes.
            let _ = open.connection.close().await;
        }
    }
}

impl<L: Link> Shared<L> {
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
        if L::IS_REMOTE {
            // Taken out meanwhile: a connection whose ping is not waited for must not be used again, because the next
            // statement would take the answer for its own.
            let is_old = self.opened_at.elapsed() >= LIFETIME;
            if let Some(mut open) = self.open.take().filter(|_| !is_old)
                && open.connection.ping().await.is_ok()
            {
                self.open = Some(open);
            }
        } else if let Some(open) = &mut self.open
            && open.connection.ping().await.is_err()
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
pub(crate) enum Lease<L: Link> {
    /// One of our own.
    Own(OwnLease<L>),
    /// One of a pool that the application has.
    Pool(PoolLease<L>),
}

impl<L: Link> Lease<L> {
    pub(crate) async fn from_pool(
        pool: &Pool<L::Database>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, PersistenceError> {
        let pool = pool.clone();
        attended(GRACE_TO_CONNECT, async move {
            let connection = pool.acquire().await.map_err(|error| L::DIALECT.connecting(&error))?;
            Ok(Self::Pool(PoolLease { connection, is_abandoned: false, _turn: turn }))
        })
        .await
    }

    /// The connection, for a statement. Call [`settle`](Self::settle) when it has ended.
    fn connection(&mut self) -> sqlx::Result<&mut Connection<L>> {
        match self {
            Self::Own(lease) => {
                lease.lane.is_abandoned = true;
                // A lease is given out with one.
                let open = lease.lane.open.as_mut().ok_or(sqlx::Error::PoolClosed)?;
                Ok(&mut open.connection)
            }
            Self::Pool(lease) => {
                lease.is_abandoned = true;
                Ok(&mut lease.connection)
            }
        }
    }

    /// Gives the connection back, unused.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn release(self) {
        self.settle(None);
    }

    /// Gives the connection back after its statements, of which the last one had this error or none.
    fn settle(mut self, error: Option<&sqlx::Error>) {
        let is_abandoned = error.is_some_and(|error| !L::DIALECT.is_over(error));
        match &mut self {
            Self::Own(lease) => lease.lane.is_abandoned = is_abandoned,
            Self::Pool(lease) => lease.is_abandoned = is_abandoned,
        }
    }
}

/// An error that comes from the driver.
pub(crate) trait OfDriver: From<sqlx::Error> {
    fn error(&self) -> &sqlx::Error;
}

impl OfDriver for sqlx::Error {
    fn error(&self) -> &sqlx::Error {
        self
    }
}

/// What is done with a leased connection.
pub(crate) type Use<'c, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>>;

impl<L: Link> Lease<L> {
    /// Does `work` with the connection, to its end, also when the caller goes meanwhile.
    pub(crate) async fn perform<T, E>(
        mut self,
        work: impl for<'c> FnOnce(&'c mut Connection<L>) -> Use<'c, T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: OfDriver + Send + 'static,
    {
        attended(GRACE, async move {
            let done = work(self.connection()?).await;
            self.settle(done.as_ref().err().map(OfDriver::error));
            done
        })
        .await
    }
}

impl<L: Link> Lease<L>
where
    for<'c> &'c mut Connection<L>: Executor<'c, Database = L::Database>,
    Arguments<L>: IntoArguments<L::Database>,
{
    /// Runs a statement that writes, and returns how many rows it matched.
    pub(crate) async fn write(
        self,
        query: Query<L::Database>,
        table: &TableName,
    ) -> Result<u64, PersistenceError> {
        let done = self.perform(move |connection| connection.execute(query)).await;
        done.map(|done| L::rows_affected(&done)).map_err(|error| L::DIALECT.writing(&error, table))
    }

    /// Runs a statement that finds at most one row.
    pub(crate) async fn read(
        self,
        query: Query<L::Database>,
        table: &TableName,
    ) -> Result<Option<<L::Database as Database>::Row>, PersistenceError> {
        let row = self.perform(move |connection| connection.fetch_optional(query)).await;
        row.map_err(|error| L::DIALECT.reading(&error, table))
    }

    /// Runs a statement that finds several rows.
    pub(crate) async fn read_all(
        self,
        query: Query<L::Database>,
        table: &TableName,
    ) -> Result<Vec<<L::Database as Database>::Row>, PersistenceError> {
        let rows = self.perform(move |connection| connection.fetch_all(query)).await;
        rows.map_err(|error| L::DIALECT.reading(&error, table))
    }
}

pub(crate) struct OwnLease<L: Link> {
    lane: Lane<L>,
    lanes: Arc<Shared<L>>,
    /// Dropped last, when the connection is back.
    _turn: OwnedSemaphorePermit,
}

impl<L: Link> OwnLease<L> {
    async fn made_ready(mut self) -> Result<Self, PersistenceError> {
        match timeout(self.lanes.turns.patience, self.lane.make_ready(&self.lanes.link)).await {
            Ok(ready) => ready.map(|()| self),
            Err(_) if L::IS_REMOTE => Err(PersistenceError::Unavailable(Box::new(NotNow::Silent))),
            Err(_) => Err(PersistenceError::Busy(Box::new(NotNow::Busy))),
        }
    }
}

impl<L: Link> Drop for OwnLease<L> {
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

pub(crate) struct PoolLease<L: Link> {
    connection: PoolConnection<L::Database>,
    is_abandoned: bool,
    _turn: Option<OwnedSemaphorePermit>,
}

impl<L: Link> Drop for PoolLease<L> {
    fn drop(&mut self) {
        if self.is_abandoned && L::IS_REMOTE {
            self.connection.close_on_drop();
        }
    }
}

/// A queue, in order of arrival.
pub(crate) struct Turns {
    semaphore: Arc<Semaphore>,
    /// How many have their turn at a time.
    count: u16,
    /// How long to wait for one's turn.
    patience: Duration,
}

impl Turns {
    pub(crate) fn new(count: u16, patience: Duration) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(count.into())), count, patience }
    }

    pub(crate) async fn next(&self) -> Result<OwnedSemaphorePermit, PersistenceError> {
        // Only a call that has to wait pays for a timer.
        if let Ok(turn) = Arc::clone(&self.semaphore).try_acquire_owned() {
            return Ok(turn);
        }
        match timeout(self.patience, Arc::clone(&self.semaphore).acquire_owned()).await {
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
