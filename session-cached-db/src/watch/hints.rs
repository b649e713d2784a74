use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{Runtime, SessionKey, Timestamp};
use tokio::sync::Notify;

/// The hints that a session should be looked at, and the interval at which it is without any.
#[derive(Debug)]
pub(super) struct Hints {
    state: Mutex<State>,
    came: Notify,
}

#[derive(Debug)]
struct State {
    /// The time within which the next look is to come. `None` if nothing was hinted since the last one began.
    within: Option<Duration>,
    interval: Duration,
    /// The instant at which the session expires unless it is used, as the last look has found.
    until: Option<Timestamp>,
    /// The session's own key, if one of those who watch it has it.
    session_key: Option<SessionKey>,
}

impl Hints {
    pub(super) fn new(interval: Duration, session_key: Option<SessionKey>) -> Self {
        Self {
            state: Mutex::new(State { within: None, interval, until: None, session_key }),
            came: Notify::new(),
        }
    }

    /// Notes that a look is to come within `time`.
    pub(super) fn add(&self, time: Duration) {
        let mut state = self.lock();
        // Its task need not be woken for nothing.
        if state.within.is_none_or(|other| time < other) {
            state.within = Some(time);
            drop(state);
            self.came.notify_one();
        }
    }

    /// Notes that a look is to come soon after all sessions were hinted at. The moment of one that is pending stays.
    pub(super) fn add_spread(&self, time: Duration) {
        let mut state = self.lock();
        if state.within.is_none() {
            state.within = Some(time);
            drop(state);
            self.came.notify_one();
        }
    }

    /// Notes that a write of this process lets the session expire at an instant, which may be sooner than the last look has found.
    pub(super) fn note_expiry(&self, expires_at: Timestamp) {
        if self.lock().until.is_none_or(|until| expires_at < until) {
            self.add(Duration::ZERO);
        }
    }

    /// Notes when the session expires, as a look has found.
    pub(super) fn set_until(&self, until: Option<Timestamp>) {
        self.lock().until = until;
    }

    /// Takes another watch: makes looks come at least once in `interval`.
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

    /// Forgets what was hinted, because a look is about to begin.
    pub(super) fn clear(&self) {
        self.lock().within = None;
    }

    /// Waits until a hint has come and its time is up.
    pub(super) async fn due(&self, runtime: &dyn Runtime) {
        let first = self.within(Duration::MAX).await;
        if !first.is_zero() {
            let at_once = std::pin::pin!(self.within(Duration::ZERO));
            let (Either::Left(_) | Either::Right(_)) = select(at_once, runtime.sleep(first)).await;
        }
    }

    /// Waits for a hint that a look is to come within `time`, or less.
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
