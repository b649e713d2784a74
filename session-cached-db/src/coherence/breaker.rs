use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::{StoredKey, Timestamp};

/// The longest pause between two probes of a server that refuses every call, in probe intervals.
const LONGEST_PAUSE: u32 = 16;

/// A circuit breaker for one server of a cache. It opens after `threshold` failures in a row, or at once when the server
/// refuses every call; a probe closes it.
#[derive(Debug)]
pub(super) struct Breaker {
    threshold: u32,
    failures: AtomicU32,
    open: AtomicBool,
    last: Mutex<Last>,
}

/// The last failure that the breaker was told of.
#[derive(Debug)]
struct Last {
    /// A key of this server, which the next probe asks for.
    key: StoredKey,
    /// The number of refusals since the breaker was closed.
    refusals: u32,
    /// No probe is made before this instant.
    probe_at: Timestamp,
}

impl Breaker {
    pub(super) const fn new(threshold: u32) -> Self {
        Self {
            threshold,
            failures: AtomicU32::new(0),
            open: AtomicBool::new(false),
            last: Mutex::new(Last { key: StoredKey::PROBE, refusals: 0, probe_at: Timestamp::MIN }),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Returns `true` if the breaker is open because the server refuses every call.
    pub(super) fn is_refusing(&self) -> bool {
        self.is_open() && self.last().refusals > 0
    }

    /// Returns `true` if the breaker is open, and it is time for a probe.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.is_open() && self.last().probe_at <= now
    }

    pub(super) fn last_failed(&self) -> StoredKey {
        self.last().key
    }

    pub(super) fn note_answer(&self) {
        // Load first: a store would make every hit write to a shared cache line.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a call that was not answered. Returns `true` if that has opened the breaker.
    pub(super) fn note_silence(&self, key: &StoredKey) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < self.threshold {
            return false;
        }
        self.last().key = *key;
        !self.open.swap(true, Ordering::AcqRel)
    }

    /// Counts a call that was refused as every other would be. Probes follow after pauses that double, because
    /// each may be another failed login. Returns `true` if that has opened the breaker.
    pub(super) fn note_refusal(&self, key: &StoredKey, now: Timestamp, probe_interval: Duration) -> bool {
        let mut last = self.last();
        let pause = probe_interval / LONGEST_PAUSE * 2_u32.saturating_pow(last.refusals.min(8));
        *last = Last {
            key: *key,
            refusals: last.refusals.saturating_add(1),
            probe_at: now + pause.min(probe_interval * LONGEST_PAUSE),
        };
        !self.open.swap(true, Ordering::AcqRel)
    }

    /// Returns `true` if it was open.
    pub(super) fn close(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        let mut last = self.last();
        (last.refusals, last.probe_at) = (0, Timestamp::MIN);
        self.open.swap(false, Ordering::AcqRel)
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(feature = "__simulation")]
    pub(super) fn digest(&self, failures_left: u32) -> (bool, Option<u32>) {
        let failures = self.failures.load(Ordering::Relaxed);
        // Failures count only if enough can follow to open the breaker.
        (self.is_open(), (failures.saturating_add(failures_left) >= self.threshold).then_some(failures))
    }
}
