//! The throttle of touches in a process: one per interval and session, however many requests use it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::{StoredKey, Timestamp};

/// The number of touches that are remembered, so that requests which opened the session before a touch do not repeat it.
const MAX_TOUCHES: usize = 16_384;

/// The instants at which this process last touched sessions.
#[derive(Debug, Default)]
pub(crate) struct Touches(Mutex<HashMap<StoredKey, Timestamp>>);

impl Touches {
    /// Returns `true` if this process has touched the session after `idle_since`.
    pub(super) fn are_since(&self, key: &StoredKey, idle_since: Timestamp) -> bool {
        mutant!(TouchRepeated => return false);
        self.lock().get(key).is_some_and(|touched_at| *touched_at > idle_since)
    }

    /// Notes that the session was touched at `now`. Touches older than `interval` are forgotten when room is needed.
    pub(super) fn note(&self, key: &StoredKey, now: Timestamp, interval: Duration) {
        let mut touches = self.lock();
        if touches.len() >= MAX_TOUCHES {
            touches.retain(|_, touched_at| *touched_at + interval > now);
            if touches.len() >= MAX_TOUCHES {
                touches.clear();
            }
        }
        touches.insert(*key, now);
    }

    /// Forgets the session, which ends or gets another key.
    pub(super) fn forget(&self, key: &StoredKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StoredKey, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
