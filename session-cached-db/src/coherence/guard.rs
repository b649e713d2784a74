//! The cache behind a deadline for every call, and behind a circuit breaker for each of its servers.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Near, Runtime, Scope, Stamp,
    StoredKey, Timestamp,
};

use super::CoherenceSettings;
use super::breaker::Breaker;
use crate::runtime::within;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::{CacheLatencies, Gauge, Histogram, Labels};

/// The time for which a refusal is not logged again, although a probe was answered in between: the servers of a cluster
/// refuse for one reason, and a server may accept what the probe tries and refuse what a load needs.
const QUIET: Duration = Duration::from_secs(60);

/// The time for which the lease of a probe is kept, should its removal fail.
const PROBE_TTL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct CacheGuard<C> {
    cache: C,
    properties: CacheProperties,
    /// `None` for a cache in this process: it always answers at once, and a timer would cost more than the call.
    deadline: Option<Duration>,
    probe_interval: Duration,
    /// One for each server of the cache.
    breakers: Box<[Breaker]>,
    /// The number of open breakers.
    open: AtomicUsize,
    /// The number of keys that are left out of the cache.
    left_out: AtomicUsize,
    /// The last refusal that was logged, and when.
    logged: Mutex<Option<(String, Timestamp)>>,
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
        settings: &CoherenceSettings,
        runtime: Arc<dyn Runtime>,
        telemetry: Arc<Telemetry>,
        labels: &Labels,
    ) -> Self {
        let properties = cache.properties();
        let deadline = (properties.scope == Scope::Shared).then_some(settings.cache_timeout);
        let threshold = settings.breaker_threshold;
        let servers = properties.servers.max(1);
        let probed = if servers == 1 { 0 } else { cache.server(&StoredKey::PROBE) };
        let other = |server| (server == probed).then_some(StoredKey::PROBE);
        let breakers = (0..servers).map(|server| Breaker::new(threshold, other(server))).collect();
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
            probe_interval: settings.probe_interval,
            breakers,
            open: AtomicUsize::new(0),
            left_out: AtomicUsize::new(0),
            logged: Mutex::new(None),
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

    /// Returns the memory of this process in front of the cache, if it is a near cache.
    #[inline]
    pub(super) fn near(&self) -> Option<&dyn Near> {
        self.cache.near()
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

    /// Returns `true` while a breaker is open or a key is left out, so that probes are needed.
    pub(super) fn needs_probes(&self) -> bool {
        self.is_any_open() || self.left_out.load(Ordering::Acquire) > 0
    }

    /// Returns `true` while the breaker of the server of `key` is open, or `key` is left out.
    pub(super) fn is_open_for(&self, key: &StoredKey) -> bool {
        self.needs_probes() && self.breaker(key).is_some_and(|breaker| breaker.keeps_out(key))
    }

    /// Returns `true` while the server of `key` is not called because it refuses every call.
    pub(super) fn is_refused_for(&self, key: &StoredKey) -> bool {
        self.is_any_open() && self.breaker(key).is_some_and(Breaker::is_refusing)
    }

    #[cfg(feature = "__simulation")]
    pub(super) fn digest(&self, failures_left: u32) -> Vec<impl std::hash::Hash + use<C>> {
        self.breakers.iter().map(|breaker| breaker.digest(failures_left)).collect()
    }

    fn breaker(&self, key: &StoredKey) -> Option<&Breaker> {
        match &*self.breakers {
            [only] => Some(only),
            all => all.get(self.cache.server(key)),
        }
    }

    /// Asks each server whose breaker is open whether it can be used, side by side, and closes the breakers of those that
    /// can. Asks for the keys that are left out, too.
    pub(super) async fn probe(&self) {
        let now = self.runtime.now();
        if self.left_out.load(Ordering::Acquire) > 0 {
            join_all(self.breakers.iter().map(|breaker| self.probe_left_out(breaker, now))).await;
        }
        let due = self.breakers.iter().filter(|breaker| breaker.is_due(now));
        join_all(due.map(async |breaker| {
            if self.is_usable(breaker).await && breaker.close() {
                self.gauge.set(self.open.fetch_sub(1, Ordering::AcqRel).saturating_sub(1));
                tracing::info!(target: "session_cached_db", event = "cache_breaker_closed", "the cache answers again");
            }
        }))
        .await;
    }

    async fn is_usable(&self, breaker: &Breaker) -> bool {
        let (key, other) = breaker.candidates();
        let answered = match self.get(&key, Gate::Probe).await {
            // Each further call may be another failed login.
            Err(CacheError::Unusable(_)) => return false,
            Err(error) if error.is_outage() => {
                // It may be this key alone that is not answered.
                let Some(other) = other else { return false };
                if is_outage(&self.get(&other, Gate::Probe).await) || !self.leave_out(breaker, &key) {
                    return false;
                }
                other
            }
            _ => key,
        };
        // A server that was silent answers either all commands or none.
        !breaker.is_refusing() || self.can_write(&answered).await
    }

    /// Leaves out the key that failed last. Returns `false` if that is no key, or too many are left out already.
    fn leave_out(&self, breaker: &Breaker, key: &StoredKey) -> bool {
        if !breaker.leave_out() {
            return false;
        }
        self.left_out.fetch_add(1, Ordering::AcqRel);
        if let Some(suppressed) = self.telemetry.log_limits.admit("cache_key_left_out", self.runtime.now()) {
            tracing::warn!(target: "session_cached_db", event = "cache_key_left_out", session = %self.telemetry.log_id(key), suppressed,
                "the cache does not answer for one session, and does for others; that session is served from the database");
        }
        true
    }

    async fn probe_left_out(&self, breaker: &Breaker, now: Timestamp) {
        join_all(breaker.left_out_and_due(now, self.probe_interval).into_iter().map(async |key| {
            if !is_outage(&self.get(&key, Gate::Probe).await) && breaker.take_in(&key) {
                self.left_out.fetch_sub(1, Ordering::AcqRel);
            }
        }))
        .await;
    }

    /// Tries every command on the server of `key`, because a user may have the right to some of them only. Places a lease,
    /// if nothing is there, and removes it.
    async fn can_write(&self, key: &StoredKey) -> bool {
        let lease = Stamp(self.runtime.random_u64());
        let acquire = pin!(self.cache.acquire(key, Entry::lease(lease), PROBE_TTL));
        let expected = match self.call(&self.latencies.acquire, key, Gate::Probe, acquire).await {
            Ok(Acquired::Placed) => Expected::Stamp(lease),
            // Removes nothing: an entry is there.
            Ok(Acquired::Found(_)) => Expected::Vacant,
            Err(error) => return !error.is_outage(),
        };
        let exchange = pin!(self.cache.compare_exchange(key, expected, None, PROBE_TTL));
        !is_outage(&self.call(&self.latencies.compare_exchange, key, Gate::Probe, exchange).await)
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

    /// Counts the answer of a server, its silence, or its refusal of every call. A cache that refuses this call only, or
    /// sends nonsense, does answer.
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
        let Some(breaker) = self.breaker(key) else { return };
        if let CacheError::Unusable(_) = error {
            let now = self.runtime.now();
            if breaker.note_refusal(key, now, self.probe_interval) {
                self.note_opening();
                self.log_refusal(error, now);
            }
        } else if error.is_outage() && breaker.note_silence(key) {
            self.note_opening();
            tracing::warn!(target: "session_cached_db", event = "cache_breaker_opened", %error,
                "the cache does not answer; sessions are served from the database");
        }
    }

    fn note_opening(&self) {
        self.gauge.set(self.open.fetch_add(1, Ordering::AcqRel) + 1);
        self.telemetry.counters.breaker_openings.bump();
    }

    /// Logs why the cache cannot be used, once for each reason.
    fn log_refusal(&self, error: &CacheError, now: Timestamp) {
        let reason = error.to_string();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.as_ref().is_some_and(|(text, at)| *text == reason && now < *at + QUIET) {
            return;
        }
        *logged = Some((reason, now));
        drop(logged);
        tracing::warn!(target: "session_cached_db", event = "cache_unusable", %error,
            "the cache refuses every call until that is mended; sessions are served from the database");
    }
}

/// Returns `true` if the server did not answer, or refuses every call. A cache that refuses this call, or holds an entry of
/// another key, answers.
fn is_outage<T>(result: &Result<T, CacheError>) -> bool {
    result.as_ref().is_err_and(CacheError::is_outage)
}
