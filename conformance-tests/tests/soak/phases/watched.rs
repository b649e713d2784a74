//! A cache that counts the values it answers with, by key and by the server that has the key.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, State, StoredKey,
};

/// The largest number of servers of a cache.
pub(crate) const MAX_SERVERS: usize = 4;

#[derive(Debug)]
pub(crate) struct Watched<C> {
    cache: C,
    keys: RwLock<HashMap<StoredKey, Answered>>,
    values: [AtomicU64; MAX_SERVERS],
}

/// The number of times that the cache answered with the value of a key.
#[derive(Debug)]
struct Answered {
    home: usize,
    times: AtomicU64,
}

impl<C> Watched<C> {
    pub(crate) fn new(cache: C) -> Self {
        Self { cache, keys: RwLock::default(), values: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Counts the values of this key, which is on the server of this number.
    pub(crate) fn watch(&self, key: StoredKey, home: usize) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.entry(key).or_insert(Answered { home, times: AtomicU64::new(0) });
    }

    /// Returns how often each server answered with a value of a watched key.
    pub(crate) fn values(&self) -> Vec<u64> {
        self.values.iter().map(|values| values.load(Ordering::Relaxed)).collect()
    }

    /// Returns how often the cache answered with the value of this key.
    pub(crate) fn times(&self, key: &StoredKey) -> u64 {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(key).map_or(0, |answered| answered.times.load(Ordering::SeqCst))
    }

    fn count(&self, key: &StoredKey, found: Option<&Entry>) {
        if !found.is_some_and(|entry| matches!(entry.state, State::Value(_))) {
            return;
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(answered) = keys.get(key) else { return };
        answered.times.fetch_add(1, Ordering::SeqCst);
        if let Some(values) = self.values.get(answered.home) {
            values.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<C: Cache> Cache for Watched<C> {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let found = self.cache.get(key).await?;
        self.count(key, found.as_ref());
        Ok(found)
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        self.cache.compare_exchange(key, expected, new, ttl).await
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        let acquired = self.cache.acquire(key, lease, ttl).await?;
        if let Acquired::Found(entry) = &acquired {
            self.count(key, Some(entry));
        }
        Ok(acquired)
    }

    fn server(&self, key: &StoredKey) -> usize {
        self.cache.server(key)
    }

    fn properties(&self) -> CacheProperties {
        self.cache.properties()
    }
}
