//! The cache behind a deadline for every call, and behind a circuit breaker for each of its servers.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Runtime, Scope, StoredKey,
};

use super::breaker::Breaker;
use crate::runtime::within;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::{CacheLatencies, Gauge, Histogram, Labels};

#[derive(Debug)]
pub(super) struct CacheGuard<C> {
    cache: C,
    properties: CacheProperties,
    /// `None` for a cache in this process: it always answers at once, and a timer would cost more than the call.
    deadline: Option<Duration>,
    /// One for each server of the cache.
    breakers: Box<[Breaker]>,
    /// The number of open breakers.
    open: AtomicUsize,
    gauge: Gauge,
    runtime: Arc<dyn Runtime>,
    telemetry: Arc<Telemetry>,
    latencies: CacheLatencies,
}

/// The way in which a call treats an open breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// An ordinary call, which fails at once.
    Respect,
    /// A call that finds out whether the cache is back.
    Probe,
}

impl<C: Cache> CacheGuard<C> {
    pub(super) fn new(
        cache: C,
        deadline: Duration,
        threshold: u32,
        runtime: Arc<dyn Runtime>,
        telemetry: Arc<Telemetry>,
        labels: &Labels,
    ) -> Self {
        let properties = cache.properties();
        let deadline = (properties.scope == Scope::Shared).then_some(deadline);
        let breakers = (0..properties.servers.max(1)).map(|_| Breaker::new(threshold)).collect();
        let gauge = Gauge::new(
            "session_cache_breaker_open",
            "Servers of the cache that are not used because they do not answer",
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
            telemetry,
            latencies,
        }
    }

    /// Returns `true` if calls are plain memory accesses.
    pub(super) fn is_local(&self) -> bool {
        self.properties.scope == Scope::Process
    }

    pub(super) fn properties(&self) -> &CacheProperties {
        &self.properties
    }

    /// Returns `true` while any breaker is open.
    pub(super) fn is_any_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Returns `true` while all breakers are open.
    pub(super) fn is_all_open(&self) -> bool {
        self.open.load(Ordering::Acquire) >= self.breakers.len()
    }

    /// Returns `true` if the cache has more than one server.
    pub(super) fn has_others(&self) -> bool {
        self.breakers.len() > 1
    }

    /// Returns `true` while the breaker of the server of `key` is open.
    pub(super) fn is_open_for(&self, key: &StoredKey) -> bool {
        self.is_any_open() && self.breaker(key).is_some_and(Breaker::is_open)
    }

    #[cfg(feature = "__simulation")]
    pub(super) fn digest(&self, failures_left: u32) -> Vec<(bool, Option<u32>)> {
        self.breakers.iter().map(|breaker| breaker.digest(failures_left)).collect()
    }

    fn breaker(&self, key: &StoredKey) -> Option<&Breaker> {
        match &*self.breakers {
            [only] => Some(only),
            all => all.get(self.cache.server(key)),
        }
    }

    /// Asks each server whose breaker is open whether it answers, side by side, and closes the breakers of those that do.
    pub(super) async fn probe(&self) {
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

    pub(super) async fn get(&self, key: &StoredKey, gate: Gate) -> Result<Option<Entry>, CacheError> {
        let get = pin!(self.cache.get(key));
        self.call(&self.latencies.get, key, gate, get).await
    }

    pub(super) async fn acquire(
        &self,
        key: &StoredKey,
        lease: Entry,
        ttl: Duration,
    ) -> Result<Acquired, CacheError> {
        let acquire = pin!(self.cache.acquire(key, lease, ttl));
        self.call(&self.latencies.acquire, key, Gate::Respect, acquire).await
    }

    pub(super) async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let exchange = pin!(self.cache.compare_exchange(key, expected, new, ttl));
        self.call(&self.latencies.compare_exchange, key, Gate::Respect, exchange).await
    }

    /// Makes `call`, unless the breaker is open, for at most the deadline.
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
                let no_answer = || Err(CacheError::Unknown("no answer within the deadline".into()));
                within(&*self.runtime, deadline, call).await.unwrap_or_else(no_answer)
            }
        };
        self.note(key, result.as_ref().err());
        result
    }

    /// Counts the answer or the silence of a server. A cache that refuses a call, or sends nonsense, does answer: only
    /// silence opens the breaker.
    fn note(&self, key: &StoredKey, error: Option<&CacheError>) {
        let Some(error) = error else {
            // A cache in this process is never out of reach.
            if self.deadline.is_some()
                && let Some(breaker) = self.breaker(key)
            {
                breaker.note_answer();
            }
            return;
        };
        self.telemetry.counters.cache_errors.bump();
        tracing::debug!(target: "session_cached_db", event = "cache_error", %error);
        if error.is_retryable()
            && let Some(breaker) = self.breaker(key)
            && breaker.note_silence(key)
        {
            self.gauge.set(self.open.fetch_add(1, Ordering::AcqRel) + 1);
            self.telemetry.counters.breaker_openings.bump();
            tracing::warn!(target: "session_cached_db", event = "cache_breaker_opened", %error,
                "the cache does not answer; sessions are served from the database");
        }
    }
}

/// Returns `true` unless there was no answer: a cache that refuses a call, or holds an entry of another key, answers.
fn answers<T>(result: &Result<T, CacheError>) -> bool {
    result.as_ref().err().is_none_or(|error| !error.is_retryable())
}
