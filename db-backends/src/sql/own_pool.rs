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
use crate::sql::primary::Primary;
use crate::sql::queue::{FairQueue, NoConnection};
use crate::sql::run_to_end::{GRACE_TO_CONNECT, run_to_end};
use crate::sql::session_check::Unfit;

/// A remote connection that was used within this time is taken to be alive, and one that was checked within
/// it to lead to the primary.
const FRESH: Duration = Duration::from_secs(1);
/// A remote connection is replaced after this time, so that a changed address or password is noticed.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// The maximum time that the check of an idle connection waits for its answer. A shorter one would burden a busy server
/// with new connections; with a longer one, callers would wait longer on a connection that a firewall has forgotten.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// The time after which a call without an answer opens a connection to see where the address leads. Also the time that this
/// may take, and the shortest time between two such connections.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two checks of whether a caller is to look where the address leads.
const LOOK_TICK: Duration = Duration::from_millis(100);

/// The time that a server gets to answer after another one took its place. Without an answer, the outcome of a write is
/// unknown.
const REPLACED_GRACE: Duration = Duration::from_millis(500);

/// Connections that have one user at a time each, opened when they are needed.
pub(crate) struct OwnPool<C: Connector>(pub(crate) Arc<Shared<C>>);

pub(crate) struct Shared<C: Connector> {
    pub(crate) connector: C,
    pub(crate) queue: FairQueue,
    pub(crate) primary: Primary,
    /// The time at which a caller last began to see where the address leads. Locked by the caller that does.
    looking: tokio::sync::Mutex<Option<Instant>>,
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
    checked_at: Instant,
    used_at: Instant,
    /// The end of the last statement was not seen.
    is_abandoned: bool,
    is_suspect: bool,
}

impl<C: Connector> OwnPool<C> {
    /// Makes a pool of at most `count` connections. A caller that gets none within `timeout` gets an error.
    pub(crate) fn new(connector: C, count: u16, timeout: Duration) -> Self {
        let idle = Mutex::new(Idle { slots: Vec::new(), broken_at: None });
        let queue = FairQueue::new(count, timeout);
        let (primary, looking) = (Primary::default(), tokio::sync::Mutex::new(None));
        Self(Arc::new(Shared { connector, queue, primary, looking, idle }))
    }

    /// Waits for a connection that is alive, leads to the primary, and has finished what was sent on it
    /// before.
    pub(crate) async fn checkout(&self) -> Result<OwnCheckout<C>, PersistenceError> {
        let permit = self.0.queue.admit().await?;
        let checkout = OwnCheckout { slot: self.0.take(), pool: Arc::clone(&self.0), _permit: permit };
        if checkout.slot.is_ready() {
            return Ok(checkout);
        }
        run_to_end(GRACE_TO_CONNECT, checkout.made_ready()).await
    }

    /// Returns `true` if a pooler stands before the server.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file is no server"))]
    pub(crate) fn is_pooled(&self) -> bool {
        self.0.connector.is_pooled()
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
        while let Some(mut slot) = idle.slots.pop() {
            if self.primary.may_use(slot.opened_at) {
                slot.is_suspect = idle.broken_at.is_some_and(|broken_at| slot.used_at <= broken_at);
                return slot;
            }
        }
        Slot::new(None)
    }

    /// Returns how many connections are open, or being opened.
    #[cfg_attr(not(feature = "_server"), expect(dead_code, reason = "a file is no server"))]
    pub(crate) fn open_connections(&self) -> u32 {
        let idle = u32::try_from(self.idle().slots.len()).unwrap_or(u32::MAX);
        idle.saturating_add(self.queue.admitted())
    }

    /// Closes all idle connections.
    fn close_idle(&self) {
        let slots = std::mem::take(&mut self.idle().slots);
        drop(slots);
    }

    fn idle(&self) -> MutexGuard<'_, Idle<C>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a connection. If it leads to another server than the others, they are used no more.
    async fn open(&self) -> Result<OpenConnection<C>, Unfit> {
        let began = Instant::now();
        let open = self.connector.open().await?;
        self.primary.found(open.session.primary(), began);
        Ok(open)
    }

    /// Opens a connection, and returns when that began. Begins anew when another server is found meanwhile: one that was cut
    /// off does not answer, and what is under way still leads there.
    async fn open_anew(self: &Arc<Self>) -> Result<(OpenConnection<C>, Instant), Unfit> {
        loop {
            let began = Instant::now();
            let witness = Witness { pool: Arc::clone(self), opened_at: began };
            tokio::select! {
                biased;
                open = self.open() => return Ok((open?, began)),
                () = witness.another_is_found() => {}
            }
        }
    }
}

impl<C: Connector> Slot<C> {
    fn new(open: Option<OpenConnection<C>>) -> Self {
        let now = Instant::now();
        Self { open, opened_at: now, checked_at: now, used_at: now, is_abandoned: false, is_suspect: false }
    }

    /// Returns `true` if the connection can be used as it is.
    fn is_ready(&self) -> bool {
        let is_sound = !self.is_abandoned && !self.is_suspect;
        let is_fresh = || {
            let has_answered = self.used_at.elapsed() < FRESH && self.checked_at.elapsed() < FRESH;
            has_answered && self.opened_at.elapsed() < LIFETIME
        };
        self.open.is_some() && is_sound && (!C::IS_REMOTE || is_fresh())
    }

