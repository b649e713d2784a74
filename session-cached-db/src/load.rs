//! Reading a session: from the cache, or from the database under a lease.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{
    Acquired, Cache, Entry, Exchange, Expected, Persistence, PersistenceError, Record, Stamp, State,
    StoredKey, Timestamp, Value, protocol,
};
use tracing::Instrument as _;

use crate::Error;
use crate::cache_guard::Gate;
use crate::flight::{Calls, Landed, LoadResult, Loaded, Passenger};
use crate::inner::Inner;

/// How far [`Runtime::coarse_now`](session_core::Runtime::coarse_now) may be behind.
const ROUGHLY: Duration = Duration::from_millis(20);

/// What the cache had to say.
pub(crate) enum Look {
    /// Here it is.
    Hit(Loaded),
    /// Nothing is there, and the key is ours to fill.
    Leased(Stamp),
    /// Somebody else reads or writes the key, or the cache is not to be asked: read the database, and fill nothing.
    Bypass,
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Returns the session under `key`. Dropping this holds up no other load, and leaves nothing half done.
    pub(crate) async fn load(self: &Arc<Self>, key: &StoredKey) -> LoadResult {
        if self.cache.is_local()
            && !self.repairs.holds(key)
            && let Ok(Some(entry)) = self.cache.get(key, Gate::Respect).await
            && let Some(hit) = self.hit(entry)
        {
            return Ok(Some(hit));
        }
        // On the heap, so that a hit in this process does not carry its size.
        let span =
            tracing::debug_span!(target: "session_cached_db", "session_load", session = %self.name(key));
        Box::pin(self.load_shared(key).instrument(span)).await
    }

    /// The same, shared with all loads of this key that are under way.
    async fn load_shared(self: &Arc<Self>, key: &StoredKey) -> LoadResult {
        let Some(mut passenger) = self.join(key) else { return self.bypass(key).await };
        if let Some(result) = passenger.ride().await {
            return result;
        }
        // It came too late for that result. However slow that attempt was, it waits no longer than one attempt may take.
        match select(pin!(passenger.ride()), self.runtime.sleep(self.config.longest_load())).await {
            Either::Left((Some(result), _)) => result,
            Either::Left((None, _)) => self.bypass(key).await,
            Either::Right(_) => Err(no_answer()),
        }
    }

    fn join(self: &Arc<Self>, key: &StoredKey) -> Option<Passenger> {
        let passenger = self.flights.join(key, &self.runtime, |calls| {
            let (store, key) = (Arc::clone(self), *key);
            async move { store.attempt(&key, &calls).await }
        })?;
        if passenger.has_joined() {
            self.counters.joined.bump();
        }
        Some(passenger)
    }

    /// Gets the record from the cache or from the database. Returns it with the call that produced it.
    async fn attempt(self: &Arc<Self>, key: &StoredKey, calls: &Calls) -> Landed {
        let call = calls.send();
        match self.look(key).await {
            Look::Hit(hit) => (call, Ok(Some(hit))),
            // Apart, so that a hit does not carry the size of what follows a miss.
            Look::Leased(lease) => Box::pin(self.fill(key, lease, calls)).await,
            Look::Bypass => (calls.send(), Box::pin(self.bypass(key)).await),
        }
    }

    /// Asks the cache for the record, or for the right to fill it.
    async fn look(self: &Arc<Self>, key: &StoredKey) -> Look {
        if self.repairs.holds(key) {
            return Look::Bypass;
        }
        let lease = self.stamp();
        match self.cache.acquire(key, Entry::lease(lease), self.config.lease_ttl).await {
            Ok(Acquired::Placed) => Look::Leased(lease),
            Ok(Acquired::Found(entry)) => self.hit(entry).map_or(Look::Bypass, Look::Hit),
            Err(_) => {
                mutant!(LeaseRetriedAsItWas => return self.look_again(key, lease).await);
                // The lease may have been placed, or may be later. It is never used, and ends by itself.
                self.tend_cache();
                Look::Bypass
            }
        }
    }

    /// The record in `entry`, if it is one that may be shown.
    pub(crate) fn hit(&self, entry: Entry) -> Option<Loaded> {
        let State::Value(value) = entry.state else { return None };
        if value.store != self.config.store_id {
            return None;
        }
        let is_servable_at = |now| protocol::is_servable(&value, now, self.config.max_cache_age);
        // The exact time is asked for where it matters: a hit spends a third of its own time on that.
        let is_servable =
            is_servable_at(self.runtime.coarse_now() + ROUGHLY) || is_servable_at(self.runtime.now());
        (is_servable || mutant!(TtlTrusted)).then(|| {
            self.counters.hits.bump();
            Loaded { record: value.record, stamp: Some(entry.stamp) }
        })
    }

