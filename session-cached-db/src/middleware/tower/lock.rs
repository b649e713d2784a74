//! The lock of a request's session. No task waits for itself, and no response for a task that keeps the session.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as SyncMutex, MutexGuard as SyncMutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use futures_util::future::{Either, select};
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio::task;

use super::opened::{Effects, Opened};
use crate::Error;
use crate::session::SessionBackend;

/// The session of a request, with the worker that has it locked.
pub(super) struct Room {
    /// The turn of one worker, which then locks `opened`. The response needs none: a worker that got its turn and is not polled
    /// does not have the session yet.
    turn: Mutex<()>,
    opened: Mutex<Opened>,
    held: SyncMutex<Held>,
    was_locked: Notify,
    /// Changes that are still there were not to be saved, or are those of the worker that keeps the session.
    is_finished: AtomicBool,
}

#[derive(Default)]
struct Held {
    by: Option<Worker>,
    /// The effects of the workers before, when the last one had released the session, or had it saved for the next.
    effects: Effects,
}

impl Held {
    /// Returns the effects of the workers before, if a worker has the session.
    fn kept(&mut self) -> Option<Effects> {
        self.by.is_some().then(|| std::mem::take(&mut self.effects))
    }
}

/// A task, or, outside of tokio's tasks, a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Worker {
    Task(task::Id),
    Thread(ThreadId),
}

impl Worker {
    pub(super) fn current() -> Self {
        task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}

/// The session for one worker. Releases it when dropped.
pub(super) struct Locked<'a> {
    room: &'a Room,
    pub(super) opened: MutexGuard<'a, Opened>,
    /// The worker handles the request.
    is_requests: bool,
    _turn: MutexGuard<'a, ()>,
}

/// The session at the end of a request.
pub(super) enum Last<'a> {
    Free(MutexGuard<'a, Opened>),
    /// A worker keeps it. The effects are those of the workers before.
    Kept(Effects),
    /// A worker was to save what was changed before, and has not done so in the time of the longest write. The effects are those
    /// from before that.
    Stuck(Effects),
}

impl Room {
    pub(super) fn new(opened: Opened) -> Self {
        Self {
            turn: Mutex::default(),
            held: SyncMutex::new(Held { by: None, effects: opened.effects() }),
            opened: Mutex::new(opened),
            was_locked: Notify::new(),
            is_finished: AtomicBool::new(false),
        }
    }

    /// Locks the session for the present worker. `request` is the one that handles the request: the response waits for no other,
    /// so what was changed before another locks the session is saved first.
    ///
    /// Fails if that takes longer than the longest write, which the worker that has the session may be making: it may be waiting
    /// for this one.
    pub(super) async fn lock(
        &self,
        request: Option<Worker>,
        store: &dyn SessionBackend,
    ) -> Result<Locked<'_>, Error> {
        let worker = Worker::current();
        if self.held().by == Some(worker) {
            return Err(Error::AlreadyLocked);
        }
        let free = || Some((self.turn.try_lock().ok()?, self.opened.try_lock().ok()?));
        let (turn, mut opened) = match free() {
            Some(free) => free,
            None => {
                let patience = store.sleep(store.settings().longest_write);
                match select(pin!(self.take_turn()), patience).await {
                    Either::Left((taken, _)) => taken,
                    Either::Right(_) => return Err(Error::Busy),
                }
            }
        };
        let is_requests = request == Some(worker);
        if !is_requests && !self.is_finished.load(Ordering::Relaxed) {
            // The client needs the key of a write whose outcome is unknown, if it took place.
            let _ = opened.session.settle().await;
            if opened.session.modified() && !opened.session.is_unsaved_and_empty() {
                opened.session.save().await?;
            }
            self.held().effects = opened.effects();
        }
        self.held().by = Some(worker);
        self.was_locked.notify_waiters();
        Ok(Locked { room: self, opened, is_requests, _turn: turn })
    }

    /// Waits for its turn, and then for the session, which only the response can have.
    async fn take_turn(&self) -> (MutexGuard<'_, ()>, MutexGuard<'_, Opened>) {
        (self.turn.lock().await, self.opened.lock().await)
    }

    /// Locks the session at the end of the request, as soon as it is free, or a worker turns out to keep it. Waits at most for the
    /// longest write: a worker may have begun to save what was changed before, and be polled no more.
    pub(super) async fn lock_last(&self, store: &dyn SessionBackend) -> Last<'_> {
        if let Ok(opened) = self.opened.try_lock() {
            return Last::Free(opened);
        }
        let (free, kept) = (pin!(self.opened.lock()), pin!(self.kept()));
        match select(select(free, kept), store.sleep(store.settings().longest_write)).await {
            Either::Left((Either::Left((opened, _)), _)) => Last::Free(opened),
            Either::Left((Either::Right((effects, _)), _)) => Last::Kept(effects),
            Either::Right(_) => Last::Stuck(std::mem::take(&mut self.held().effects)),
        }
    }

    /// Notes that changes from now on are not those of the request.
    pub(super) fn finish(&self) {
        self.is_finished.store(true, Ordering::Relaxed);
    }

    /// Waits until a worker has the session.
    async fn kept(&self) -> Effects {
        loop {
            // Before the look, so that no lock in between is missed.
            let was_locked = self.was_locked.notified();
            if let Some(effects) = self.held().kept() {
                return effects;
            }
            was_locked.await;
        }
    }

    fn held(&self) -> SyncMutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.is_requests && thread::panicking() {
            // The changes are half done, so the next worker must not save them. The response saves nothing either.
            self.room.finish();
        }
        *self.room.held() = Held { by: None, effects: self.opened.effects() };
    }
}
