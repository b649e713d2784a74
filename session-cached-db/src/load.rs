//! Reading a session: from the cache, or from the database under a lease.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{
    Acquired, Cache, Entry, Exchange, Expected, Persistence, PersistenceError, Stamp, State, StoredKey,
    Value, protocol,
};
use tracing::Instrument as _;

use crate::Error;
use crate::cache_guard::Gate;
use crate::flight::{Call, LoadResult, Loaded, Role};
use crate::inner::Inner;

/// How far [`Runtime::roughly_now`](session_core::Runtime::roughly_now) may be behind.
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

impl Look {
    const fn lease(&self) -> Option<Stamp> {
        match self {
            Self::Leased(lease) => Some(*lease),
            Self::Hit(_) | Self::Bypass => None,
        }
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// The session under `key`. Whoever drops this leaves nobody else waiting, and nothing half done.
    pub(crate) async fn load(self: &Arc<Self>, key: &StoredKey) -> Result<Option<Loaded>, Error> {
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

    /// The same, shared with all who load this key now.
    async fn load_shared(self: &Arc<Self>, key: &StoredKey) -> Result<Option<Loaded>, Error> {
        let result = match self.flights.join(key) {
            Role::Follower(answer) => {
                self.counters.joined.bump();
                answer.await.map_err(|_| Error::Interrupted)?
            }
            Role::Loner => Box::pin(self.bypass(key)).await,
            Role::Leader(call) => {
                let mut lead = Lead { store: self, key, lease: None, is_over: false };
                let looked = self.look(key).await;
                lead.lease = looked.lease();
                let (call, result) = self.attempt(key, call, looked).await;
                lead.land(call, &result);
                result
            }
        };
        result.map_err(Error::Database)
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
        let is_servable_at = |now| protocol::is_servable(&value, now, self.config.max_cache_age);
        // The exact time is asked for where it matters: a hit spends a third of its own time on that.
        let is_servable =
            is_servable_at(self.runtime.roughly_now() + ROUGHLY) || is_servable_at(self.runtime.now());
        (is_servable || mutant!(TtlTrusted)).then(|| {
            self.counters.hits.bump();
            Loaded { record: value.record, stamp: Some(entry.stamp) }
        })
    }

    /// Serves everybody who waits for `key`, with as many attempts as that takes.
    async fn fly(self: &Arc<Self>, key: &StoredKey, mut call: Call, mut looked: Look) {
        loop {
            let (good_from, result) = self.attempt(key, call, looked).await;
            if !self.flights.serve(key, good_from, &result) {
                return;
            }
            call = self.flights.send(key);
            looked = self.look(key).await;
        }
    }

    /// Gets the record after a look into the cache, which was sent as `call`. Tells for whom it is good.
    async fn attempt(&self, key: &StoredKey, call: Call, looked: Look) -> (Call, LoadResult) {
        match looked {
            Look::Hit(hit) => (call, Ok(Some(hit))),
            // Apart, so that a hit does not carry the size of what follows a miss.
            Look::Leased(lease) => Box::pin(self.fill(key, lease)).await,
            Look::Bypass => (self.flights.send(key), Box::pin(self.bypass(key)).await),
        }
    }

    /// Reads the database and fills the key, for which we hold `lease`. Tells for whom the result is good.
    async fn fill(&self, key: &StoredKey, lease: Stamp) -> (Call, LoadResult) {
        let read = self.flights.send(key);
        let made_at = self.runtime.now();
        self.counters.misses.bump();
        let found = self.read(key).await;
        let value = match &found {
            // What cannot be decoded stays out: once its row was repaired, nobody is to be shown it any more. Decoding
            // it here costs nothing, because whoever waits for it shares the result.
            Ok(Some(loaded)) if loaded.record.decode(key, &*self.codec).is_ok() => {
                self.cacheable(key, Value { record: Arc::clone(&loaded.record), made_at })
            }
            // Nothing to fill with: the lease is given back.
            Ok(_) | Err(_) => None,
        };
        let Some(value) = value else {
            self.release(key, lease).await;
            return (read, found);
        };
        let fill = self.flights.send(key);
        match self.fill_lease(key, lease, value).await {
            Some(stamp) => {
                self.counters.fills.bump();
                let fill = if mutant!(LateFollower) { self.flights.send(key) } else { fill };
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
    pub(crate) async fn fill_lease(&self, key: &StoredKey, lease: Stamp, value: Value) -> Option<Stamp> {
        mutant!(NoLeaseCheck => return self.fill_anyway(key, lease, value).await);
        mutant!(FillAfterDelete => return self.fill_anyway(key, lease, value).await);
        let stamp = self.stamp();
        let ttl = protocol::value_ttl(&value, self.runtime.now(), self.config.max_cache_age);
        let new = Some(Entry::value(stamp, value));
        let exchange = self.cache.compare_exchange(key, Expected::Stamp(lease), new, ttl, Gate::Respect);
        match exchange.await {
            Ok(Exchange::Stored) => Some(stamp),
            Ok(Exchange::Lost(_)) => None,
            Err(error) => {
                if !error.is_retryable() {
                    // Refused, as too large for instance: others need not wait until the lease ends.
                    self.release(key, lease).await;
                }
                None
            }
        }
    }

    /// Gives our lease back. If that fails, it ends by itself.
    pub(crate) async fn release(&self, key: &StoredKey, lease: Stamp) {
        let expected = Expected::Stamp(lease);
        let _ = self.cache.compare_exchange(key, expected, None, self.config.lease_ttl, Gate::Respect).await;
    }

    async fn bypass(&self, key: &StoredKey) -> LoadResult {
        self.counters.bypasses.bump();
        self.read(key).await
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
    ) -> Result<T, Arc<PersistenceError>> {
        let result = match select(read, self.runtime.sleep(self.config.read_timeout)).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => {
                Err(PersistenceError::Unavailable("no answer within the read timeout".into()))
            }
        };
        result.map_err(Arc::new)
    }
}

/// The caller who makes a flight's first attempt.
struct Lead<'a, C: Cache, P: Persistence> {
    store: &'a Arc<Inner<C, P>>,
    key: &'a StoredKey,
    /// What it holds, from the look on.
    lease: Option<Stamp>,
    is_over: bool,
}

impl<C: Cache, P: Persistence> Lead<'_, C, P> {
    /// The attempt has a result. Those who came too late for it are served by a task.
    fn land(mut self, call: Call, result: &LoadResult) {
        self.is_over = true;
        if self.store.flights.serve(self.key, call, result) {
            self.fly(None);
        }
    }

    fn fly(&self, lease: Option<Stamp>) {
        let flight = InFlight { store: Arc::clone(self.store), key: *self.key, is_over: false };
        self.store.runtime.spawn(Box::pin(async move {
            // All of it moves in here, to be dropped here.
            let mut flight = flight;
            let call = flight.store.flights.send(&flight.key);
            let looked = match lease {
                Some(lease) => Look::Leased(lease),
                None => flight.store.look(&flight.key).await,
            };
            flight.store.fly(&flight.key, call, looked).await;
            flight.is_over = true;
        }));
    }
}

/// The caller has left in the middle of the attempt. A task makes it again, if somebody waits or a lease is to be ended.
impl<C: Cache, P: Persistence> Drop for Lead<'_, C, P> {
    fn drop(&mut self) {
        if !self.is_over && (self.lease.is_some() || self.store.flights.end_if_empty(self.key)) {
            self.fly(self.lease);
        }
    }
}

/// A flight whose task is stopped, by a panic or by the end of the runtime, leaves nobody waiting.
struct InFlight<C, P> {
    store: Arc<Inner<C, P>>,
    key: StoredKey,
    is_over: bool,
}

impl<C, P> Drop for InFlight<C, P> {
    fn drop(&mut self) {
        if !self.is_over {
            self.store.flights.abandon(&self.key);
        }
    }
}
