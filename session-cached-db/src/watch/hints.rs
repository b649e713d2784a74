use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{Runtime, SessionKey, Timestamp};
use tokio::sync::Notify;

/// The hints to look at a session, and the interval at which it is looked at without them.
#[derive(Debug)]
pub(super) struct Hints {
    state: Mutex<State>,
    came: Notify,
}

#[derive(Debug)]
struct State {
    /// The maximum time to the next look. `None` if no hint has come since the last look began.
    within: Option<Duration>,
    interval: Duration,
    /// The expiry that the last look found.
    until: Option<Timestamp>,
    /// The session's own key, if one of its watches has it.
    session_key: Option<SessionKey>,
}

impl Hints {
    pub(super) fn new(interval: Duration, session_key: Option<SessionKey>) -> Self {
        Self {
            state: Mutex::new(State { within: None, interval, until: None, session_key }),
            came: Notify::new(),
        }
    }

    /// Asks for a look within `time`.
    pub(super) fn add(&self, time: Duration) {
        let mut state = self.lock();
        // A later deadline changes nothing, so do not wake the task.
        if state.within.is_none_or(|other| time < other) {
            state.within = Some(time);
            drop(state);
            self.came.notify_one();
        }
    }

    /// Asks for a look within `time`, unless one is asked for already: for hints at all sessions, whose looks are spread.
    pub(super) fn add_spread(&self, time: Duration) {
        let mut state = self.lock();
        if state.within.is_none() {
            state.within = Some(time);
            drop(state);
            self.came.notify_one();
        }
    }

    /// Notes that a write of this process has set the expiry. Asks for a look at once if the session now ends sooner.
    pub(super) fn note_expiry(&self, expires_at: Timestamp) {
        if self.lock().until.is_none_or(|until| expires_at < until) {
            self.add(Duration::ZERO);
        }
    }

    /// Sets the expiry that a look has found.
    pub(super) fn set_until(&self, until: Option<Timestamp>) {
        self.lock().until = until;
    }

    /// Adds a watch, and shortens the interval to `interval` if it was longer.
    pub(super) fn join(&self, interval: Duration, session_key: Option<SessionKey>) {
        let mut state = self.lock();
        state.interval = state.interval.min(interval);
        if session_key.is_some() {
            state.session_key = session_key;
        }
    }

    pub(super) fn session_key(&self) -> Option<SessionKey> {
        self.lock().session_key.clone()
    }

    pub(super) fn interval(&self) -> Duration {
        self.lock().interval
    }

    /// Forgets the hints. Called before each look.
    pub(super) fn clear(&self) {
        self.lock().within = None;
    }

    /// Waits for a hint, and then until its time is up.
    pub(super) async fn due(&self, runtime: &dyn Runtime) {
        let first = self.within(Duration::MAX).await;
        if !first.is_zero() {
            let at_once = std::pin::pin!(self.within(Duration::ZERO));
            let (Either::Left(_) | Either::Right(_)) = select(at_once, runtime.sleep(first)).await;
        }
    }

    /// Waits for a hint that asks for a look within `time` or less, and returns its time.
    async fn within(&self, time: Duration) -> Duration {
        loop {
            if let Some(within) = self.lock().within.filter(|within| *within <= time) {
                return within;
            }
            self.came.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
