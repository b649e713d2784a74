use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use session_core::StoredKey;

/// A circuit breaker for one server of a cache. It opens after `threshold` failures in a row; a probe closes it.
#[derive(Debug)]
pub(super) struct Breaker {
    threshold: u32,
    failures: AtomicU32,
    open: AtomicBool,
    /// A key of this server, which the next probe asks for.
    last_failed: Mutex<StoredKey>,
}

impl Breaker {
    pub(super) const fn new(threshold: u32) -> Self {
        Self {
            threshold,
            failures: AtomicU32::new(0),
            open: AtomicBool::new(false),
            last_failed: Mutex::new(StoredKey::PROBE),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn last_failed(&self) -> StoredKey {
        *self.last_failed.lock().unwrap_or_else(PoisonError::into_inner)
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
        *self.last_failed.lock().unwrap_or_else(PoisonError::into_inner) = *key;
        !self.open.swap(true, Ordering::AcqRel)
    }

    /// Returns `true` if it was open.
    pub(super) fn close(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.open.swap(false, Ordering::AcqRel)
    }

    #[cfg(feature = "__simulation")]
    pub(super) fn digest(&self, failures_left: u32) -> (bool, Option<u32>) {
        let failures = self.failures.load(Ordering::Relaxed);
        // Failures count only if enough can follow to open the breaker.
        (self.is_open(), (failures + failures_left >= self.threshold).then_some(failures))
    }
}
