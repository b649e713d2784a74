use std::sync::atomic::{AtomicU64, Ordering};

use super::metrics::{self, Labels};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident = $metric:literal),* $(,)?) => {
        /// Counts of the work of a store since it was built, in this process only.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        #[derive(Debug)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn new(labels: &Labels) -> Self {
                Self { $($name: Counter::new($metric, concat!($($doc),*).trim_ascii(), labels),)* }
            }

            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Loads that the cache answered.
    hits = "session_cache_hits_total",
    /// Loads among them that a near cache answered from the memory of this process.
    near_hits = "session_near_hits_total",
    /// Changes that other processes or the cache's server reported to the near cache.
    near_notices = "session_near_notices_total",
    /// Reports to the near cache that named no session, and were ignored.
    near_ignored = "session_near_ignored_total",
    /// Times that everything was removed from the near cache's memory, because its channel was lost or the server was emptied.
    near_forgotten = "session_near_forgotten_total",
    /// Loads that took over the result of another load in flight.
    joined = "session_loads_joined_total",
    /// Database reads that were meant to fill the cache.
    misses = "session_cache_misses_total",
    /// Database reads that bypassed the cache: another reader or a writer was at the key, or the cache did not answer.
    bypasses = "session_cache_bypasses_total",
    /// Misses after which the cache took the value.
    fills = "session_cache_fills_total",
    /// Misses after which the cache did not take the value: a writer came in between, or the cache did not answer.
    lost_fills = "session_cache_lost_fills_total",
    /// Writes that were fenced, so that no cache shows what they replaced.
    fenced_writes = "session_fenced_writes_total",
    /// Writes that could not be fenced, because the cache did not answer.
    degraded_writes = "session_degraded_writes_total",
    /// Keys whose cache entry was repaired after a degraded write.
    repairs = "session_cache_repairs_total",
    /// Saves that found the session changed since it was opened, and were merged.
    merges = "session_merges_total",
    /// Writes that were refused because another writer had changed the session.
    conflicts = "session_conflicts_total",
    /// Sessions that were found and could not be read.
    unreadable = "session_unreadable_total",
    /// Keys that clients presented and that opened no session.
    unknown_keys = "session_unknown_keys_total",
    /// Keys among those that look like stored keys: the client has seen the database or a cache.
    stored_keys_presented = "session_stored_keys_presented_total",
    /// Requests with the old key of a session that followed it to the new one within the
    /// [grace](crate::Builder::rotation_grace).
    rotations_followed = "session_rotations_followed_total",
    /// Looks at sessions that are [watched](crate::SessionWatch).
    watch_looks = "session_watch_looks_total",
    /// Keys in requests that the tower layer rejected before asking anything: malformed, or not sealed with a key of this node.
    rejected_keys = "session_rejected_keys_total",
    /// Cache calls that failed or did not answer in time.
    cache_errors = "session_cache_errors_total",
    /// Times that the circuit breaker opened.
    breaker_openings = "session_cache_breaker_openings_total",
    /// Rounds in which nothing was deleted, because this machine's clock and the database's differ too much.
    clock_skews = "session_clock_skews_total",
    /// Expired sessions that were deleted.
    reaped = "session_reaped_total",
}

#[derive(Debug)]
pub(crate) struct Counter {
    count: AtomicU64,
    metric: metrics::Counter,
}

impl Counter {
    fn new(name: &'static str, description: &'static str, labels: &Labels) -> Self {
        Self { count: AtomicU64::new(0), metric: metrics::Counter::new(name, description, labels) }
    }

    pub(crate) fn add(&self, n: u64) {
        self.count.fetch_add(n, Ordering::Relaxed);
        self.metric.add(n);
    }

    pub(crate) fn bump(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
