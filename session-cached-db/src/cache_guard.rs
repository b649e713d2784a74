//! The cache, as the protocol sees it: every call bounded by a deadline, none made while the circuit breaker is open.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
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
    breaker: Breaker,
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
        let breaker = Breaker {
            threshold,
            failures: AtomicU32::new(0),
            open: AtomicBool::new(false),
            gauge: Gauge::new(
                "session_cache_breaker_open",
                "1 while the cache is left alone because it does not answer, otherwise 0",
                labels,
            ),
        };
        let latencies = CacheLatencies::new(labels);
        Self { cache, properties, deadline, breaker, runtime, counters, latencies }
    }

    /// Whether calls are plain memory accesses.
    pub(crate) fn is_local(&self) -> bool {
        self.properties.scope == Scope::Process
    }

    pub(crate) fn properties(&self) -> &CacheProperties {
        &self.properties
    }

    pub(crate) fn is_open(&self) -> bool {
        self.breaker.open.load(Ordering::Acquire)
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self, failures_left: u32) -> (bool, Option<u32>) {
        let failures = self.breaker.failures.load(Ordering::Relaxed);
        // They count if they can come to open the breaker.
        (self.is_open(), (failures + failures_left >= self.breaker.threshold).then_some(failures))
    }

    pub(crate) fn close_breaker(&self) {
        self.breaker.failures.store(0, Ordering::Relaxed);
        self.breaker.open.store(false, Ordering::Release);
        self.breaker.gauge.set(0);
    }

    pub(crate) async fn get(&self, key: &StoredKey, gate: Gate) -> Result<Option<Entry>, CacheError> {
        let get = pin!(self.cache.get(key));
        self.call(&self.latencies.get, gate, get).await
    }

    pub(crate) async fn acquire(
        &self,
        key: &StoredKey,
        lease: Entry,
        ttl: Duration,
    ) -> Result<Acquired, CacheError> {
        let acquire = pin!(self.cache.acquire(key, lease, ttl));
        self.call(&self.latencies.acquire, Gate::Respect, acquire).await
    }

    pub(crate) async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
        gate: Gate,
    ) -> Result<Exchange, CacheError> {
        let exchange = pin!(self.cache.compare_exchange(key, expected, new, ttl));
        self.call(&self.latencies.compare_exchange, gate, exchange).await
    }

    /// Where the `call` is, it stays: some are large, and every move copies them.
    async fn call<T>(
        &self,
        latency: &Histogram,
        gate: Gate,
        call: Pin<&mut (impl Future<Output = Result<T, CacheError>> + Send)>,
    ) -> Result<T, CacheError> {
        if gate == Gate::Respect && self.is_open() {
            return Err(CacheError::Unavailable("its circuit breaker is open".into()));
        }
        let result = match self.deadline {
            None => call.await,
            Some(deadline) => {
                let call = pin!(latency.time(&*self.runtime, call));
                match select(call, self.runtime.sleep(deadline)).await {
                    Either::Left((result, _)) => result,
                    Either::Right(((), _)) => {
                        Err(CacheError::Ambiguous("no answer within the deadline".into()))
                    }
                }
            }
        };
        self.note(result.as_ref().err());
        result
    }

    /// A cache that refuses a call, or answers nonsense, answers; only one that does not answer trips the breaker.
    fn note(&self, error: Option<&CacheError>) {
        let Some(error) = error else {
            // A load first: a store would make every hit write to a shared cache line.
            if self.breaker.failures.load(Ordering::Relaxed) != 0 {
                self.breaker.failures.store(0, Ordering::Relaxed);
            }
            return;
        };
        self.counters.cache_errors.bump();
        tracing::debug!(target: "session_cached_db", event = "cache_error", %error);
        if error.is_retryable() {
            let failures = self.breaker.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            if failures >= self.breaker.threshold && !self.breaker.open.swap(true, Ordering::AcqRel) {
                self.breaker.gauge.set(1);
                self.counters.breaker_openings.bump();
                tracing::warn!(target: "session_cached_db", event = "cache_breaker_opened", %error,
                    "the cache does not answer; sessions are served from the database");
            }
        }
    }
}

/// Opens after so many failures in a row. What closes it again is the [repair task](crate::repair).
#[derive(Debug)]
struct Breaker {
    threshold: u32,
    failures: AtomicU32,
    open: AtomicBool,
    gauge: Gauge,
}
