//! Caches that lie, to show that lies are detected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use session_core::{
    Acquired, BoxFuture, Cache, CacheError, CacheProperties, DatabaseNotices, Entry, Exchange, Expected,
    Near, NearObserver, NearSource, Runtime, State, StoredKey,
};

/// A cache that answers, now and then, with the first value that it has seen under a key.
#[derive(Debug)]
pub(crate) struct StaleCache<C> {
    cache: C,
    first: Mutex<HashMap<String, Entry>>,
}

impl<C: Cache> StaleCache<C> {
    pub(crate) fn new(cache: C) -> Self {
        Self { cache, first: Mutex::default() }
    }

    fn old(&self, key: &StoredKey, found: Option<&Entry>) -> Option<Entry> {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = found
            && matches!(entry.state, State::Value(_))
        {
            first.entry(key.as_str().to_owned()).or_insert_with(|| entry.clone());
        }
        if fastrand::u8(..) < 64 { first.get(key.as_str()).cloned() } else { None }
    }
}

impl<C: Cache> Cache for StaleCache<C> {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let found = self.cache.get(key).await?;
        Ok(self.old(key, found.as_ref()).or(found))
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
        let Acquired::Found(found) = acquired else { return Ok(acquired) };
        Ok(Acquired::Found(self.old(key, Some(&found)).unwrap_or(found)))
    }

    fn server(&self, key: &StoredKey) -> usize {
        self.cache.server(key)
    }

    fn properties(&self) -> CacheProperties {
        self.cache.properties()
    }
}

/// A near cache that answers from memory for longer than it says.
#[derive(Debug)]
pub(crate) struct Overdue<C>(pub(crate) C);

impl<C: Cache> Overdue<C> {
    fn inner(&self) -> &dyn Near {
        self.0.near().expect("it is in front of a near cache")
    }
}

impl<C: Cache> Cache for Overdue<C> {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        self.0.get(key).await
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        self.0.compare_exchange(key, expected, new, ttl).await
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        self.0.acquire(key, lease, ttl).await
    }

    fn properties(&self) -> CacheProperties {
        self.0.properties()
    }

    fn near(&self) -> Option<&dyn Near> {
        Some(self)
    }
}

impl<C: Cache> Near for Overdue<C> {
    fn peek(&self, key: &StoredKey) -> Option<Entry> {
        self.inner().peek(key)
    }

    fn forget(&self, key: &StoredKey) {
        self.inner().forget(key);
    }

    fn watch(&self, key: &StoredKey) -> Option<BoxFuture<bool>> {
        self.inner().watch(key)
    }

    fn freshness_bound(&self) -> Duration {
        Duration::from_nanos(super::run::BOUND)
    }

    fn refusal(&self) -> Option<&'static str> {
        self.inner().refusal()
    }

    fn source(&self) -> NearSource {
        self.inner().source()
    }

    fn start(
        &self,
        runtime: &Arc<dyn Runtime>,
        observer: Arc<dyn NearObserver>,
        notices: Option<Arc<dyn DatabaseNotices>>,
    ) -> Result<(), &'static str> {
        self.inner().start(runtime, observer, notices)
    }

    fn stop(&self) -> BoxFuture<()> {
        self.inner().stop()
    }

    #[cfg(feature = "simulation")]
    fn __peek_anyway(&self, key: &StoredKey) -> Option<Entry> {
        self.inner().__peek_anyway(key)
    }

    #[cfg(feature = "simulation")]
    fn __is_fresh(&self) -> bool {
        self.inner().__is_fresh()
    }
}
