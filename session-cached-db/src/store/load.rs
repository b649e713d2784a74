//! Reading a session: from the cache, or from the database under a lease.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use session_core::{Cache, Persistence, Stamp, StoredKey};
use tracing::Instrument as _;

use super::database::no_answer;
use super::inner::Inner;
use super::single_flight::{Attempted, Calls, LoadResult, Waiter};
use crate::coherence::{Loaded, Lookup};
use crate::runtime::within;

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Returns the session under `key`. Dropping the future holds up no other load, and leaves nothing half done.
    pub(crate) async fn load(self: &Arc<Self>, key: &StoredKey) -> LoadResult {
        if let Some(hit) = self.cache.local_hit(key).await {
            return Ok(Some(hit));
        }
        // Boxed, so that a hit in this process does not carry its size.
        let span = tracing::debug_span!(target: "session_cached_db", "session_load", session = %self.telemetry.log_id(key));
        Box::pin(self.load_shared(key).instrument(span)).await
    }

    /// Loads the session in one attempt with all other loads of this key that are under way.
    async fn load_shared(self: &Arc<Self>, key: &StoredKey) -> LoadResult {
        let Some(mut waiter) = self.join(key) else { return self.bypass(key).await };
        // Read no clock for the first load of an attempt, because it waits for one attempt only.
        let came_at = waiter.may_wait_twice().then(|| self.runtime.now());
        if let Some(result) = waiter.wait().await {
            return result;
        }
        // This load came too late for that result. It waits for both attempts no longer than one of them may take.
        let waited = came_at.map_or(Duration::ZERO, |came_at| self.runtime.now().since(came_at));
        let left = self.settings.longest_load.saturating_sub(waited);
        match within(&*self.runtime, left, pin!(waiter.wait())).await {
            Some(Some(result)) => result,
            Some(None) => self.bypass(key).await,
            None => Err(no_answer()),
        }
    }

    fn join(self: &Arc<Self>, key: &StoredKey) -> Option<Waiter> {
        let waiter = self.single_flight.join(key, &self.runtime, |calls| {
            let (store, key) = (Arc::clone(self), *key);
            async move { store.attempt(&key, &calls).await }
        })?;
        if waiter.has_joined() {
            self.telemetry.counters.joined.bump();
        }
        Some(waiter)
    }

    /// Gets the record from the cache or from the database. Returns it with the call that produced it.
    async fn attempt(self: &Arc<Self>, key: &StoredKey, calls: &Calls) -> Attempted {
        let call = calls.send();
        match self.cache.lookup(key).await {
            Lookup::Hit(hit) => (call, Ok(Some(hit))),
            // Boxed, so that a hit does not carry the size of what follows a miss.
            Lookup::Leased(lease) => Box::pin(self.fill(key, lease, calls)).await,
            Lookup::Bypass => (calls.send(), Box::pin(self.bypass(key)).await),
        }
    }

    /// Reads the database and fills the key, for which this attempt holds `lease`.
    async fn fill(self: &Arc<Self>, key: &StoredKey, lease: Stamp, calls: &Calls) -> Attempted {
        let read = calls.send();
        let made_at = self.runtime.now();
        self.telemetry.counters.misses.bump();
        // Do not make a near cache forget the key, as a bypass does: the lease would go, too.
        let found = self.read_leased(key).await;
        let value = match &found {
            // A payload that cannot be decoded stays out of the cache: once its row is repaired, no one is to be shown it any
            // more. Decoding it here costs nothing, because every load that waits for it shares the result.
            Ok(Some(loaded)) if loaded.record.decode(key, &*self.codec).is_ok() => {
                self.cache.value(key, &loaded.record, made_at)
            }
            Ok(_) | Err(_) => None,
        };
        let has_value = value.is_some();
        let fill = if has_value { calls.send() } else { read };
        match self.cache.fill(key, lease, value).await {
            Some(stamp) => {
                self.telemetry.counters.fills.bump();
                // While the lease held, no one has committed a change: the record is good up to here, unless memory may not
                // have heard of one.
                let is_good = self.cache.may_show(key) || mutant!(NotifiedFillUnchecked);
                let fill = if is_good { fill } else { read };
                let fill = if mutant!(LateFollower) { calls.send() } else { fill };
                (fill, found.map(|loaded| loaded.map(|loaded| Loaded { stamp: Some(stamp), ..loaded })))
            }
            None => {
                if has_value {
                    self.telemetry.counters.lost_fills.bump();
                }
                self.cache.forget_near(key);
                (read, found)
            }
        }
    }

    async fn bypass(&self, key: &StoredKey) -> LoadResult {
        self.telemetry.counters.bypasses.bump();
        self.read(key).await
    }

    /// Reads the database.
    pub(crate) async fn read(&self, key: &StoredKey) -> LoadResult {
        let found = self.read_leased(key).await?;
        self.cache.forget_near(key);
        Ok(found)
    }

    async fn read_leased(&self, key: &StoredKey) -> LoadResult {
        let found = self.db.load(key).await?;
        Ok(found.map(|record| Loaded { record: Arc::new(record), stamp: None }))
    }
}
