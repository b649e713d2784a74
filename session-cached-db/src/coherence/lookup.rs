use std::sync::Arc;
use std::time::Duration;

use session_core::{Acquired, Cache, Entry, Near, Record, Stamp, State, StoredKey, protocol};

use super::CoherentCache;
use super::guard::Gate;

/// The maximum time by which [`Runtime::coarse_now`](session_core::Runtime::coarse_now) is behind.
const COARSE: Duration = Duration::from_millis(20);

/// A record, from the cache or from the database.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) record: Arc<Record>,
    /// The stamp of the cache's entry, if it holds this record.
    pub(crate) stamp: Option<Stamp>,
}

/// The cache's answer to a load.
pub(crate) enum Lookup {
    /// The record.
    Hit(Loaded),
    /// Nothing is there, and the caller holds the lease: read the database, then fill the key or release the lease.
    Leased(Stamp),
    /// Another reader or a writer is at the key, or the cache must not be asked: read the database, and fill nothing.
    Bypass,
}

impl<C: Cache> CoherentCache<C> {
    /// Returns the record under `key`, if the cache is one in this process, or a near one, and has it in memory. Cheaper
    /// than a [lookup](Self::lookup).
    #[inline]
    pub(crate) async fn local_hit(&self, key: &StoredKey) -> Option<Loaded> {
        if let Some(near) = self.cache.near() {
            mutant!(NearFreshnessLast => return self.near_hit_freshness_last(near, key).await);
            return self.near_hit(near, key);
        }
        if self.cache.is_local()
            && !self.repairs.holds(key)
            && let Ok(Some(entry)) = self.cache.get(key, Gate::Respect).await
        {
            return self.hit(entry);
        }
        None
    }

    #[inline]
    fn near_hit(&self, near: &dyn Near, key: &StoredKey) -> Option<Loaded> {
        let entry = near.peek(key)?;
        if self.repairs.holds(key) {
            return None;
        }
        let hit = self.hit(entry)?;
        self.telemetry.counters.near_hits.bump();
        Some(hit)
    }

    /// Removes the session from the memory of a near cache. A load that has read the database calls this before it shows
    /// what it has read.
    pub(crate) fn forget_near(&self, key: &StoredKey) {
        if let Some(near) = self.cache.near() {
            near.forget(key);
        }
    }

    /// Asks the cache for the record, or for the right to fill it.
    pub(crate) async fn lookup(self: &Arc<Self>, key: &StoredKey) -> Lookup {
        if self.repairs.holds(key) {
            return Lookup::Bypass;
        }
        let lease = self.stamp();
        match self.cache.acquire(key, Entry::lease(lease), self.settings.lease_ttl).await {
            Ok(Acquired::Placed) => Lookup::Leased(lease),
            Ok(Acquired::Found(entry)) => self.hit(entry).map_or(Lookup::Bypass, Lookup::Hit),
            Err(_) => {
                mutant!(LeaseRetriedAsItWas => return self.look_up_again(key, lease).await);
                // The lease may have been placed, or may be later. It is never used, and ends by itself.
                self.tend();
                Lookup::Bypass
            }
        }
    }

    /// Returns the record in `entry`, if it may be shown.
    pub(super) fn hit(&self, entry: Entry) -> Option<Loaded> {
        let State::Value(value) = entry.state else { return None };
        if value.store != self.settings.store_id {
            return None;
        }
        let is_servable_at = |now| protocol::is_servable(&value, now, self.max_cache_age());
        // Ask for the exact time only where it matters: it would take a third of a hit's own time.
        let is_servable =
            is_servable_at(self.runtime.coarse_now() + COARSE) || is_servable_at(self.runtime.now());
        (is_servable || mutant!(TtlTrusted)).then(|| {
            self.telemetry.counters.hits.bump();
            Loaded { record: value.record, stamp: Some(entry.stamp) }
        })
    }
}
