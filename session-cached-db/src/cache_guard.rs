//! The cache, as the protocol sees it: every call bounded by a deadline, none made while the circuit breaker of the key's
//! server is open.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Runtime, Scope, StoredKey,
};

use crate::metrics::{CacheLatencies, Gauge, Histogram, Labels};
use crate::stats::Counters;

#[derive(Debug)]
pub(crate) struct CacheGuard<C> {
    cache: C,
    properties: CacheProperties,
    /// None for a cache in this process: it always answers at once, and a timer would cost more than the call.
    deadline: Option<Duration>,
    /// One for each server of the cache.
    breakers: Box<[Breaker]>,
    /// How many of them are open.
    open: AtomicUsize,
    gauge: Gauge,
    runtime: Arc<dyn Runtime>,
    counters: Arc<Counters>,
    latencies: CacheLatencies,
}

/// Whether a call may be made while the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// No: an ordinary call.
    Respect,
    /// Yes: it is there to find out whether the cache is back.
    Probe,
}

impl<C: Cache> CacheGuard<C> {
    pub(crate) fn new(
        cache: C,
        deadline: Duration,
        threshold: u32,
        runtime: Arc<dyn Runtime>,
        counters: Arc<Counters>,
        labels: &Labels,
    ) -> Self {
        let properties = cache.properties();
        let deadline = (properties.scope == Scope::Shared).then_some(deadline);
        let breakers = (0..properties.servers.max(1)).map(|_| Breaker::new(threshold)).collect();
        let gauge = Gauge::new(
            "session_cache_breaker_open",
            "How many servers of the cache are left alone because they do not answer",
            labels,
        );
        let latencies = CacheLatencies::new(labels);
        Self {
            cache,
            properties,
            deadline,
            breakers,
            open: AtomicUsize::new(0),
            gauge,
            runtime,
            counters,
            latencies,
        }
    }

    /// Whether calls are plain memory accesses.
    pub(crate) fn is_local(&self) -> bool {
        self.properties.scope == Scope::Process
    }

    pub(crate) fn properties(&self) -> &CacheProperties {
        &self.properties
    }

    /// Returns `true` while any server is left alone.
    pub(crate) fn is_any_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Returns `true` while all servers are left alone.
    pub(crate) fn is_all_open(&self) -> bool {
        self.open.load(Ordering::Acquire) >= self.breakers.len()
    }

    /// Returns `true` if the cache is more than one server.
    pub(crate) fn has_others(&self) -> bool {
        self.breakers.len() > 1
    }

    /// Returns `true` while the server of `key` is left alone.
    pub(crate) fn is_open_for(&self, key: &StoredKey) -> bool {
        self.is_any_open() && self.breaker(key).is_some_and(Breaker::is_open)
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self, failures_left: u32) -> Vec<(bool, Option<u32>)> {
        let digest = |breaker: &Breaker| {
            let failures = breaker.failures.load(Ordering::Relaxed);
            // They count if they can come to open the breaker.
            (breaker.is_open(), (failures + failures_left >= breaker.threshold).then_some(failures))
        };
        self.breakers.iter().map(digest).collect()
    }

    fn breaker(&self, key: &StoredKey) -> Option<&Breaker> {
        match &*self.breakers {
            [only] => Some(only),
            all => all.get(self.cache.server(key)),
        }
    }

    /// Asks each server that is left alone whether it answers, side by side, and closes the breakers of those that do.
    pub(crate) async fn probe(&self) {
        let open = self.breakers.iter().filter(|breaker| breaker.is_open());
        join_all(open.map(async |breaker| {
            let key = breaker.last_failed();
            if answers(&self.get(&key, Gate::Probe).await) && breaker.close() {
                self.gauge.set(self.open.fetch_sub(1, Ordering::AcqRel).saturating_sub(1));
                tracing::info!(target: "session_cached_db", event = "cache_breaker_closed", "the cache answers again");
            }
        }))
        .await;
    }

