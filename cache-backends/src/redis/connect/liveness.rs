//! Noticing a server that no longer answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The age from which on a call that is dropped counts as unanswered.
const PATIENCE: Duration = Duration::from_millis(25);

/// Notices that a server answers no caller, whether callers wait until their time is over or are dropped
/// before.
///
/// The connection is replaced then: after an outage in which the network dropped packets, TCP would take as
/// long again as the outage has lasted to go on, and a new connection finds the server as soon as it is back.
pub(super) struct Liveness {
    beginning: Instant,
    /// The time of the last reply, in milliseconds from the beginning.
    last_reply: AtomicU64,
    /// The time since which there was no reply, in milliseconds from the beginning; 0 if there was one.
    silent_since: AtomicU64,
}

impl Liveness {
    pub(super) fn new() -> Self {
        Self { beginning: Instant::now(), last_reply: AtomicU64::new(0), silent_since: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.beginning.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Begins a call that waits for its reply.
    pub(super) fn begin_call(&self) -> PendingCall<'_> {
        PendingCall { liveness: self, since: self.now(), is_answered: false }
    }

    /// Returns `true`, to one caller only, if there was no reply for `limit`. A new silence can begin then.
    pub(super) fn was_silent_for(&self, limit: Duration) -> bool {
        let since = self.silent_since.load(Ordering::Relaxed);
        since != 0
            && u128::from(self.now() - since) >= limit.as_millis()
            && self.silent_since.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// A call that waits for its reply.
pub(super) struct PendingCall<'a> {
    liveness: &'a Liveness,
    since: u64,
    is_answered: bool,
}

impl PendingCall<'_> {
    /// Notes that the reply came.
    pub(super) fn answered(mut self) {
        self.is_answered = true;
        self.liveness.last_reply.store(self.liveness.now(), Ordering::Relaxed);
        // Load first, so that many replies at once do not write to one cache line in turn.
        if self.liveness.silent_since.load(Ordering::Relaxed) != 0 {
            self.liveness.silent_since.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        let Liveness { last_reply, silent_since, .. } = self.liveness;
        let has_waited = u128::from(self.liveness.now() - self.since) >= PATIENCE.as_millis();
        // A reply since then came on the same connection, so that is alive.
        if !self.is_answered && has_waited && last_reply.load(Ordering::Relaxed) < self.since {
            let _ = silent_since.compare_exchange(0, self.since, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}
