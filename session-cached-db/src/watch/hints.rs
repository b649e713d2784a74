use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::Runtime;
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
}

impl Hints {
    pub(super) fn new(interval: Duration) -> Self {
        Self { state: Mutex::new(State { within: None, interval }), came: Notify::new() }
    }

    /// Notes that a look is to come within `time`.
    pub(super) fn add(&self, time: Duration) {
        let mut state = self.lock();
        state.within = Some(state.within.map_or(time, |other| other.min(time)));
        drop(state);
        self.came.notify_one();
    }

    /// Makes looks come at least once in `interval`.
    pub(super) fn shorten(&self, interval: Duration) {
        let mut state = self.lock();
        state.interval = state.interval.min(interval);
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