    pub(crate) async fn get(&self, key: &StoredKey, gate: Gate) -> Result<Option<Entry>, CacheError> {
        let get = pin!(self.cache.get(key));
        self.call(&self.latencies.get, key, gate, get).await
    }

    pub(crate) async fn acquire(
        &self,
        key: &StoredKey,
        lease: Entry,
        ttl: Duration,
    ) -> Result<Acquired, CacheError> {
        let acquire = pin!(self.cache.acquire(key, lease, ttl));
        self.call(&self.latencies.acquire, key, Gate::Respect, acquire).await
    }

    pub(crate) async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let exchange = pin!(self.cache.compare_exchange(key, expected, new, ttl));
        self.call(&self.latencies.compare_exchange, key, Gate::Respect, exchange).await
    }

    /// Where the `call` is, it stays: some are large, and every move copies them.
    async fn call<T>(
        &self,
        latency: &Histogram,
        key: &StoredKey,
        gate: Gate,
        call: Pin<&mut (impl Future<Output = Result<T, CacheError>> + Send)>,
    ) -> Result<T, CacheError> {
        if gate == Gate::Respect && self.is_open_for(key) {
            return Err(CacheError::Unavailable("its circuit breaker is open".into()));
        }
        let result = match self.deadline {
            None => call.await,
            Some(deadline) => {
                let call = pin!(latency.time(&*self.runtime, call));
                match select(call, self.runtime.sleep(deadline)).await {
                    Either::Left((result, _)) => result,
                    Either::Right(((), _)) => {
                        Err(CacheError::Unknown("no answer within the deadline".into()))
                    }
                }
            }
        };
        self.note(key, result.as_ref().err());
        result
    }

    /// A cache that refuses a call, or answers nonsense, answers; only one that does not answer trips the breaker.
    fn note(&self, key: &StoredKey, error: Option<&CacheError>) {
        let Some(error) = error else {
            // One in this process never fails for being out of reach.
            if self.deadline.is_some()
                && let Some(breaker) = self.breaker(key)
            {
                breaker.note_answer();
            }
            return;
        };
        self.counters.cache_errors.bump();
        tracing::debug!(target: "session_cached_db", event = "cache_error", %error);
        if error.is_retryable()
            && let Some(breaker) = self.breaker(key)
            && breaker.note_silence(key)
        {
            self.gauge.set(self.open.fetch_add(1, Ordering::AcqRel) + 1);
            self.counters.breaker_openings.bump();
            tracing::warn!(target: "session_cached_db", event = "cache_breaker_opened", %error,
                "the cache does not answer; sessions are served from the database");
        }
    }
}

/// Opens after so many failures in a row. A [probe](CacheGuard::probe) closes it again.
#[derive(Debug)]
struct Breaker {
    threshold: u32,
    failures: AtomicU32,
    open: AtomicBool,
    /// A key of this server, to ask for when the server is probed.
    last_failed: Mutex<StoredKey>,
}

impl Breaker {
    const fn new(threshold: u32) -> Self {
        Self {
            threshold,
            failures: AtomicU32::new(0),
            open: AtomicBool::new(false),
            last_failed: Mutex::new(StoredKey::PROBE),
        }
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn last_failed(&self) -> StoredKey {
        *self.last_failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_answer(&self) {
        // A load first: a store would make every hit write to a shared cache line.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a call that was not answered. Returns `true` if that has opened the breaker.
    fn note_silence(&self, key: &StoredKey) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < self.threshold {
            return false;
        }
        *self.last_failed.lock().unwrap_or_else(PoisonError::into_inner) = *key;
        !self.open.swap(true, Ordering::AcqRel)
    }

    /// Returns `true` if it was open.
    fn close(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.open.swap(false, Ordering::AcqRel)
    }
}

/// Returns `true` unless there was no answer: a cache that refuses a call, or holds an entry of another key, answers.
fn answers<T>(result: &Result<T, CacheError>) -> bool {
    result.as_ref().err().is_none_or(|error| !error.is_retryable())
}