    /// Reads the database and fills the key, for which we hold `lease`.
    async fn fill(self: &Arc<Self>, key: &StoredKey, lease: Stamp, calls: &Calls) -> Landed {
        let read = calls.send();
        let made_at = self.runtime.now();
        self.counters.misses.bump();
        let found = self.read(key).await;
        let value = match &found {
            // What cannot be decoded stays out: once its row was repaired, nobody is to be shown it any more. Decoding
            // it here costs nothing, because whoever waits for it shares the result.
            Ok(Some(loaded)) if loaded.record.decode(key, &*self.codec).is_ok() => {
                self.cacheable(key, self.value(&loaded.record, made_at))
            }
            // Nothing to fill with: the lease is given back.
            Ok(_) | Err(_) => None,
        };
        let Some(value) = value else {
            self.release(key, lease).await;
            return (read, found);
        };
        let fill = calls.send();
        match self.fill_lease(key, lease, value).await {
            Some(stamp) => {
                self.counters.fills.bump();
                let fill = if mutant!(LateFollower) { calls.send() } else { fill };
                // While the lease held, nobody has committed a change: what was read is good up to here.
                (fill, found.map(|loaded| loaded.map(|loaded| Loaded { stamp: Some(stamp), ..loaded })))
            }
            None => {
                self.counters.lost_fills.bump();
                (read, found)
            }
        }
    }

    /// Replaces our lease by `value`; the stamp under which it is there, if it surely is.
    pub(crate) async fn fill_lease(
        self: &Arc<Self>,
        key: &StoredKey,
        lease: Stamp,
        value: Value,
    ) -> Option<Stamp> {
        mutant!(NoLeaseCheck => return self.fill_anyway(key, lease, value).await);
        mutant!(FillAfterDelete => return self.fill_anyway(key, lease, value).await);
        let stamp = self.stamp();
        let ttl = protocol::value_ttl(&value, self.runtime.now(), self.config.max_cache_age);
        let new = Some(Entry::value(stamp, value));
        let exchange = self.cache.compare_exchange(key, Expected::Stamp(lease), new, ttl);
        match exchange.await {
            Ok(Exchange::Stored) => Some(stamp),
            Ok(Exchange::Lost(_)) => None,
            Err(error) => {
                if error.is_retryable() {
                    self.add_lost_lease(key);
                } else {
                    // Refused, as too large for instance: others need not wait until the lease ends.
                    self.release(key, lease).await;
                }
                None
            }
        }
    }

    /// Gives our lease back. If that fails, it ends by itself.
    pub(crate) async fn release(self: &Arc<Self>, key: &StoredKey, lease: Stamp) {
        let expected = Expected::Stamp(lease);
        let exchange = self.cache.compare_exchange(key, expected, None, self.config.lease_ttl);
        if exchange.await.is_err() {
            self.add_lost_lease(key);
        }
    }

    /// A lease of ours is left in the cache: it keeps the key out until it ends, or until the cache answers again.
    fn add_lost_lease(self: &Arc<Self>, key: &StoredKey) {
        let obsolete_at = self.runtime.now() + self.config.lease_ttl;
        self.repairs.add_fenced(key, self.token(), obsolete_at);
        // The failure may have opened the breaker, too.
        self.tend_cache();
    }

    async fn bypass(&self, key: &StoredKey) -> LoadResult {
        self.counters.bypasses.bump();
        self.read(key).await
    }

    /// Returns `record`, which the database had at `made_at`, as this store caches it.
    pub(crate) fn value(&self, record: &Arc<Record>, made_at: Timestamp) -> Value {
        Value { record: Arc::clone(record), made_at, store: self.config.store_id }
    }

    /// Reads the database.
    pub(crate) async fn read(&self, key: &StoredKey) -> LoadResult {
        let found = self.bounded_read(pin!(self.db.load(key, self.runtime.now()))).await?;
        Ok(found.map(|record| Loaded { record: Arc::new(record), stamp: None }))
    }

    /// Runs one read for as long as the read timeout allows.
    pub(crate) async fn bounded_read<T>(
        &self,
        read: Pin<&mut (impl Future<Output = Result<T, PersistenceError>> + Send)>,
    ) -> Result<T, Error> {
        match select(read, self.runtime.sleep(self.config.read_timeout)).await {
            Either::Left((result, _)) => result.map_err(|error| Error::Database(Arc::new(error))),
            Either::Right(_) => Err(no_answer()),
        }
    }
}

fn no_answer() -> Error {
    Error::Database(Arc::new(PersistenceError::Unavailable("no answer within the read timeout".into())))
}
