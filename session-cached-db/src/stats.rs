use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What a store has done since it was built. Counted in this process only.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Loads that the cache answered.
    hits,
    /// Loads that took over the result of another load in flight.
    joined,
    /// Database reads that were meant to fill the cache.
    misses,
    /// Database reads beside the cache: somebody else was reading or writing the key, or the cache did not answer.
    bypasses,
    /// Misses after which the cache took the value.
    fills,
    /// Misses after which it did not: a writer came in between, or the cache did not answer.
    lost_fills,
    /// Writes that were fenced, so that no cache shows what they replaced.
    fenced_writes,
    /// Writes that could not be fenced, because the cache did not answer.
    degraded_writes,
    /// Keys whose cache entry was repaired after a degraded write.
    repairs,
    /// Saves that found the session changed by somebody else and were merged.
    merges,
    /// Cache calls that failed or did not answer in time.
    cache_errors,
    /// Times that the circuit breaker opened.
    breaker_openings,
    /// Expired sessions that were deleted.
    reaped,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn bump(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
