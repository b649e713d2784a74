//! Memory alone, over a database that reports changes.

// Memory holds values, leases and fences, like the cache of a single process, and the store keeps them true by the same
// protocol. A report acts as a foreign writer: it removes values and leases, and makes fences dirty, so that the writer in
// this process publishes nothing. Everything else that removes a key does the same: see the rules in `mod.rs`.

use std::sync::Arc;
use std::time::Duration;

use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Near, StoredKey,
};

use super::source::DatabaseReports;
use super::{DEFAULT_BOUND, Inner, NearCache};
use crate::moka::MokaCache;

/// A cache in the memory of this process. The database reports other processes' writes to it.
pub type NotifiedCache = NearCache<DatabaseReports>;

/// Creates a near cache of `memory` with no shared cache behind it: the database of the store reports changes to it. Nothing
/// else may use `memory`. Building the store fails if the database does not report changes. Postgres does.
///
/// Every writer of the table must report its changes, so each store over the table needs such a cache.
///
/// ```
/// use cache_backends::moka::MokaCache;
/// use cache_backends::near::notified;
///
/// let cache = notified(MokaCache::builder().max_bytes(64 << 20).build());
/// ```
#[must_use]
pub fn notified(memory: MokaCache) -> NotifiedCache {
    NearCache { inner: Arc::new(Inner::new(memory, DatabaseReports::default())), bound: DEFAULT_BOUND }
}

impl Cache for NotifiedCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        self.inner.memory.get(key).await
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        self.inner.memory.compare_exchange(key, expected, new, ttl).await
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        // Look at the basis first, as for a hit. If memory is behind, answer as if another reader held the lease: the store
        // then reads the database, and fills nothing.
        if !self.inner.is_fresh(self.inner.now()) && !mutant!(NotifiedStaleLookup) {
            return Ok(Acquired::Found(lease));
        }
        self.inner.memory.acquire(key, lease, ttl).await
    }

    fn properties(&self) -> CacheProperties {
        self.inner.memory.properties()
    }

    #[inline]
    fn near(&self) -> Option<&dyn Near> {
        Some(self)
    }
}
