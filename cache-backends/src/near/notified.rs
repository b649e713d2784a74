//! Memory alone, over a database that reports changes.

// The memory holds what a cache of one process holds: values, leases and fences, and the store keeps them true by the same
// protocol. Reports are foreign writers in it: they remove values and leases, and make fences dirty, so that the writer in
// this process publishes nothing. So does whatever else removes a key: see the rules in `mod.rs`.

use std::sync::Arc;
use std::time::Duration;

use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Near, StoredKey,
};

use super::source::DatabaseReports;
use super::{DEFAULT_BOUND, Inner, NearCache};
use crate::moka::MokaCache;

/// A cache in the memory of this process which the database tells of other processes' writes.
pub type NotifiedCache = NearCache<DatabaseReports>;

/// Creates a near cache of `memory`, which nothing else may use, with no shared cache behind it: the database of the store
/// tells it of changes. Building the store fails if the database cannot do that. Postgres can.
///
/// Every writer of the table must report its changes: each store over it needs such a cache.
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
        // First, as at a hit. The lease is then as good as another reader's: the store reads the database, and fills nothing.
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
