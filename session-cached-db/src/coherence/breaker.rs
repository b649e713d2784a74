use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::{StoredKey, Timestamp};

/// The longest pause between two probes of a server that refuses every call, in probe intervals.
const LONGEST_PAUSE: u32 = 16;

/// The number of keys of one server that are left out at most. If more are not answered, the server counts as out of reach.
const MAX_LEFT_OUT: usize = 64;

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
    /// Another one, which the next probe asks for if the first is not answered.
    other: Option<StoredKey>,
    /// The keys that are not asked for, although the breaker is closed.
    left_out: HashSet<StoredKey>,
    /// The instant from which they are asked for again, to see whether they are answered.
    left_out_again_at: Timestamp,
    /// The number of refusals since the breaker was closed.
    refusals: u32,
    /// No probe is made before this instant.
    probe_at: Timestamp,
}

impl Breaker {
    /// Returns a closed breaker. `other` is a key of the server that can be asked for, if one is known.
    pub(super) fn new(threshold: u32, other: Option<StoredKey>) -> Self {
        let last = Last {
            key: StoredKey::PROBE,
            other,
            left_out: HashSet::new(),
            left_out_again_at: Timestamp::MIN,
            refusals: 0,
            probe_at: Timestamp::MIN,
        };
        Self { threshold, failures: AtomicU32::new(0), open: AtomicBool::new(false), last: Mutex::new(last) }
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

    /// Returns the key that failed last, and another one.
    pub(super) fn candidates(&self) -> (StoredKey, Option<StoredKey>) {
        let last = self.last();
        (last.key, last.other.filter(|other| *other != last.key))
    }

    /// Returns `true` if `key` must not be asked for. Notes the key for the next probe if the breaker is open.
    pub(super) fn keeps_out(&self, key: &StoredKey) -> bool {
        let is_open = self.is_open();
        let mut last = self.last();
        let is_left_out = last.left_out.contains(key);
        if is_open && !is_left_out && *key != last.key {
            last.other = Some(*key);
        }
        is_open || is_left_out
    }

    /// Leaves the key out that failed last, from now on in favour of the other one. Returns `false` if too many are left out
    /// already.
    pub(super) fn leave_out(&self) -> bool {
        let mut last = self.last();
        let key = last.key;
        let is_new = last.left_out.len() < MAX_LEFT_OUT && last.left_out.insert(key);
        if is_new && let Some(other) = last.other {
            last.key = other;
        }
        is_new
    }

    /// Returns the keys that are left out, once in a probe interval.
    pub(super) fn left_out_and_due(&self, now: Timestamp, probe_interval: Duration) -> Vec<StoredKey> {
        let mut last = self.last();
        if now < last.left_out_again_at {
            return Vec::new();
        }
        last.left_out_again_at = now + probe_interval;
        last.left_out.iter().copied().collect()
    }

    /// Returns `true` if `key` was left out.
    pub(super) fn take_in(&self, key: &StoredKey) -> bool {
        self.last().left_out.remove(key)
    }

    pub(super) fn note_answer(&self) {
        // Load first: a store would make every hit write to a shared cache line.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a call that was not answered. Returns `true` if that has opened the breaker.
    ///
    /// While it is open, the key that opened it stays the one to ask for. A key that is left out does not count.
    pub(super) fn note_silence(&self, key: &StoredKey) -> bool {
        let mut last = self.last();
        if last.left_out.contains(key) {
            return false;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < self.threshold {
            return false;
        }
        if self.open.swap(true, Ordering::AcqRel) {
            return false;
        }
        last.key = *key;
        true
    }

    /// Counts a call that was refused as every other would be. Probes follow after pauses that double, because
    /// each may be another failed login. Returns `true` if that has opened the breaker.
    pub(super) fn note_refusal(&self, key: &StoredKey, now: Timestamp, probe_interval: Duration) -> bool {
        let mut last = self.last();
        let pause = probe_interval / LONGEST_PAUSE * 2_u32.saturating_pow(last.refusals.min(8));
        if !last.left_out.contains(key) {
            last.key = *key;
        }
        last.refusals = last.refusals.saturating_add(1);
        last.probe_at = now + pause.min(probe_interval * LONGEST_PAUSE);
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
    pub(super) fn digest(&self, failures_left: u32) -> impl std::hash::Hash + use<> {
        let failures = self.failures.load(Ordering::Relaxed);
        let last = self.last();
        let mut left_out: Vec<_> = last.left_out.iter().map(|key| key.as_str().to_owned()).collect();
        left_out.sort_unstable();
        let again_at = (!left_out.is_empty()).then_some(last.left_out_again_at.as_micros());
        // The keys to probe count only while it is open.
        let keys = [Some(last.key), last.other];
        let keys = self.is_open().then(|| keys.map(|key| key.map(|key| key.as_str().to_owned())));
        // Failures count only if enough can follow to open the breaker.
        let failures = (failures.saturating_add(failures_left) >= self.threshold).then_some(failures);
        (self.is_open(), failures, (left_out, again_at), keys)
    }
}
