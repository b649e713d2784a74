use std::sync::Arc;

use session_core::{Acquired, Cache, Entry, Exchange, Expected, Stamp, StoredKey, Value};

use super::CoherentCache;

impl<C: Cache> CoherentCache<C> {
    /// Replaces our lease by `value`, or releases it if there is none to publish. Returns the stamp under which the value is
    /// surely there.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        key: &StoredKey,
        lease: Stamp,
        value: Option<Value>,
    ) -> Option<Stamp> {
        match value {
            Some(value) => self.replace_lease(key, lease, value).await,
            None => {
                self.release(key, lease).await;
                None
            }
        }
    }

    async fn replace_lease(self: &Arc<Self>, key: &StoredKey, lease: Stamp, value: Value) -> Option<Stamp> {
        mutant!(NoLeaseCheck => return self.fill_anyway(key, lease, value).await);
        mutant!(FillAfterDelete => return self.fill_anyway(key, lease, value).await);
        let (entry, ttl) = self.value_entry(value);
        let stamp = entry.stamp;
        match self.cache.compare_exchange(key, Expected::Stamp(lease), Some(entry), ttl).await {
            Ok(Exchange::Stored) => Some(stamp),
            Ok(Exchange::Lost(_)) => None,
            Err(error) => {
                if error.is_retryable() {
                    self.repair_lost_lease(key);
                } else {
                    // The value was refused, as too large for instance: others need not wait until the lease ends.
                    self.release(key, lease).await;
                }
                None
            }
        }
    }

    /// Removes our lease. If that fails, the lease ends by itself.
    async fn release(self: &Arc<Self>, key: &StoredKey, lease: Stamp) {
        let expected = Expected::Stamp(lease);
        let exchange = self.cache.compare_exchange(key, expected, None, self.settings.lease_ttl);
        if exchange.await.is_err() {
            self.repair_lost_lease(key);
        }
    }

    /// Queues the repair of a lease of ours that is left in the cache: it would keep the key out until it ends.
    fn repair_lost_lease(self: &Arc<Self>, key: &StoredKey) {
        let obsolete_at = self.runtime.now() + self.settings.lease_ttl;
        self.repairs.add_fenced(key, self.token(), obsolete_at);
        // The failure may have opened the breaker, too.
        self.tend();
    }

    /// Places a lease on a key that is about to come into being. Returns `None` if the lease is not surely ours.
    pub(crate) async fn lease_new(self: &Arc<Self>, key: &StoredKey) -> Option<Stamp> {
        let lease = self.stamp();
        match self.cache.acquire(key, Entry::lease(lease), self.settings.lease_ttl).await {
            Ok(Acquired::Placed) => Some(lease),
            Ok(Acquired::Found(_)) => None,
            Err(_) => {
                self.tend();
                None
            }
        }
    }

    /// Fills a key that has come into being, or releases its lease if it has not. Without a lease there is nothing to do.
    pub(crate) async fn fill_new(
        self: &Arc<Self>,
        key: &StoredKey,
        lease: Option<Stamp>,
        value: Option<Value>,
    ) -> Option<Stamp> {
        self.fill(key, lease?, value).await
    }
}
