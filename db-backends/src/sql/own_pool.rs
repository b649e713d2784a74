//! The pool of our own: which caller uses which connection, and when.
//!
//! It is not a pool of sqlx's, for three reasons. Such a pool makes a round trip on every connection that it
//! takes back. It takes back connections that were dropped in the middle of a statement, and cannot know
//! which statement the next answer belongs to. And it does not know the number by which a server is asked to
//! end a statement.
//!
//! Work on a connection goes on when its future is dropped: see [`run_to_end`](super::run_to_end). So a
//! checkout owns all that it needs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use session_core::PersistenceError;
use sqlx::Connection as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::sql::connector::{Connection, Connector, OpenConnection};
use crate::sql::queue::{FairQueue, NoConnection};
use crate::sql::run_to_end::{GRACE_TO_CONNECT, run_to_end};

/// A remote connection that was used within this time is taken to be alive.
const FRESH: Duration = Duration::from_secs(1);
/// A remote connection is replaced after this time, so that a changed address or password is noticed.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Connections that have one user at a time each, opened when they are needed.
pub(crate) struct OwnPool<C: Connector>(Arc<Shared<C>>);

struct Shared<C: Connector> {
    connector: C,
    queue: FairQueue,
    idle: Mutex<Idle<C>>,
}

struct Idle<C: Connector> {
    slots: Vec<Slot<C>>,
    /// The instant at which a connection was last abandoned. Those that were idle then are suspects.
    broken_at: Option<Instant>,
}

/// A place in the pool: a connection, or room for one.
struct Slot<C: Connector> {
    open: Option<OpenConnection<C>>,
    opened_at: Instant,
    used_at: Instant,
    /// The end of the last statement was not seen.
    is_abandoned: bool,
    is_suspect: bool,
}

impl<C: Connector> OwnPool<C> {
    /// Makes a pool of at most `count` connections. A caller that gets none within `timeout` gets an error.
    pub(crate) fn new(connector: C, count: u16, timeout: Duration) -> Self {
        let idle = Idle { slots: Vec::new(), broken_at: None };
        Self(Arc::new(Shared { connector, queue: FairQueue::new(count, timeout), idle: Mutex::new(idle) }))
    }

    /// Waits for a connection that is alive and has finished what was sent on it before.
    pub(crate) async fn checkout(&self) -> Result<OwnCheckout<C>, PersistenceError> {
        let permit = self.0.queue.admit().await?;
        let checkout = OwnCheckout { slot: self.0.take(), pool: Arc::clone(&self.0), _permit: permit };
        if checkout.slot.is_ready() {
            return Ok(checkout);
        }
        run_to_end(GRACE_TO_CONNECT, checkout.made_ready()).await
    }

    /// Waits for the running statements, including abandoned ones, and closes all connections. Later calls
    /// get none.
    pub(crate) async fn close(&self) {
        self.0.queue.close().await;
        let slots = std::mem::take(&mut self.0.idle().slots);
        for open in slots.into_iter().filter_map(|slot| slot.open) {
            // The connection is gone, however it closes.
            let _ = open.connection.close().await;
        }
    }
}

impl<C: Connector> Shared<C> {
    fn take(&self) -> Slot<C> {
        let mut idle = self.idle();
        match idle.slots.pop() {
            Some(mut slot) => {
                slot.is_suspect = idle.broken_at.is_some_and(|broken_at| slot.used_at <= broken_at);
                slot
            }
            None => Slot::new(None),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle<C>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Connector> Slot<C> {
    fn new(open: Option<OpenConnection<C>>) -> Self {
        let now = Instant::now();
        Self { open, opened_at: now, used_at: now, is_abandoned: false, is_suspect: false }
    }

    /// Returns `true` if the connection can be used as it is.
    fn is_ready(&self) -> bool {
        let is_sound = !self.is_abandoned && !self.is_suspect;
        let is_fresh = || self.used_at.elapsed() < FRESH && self.opened_at.elapsed() < LIFETIME;
        self.open.is_some() && is_sound && (!C::IS_REMOTE || is_fresh())
    }

    /// Makes sure that there is a connection, that it is alive, and that an abandoned statement on it has
    /// ended. Otherwise statements would queue up in it, and the last one would run long after its user has
    /// given up.
    async fn make_ready(&mut self, connector: &C) -> Result<(), PersistenceError> {
        if C::IS_REMOTE {
            // Taken out during the ping: a connection whose ping was not waited for must not be used again,
            // because the next statement would take the ping's answer for its own.
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
            let open = connector.open().await.map_err(|error| C::ERRORS.connecting(&error))?;
            *self = Self::new(Some(open));
        }
        Ok(())
    }
}

/// The right to use one of the pool's connections, which goes back when this is dropped.
pub(crate) struct OwnCheckout<C: Connector> {
    slot: Slot<C>,
    pool: Arc<Shared<C>>,
    /// Dropped last, when the connection is back.
    _permit: OwnedSemaphorePermit,
}

impl<C: Connector> OwnCheckout<C> {
    async fn made_ready(mut self) -> Result<Self, PersistenceError> {
        match timeout(self.pool.queue.timeout(), self.slot.make_ready(&self.pool.connector)).await {
            Ok(ready) => ready.map(|()| self),
            Err(_) if C::IS_REMOTE => Err(PersistenceError::Unavailable(Box::new(NoConnection::Silent))),
            Err(_) => Err(PersistenceError::Busy(Box::new(NoConnection::Busy))),
        }
    }

    /// Returns the connection. A checkout always has one, so the error never occurs.
    pub(crate) fn connection(&mut self) -> sqlx::Result<&mut Connection<C>> {
        let open = self.slot.open.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        Ok(&mut open.connection)
    }

    /// Notes whether the end of the last statement is still to be seen.
    pub(crate) const fn set_abandoned(&mut self, is_abandoned: bool) {
        self.slot.is_abandoned = is_abandoned;
    }
}

impl<C: Connector> Drop for OwnCheckout<C> {
    fn drop(&mut self) {
        let Some(open) = self.slot.open.take() else { return };
        let mut idle = self.pool.idle();
        if self.slot.is_abandoned && C::IS_REMOTE {
            idle.broken_at = Some(Instant::now());
            drop(idle);
            self.pool.connector.abandon(open);
        } else {
            idle.slots.push(Slot {
                open: Some(open),
                opened_at: self.slot.opened_at,
                used_at: Instant::now(),
                is_abandoned: self.slot.is_abandoned,
                is_suspect: false,
            });
        }
    }
}