    /// Makes sure that there is a connection, that it is alive and leads to the primary, and that an
    /// abandoned statement on it has ended. Otherwise statements would queue up in it, and the last one would
    /// run long after its user has given up.
    async fn make_ready(&mut self, pool: &Arc<Shared<C>>) -> Result<(), PersistenceError> {
        if C::IS_REMOTE {
            let is_old = self.opened_at.elapsed() >= LIFETIME;
            // Taken out during the check: a connection whose check was not waited for must not be used again,
            // because the next statement would take the check's answer for its own.
            if let Some(open) = self.open.take().filter(|_| !is_old) {
                self.open = checked(open, pool).await;
                self.checked_at = Instant::now();
            }
        } else if let Some(open) = &mut self.open
            && C::check(&mut open.connection, false).await.is_err()
        {
            self.open = None;
        }
        if self.open.is_none() {
            let open = pool.open_anew().await;
            let (open, began) =
                open.map_err(|unfit| unfit.into_error(|error| C::ERRORS.connecting(error)))?;
            // From the beginning, because the connection leads to where the address led then.
            *self = Self { opened_at: began, ..Self::new(Some(open)) };
        }
        Ok(())
    }
}

/// Returns a remote connection that was idle, if it can be used.
async fn checked<C: Connector>(mut open: OpenConnection<C>, pool: &Shared<C>) -> Option<OpenConnection<C>> {
    // Behind a pooler, it may only be waiting for its turn.
    let is_pooled = pool.connector.is_pooled();
    let patience = if is_pooled { pool.queue.timeout() } else { CHECK_TIMEOUT.min(pool.queue.timeout() / 2) };
    match timeout(patience, C::check(&mut open.connection, is_pooled)).await {
        Ok(Ok(_)) => return Some(open),
        Ok(Err(Unfit::NotPrimary(reason))) => {
            tracing::warn!(
                target: "db_backends",
                event = "database_deposed",
                database = C::ERRORS.name,
                reason,
                "the server takes no writes any more; connections are opened anew"
            );
            pool.primary.leave();
            pool.close_idle();
        }
        Ok(Err(_)) => {}
        Err(_) if is_pooled => {}
        // Its cause has silenced the others, too, and each of them would cost a timeout.
        Err(_) => pool.close_idle(),
    }
    None
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
        match timeout(self.pool.queue.timeout(), self.slot.make_ready(&self.pool)).await {
            Ok(ready) => ready.map(|()| self),
            Err(_) if self.pool.connector.is_pooled() => {
                Err(PersistenceError::Busy(Box::new(NoConnection::PoolerIsBusy)))
            }
            Err(_) if C::IS_REMOTE => Err(PersistenceError::Unavailable(Box::new(NoConnection::Silent))),
            Err(_) => Err(PersistenceError::Busy(Box::new(NoConnection::Busy))),
        }
    }

    /// Returns the connection. A checkout always has one, so the error never occurs.
    pub(crate) fn connection(&mut self) -> sqlx::Result<&mut Connection<C>> {
        let open = self.slot.open.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        Ok(&mut open.connection)
    }

    /// Notes whether the last statement may still be running.
    pub(crate) const fn set_abandoned(&mut self, is_abandoned: bool) {
        self.slot.is_abandoned = is_abandoned;
    }

    /// Notes that the server takes no writes any more. None of the connections up to now is used again.
    pub(crate) fn leave_server(&self) {
        self.pool.primary.leave();
        self.pool.close_idle();
    }

    /// Returns a witness to what becomes of the connection's server.
    pub(crate) fn witness(&self) -> Witness<C> {
        Witness { pool: Arc::clone(&self.pool), opened_at: self.slot.opened_at }
    }
}

/// A witness to what becomes of the server that a connection leads to, while a statement waits for an answer.
pub(crate) struct Witness<C: Connector> {
    pool: Arc<Shared<C>>,
    opened_at: Instant,
}

impl<C: Connector> Witness<C> {
    /// Waits until the answer need not be waited for any longer, because another server has taken the place
    /// of this one. The former one has a grace period to answer.
    pub(crate) async fn server_is_replaced(self) {
        self.another_is_found().await;
        tokio::time::sleep(REPLACED_GRACE).await;
    }

    /// Waits until another server has taken the place of this one.
    ///
    /// A call that takes long opens a connection to see where the address leads: a server that was cut off says
    /// nothing itself, and other callers may all be waiting on connections to it.
    async fn another_is_found(&self) {
        if !C::IS_REMOTE {
            return std::future::pending().await;
        }
        tokio::select! {
            () = self.pool.primary.is_left(self.opened_at) => {}
            () = self.look_elsewhere() => {}
        }
    }

    /// Opens connections now and then, which notes the server that each leads to. A server that answers is
    /// only slow, and is asked ever more rarely.
    async fn look_elsewhere(&self) {
        let mut pause = LOOK_INTERVAL;
        tokio::time::sleep(pause).await;
        loop {
            // One caller at a time is enough.
            if let Ok(mut looked_at) = self.pool.looking.try_lock()
                && looked_at.is_none_or(|at| at.elapsed() >= pause)
            {
                *looked_at = Some(Instant::now());
                let look = timeout(LOOK_INTERVAL, self.pool.open()).await;
                pause = if matches!(look, Ok(Ok(_))) { pause.saturating_mul(2) } else { LOOK_INTERVAL };
            }
            tokio::time::sleep(LOOK_TICK).await;
        }
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
        } else if self.pool.primary.may_use(self.slot.opened_at) {
            idle.slots.push(Slot {
                open: Some(open),
                opened_at: self.slot.opened_at,
                checked_at: self.slot.checked_at,
                used_at: Instant::now(),
                is_abandoned: self.slot.is_abandoned,
                is_suspect: false,
            });
        }
    }
}
