//! Backends that count their calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use session_cached_db::session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, ExpiredSessions, Persistence,
    PersistenceError, PersistenceProperties, Record, RecordWrite, StoredKey, Timestamp, Version,
};

/// A counter that can be read while it grows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicU64>);

impl Count {
    fn bump(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A cache that counts its calls, or a database that counts its statements.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    backend: T,
    count: Count,
}

impl<T> Counted<T> {
    pub(crate) fn new(backend: T) -> Self {
        Self { backend, count: Count::default() }
    }

    pub(crate) fn count(&self) -> Count {
        self.count.clone()
    }

    fn counted(&self) -> &T {
        self.count.bump();
        &self.backend
    }
}

impl<C: Cache> Cache for Counted<C> {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        self.counted().get(key).await
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        self.counted().compare_exchange(key, expected, new, ttl).await
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        self.counted().acquire(key, lease, ttl).await
    }

    fn server(&self, key: &StoredKey) -> usize {
        self.backend.server(key)
    }

    fn properties(&self) -> CacheProperties {
        self.backend.properties()
    }
}

impl<P: Persistence> Counted<P> {
    /// Counts the second statement of a write that has matched no row. It finds out why.
    fn count_question<T>(&self, result: Result<T, PersistenceError>) -> Result<T, PersistenceError> {
        if matches!(result, Err(PersistenceError::Conflict | PersistenceError::NotFound)) {
            self.count.bump();
        }
        result
    }
}

impl<P: Persistence> Persistence for Counted<P> {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        self.counted().load(key, now).await
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        self.counted().insert(key, record).await
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.count_question(self.counted().update(key, write, now).await)
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        self.counted().touch(key, expires_at, idle_since, now).await
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.count_question(self.counted().rename(old, new, write, now).await)
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        self.counted().delete(key).await
    }

    async fn delete_all(&self, keys: &[StoredKey]) -> Result<Vec<StoredKey>, PersistenceError> {
        self.counted().delete_all(keys).await
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        self.counted().delete_expired(before, limit).await
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        self.counted().now().await
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.counted().migrate().await
    }

    fn schema_sql(&self) -> String {
        self.backend.schema_sql()
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        self.counted().check_schema().await
    }

    fn properties(&self) -> PersistenceProperties {
        self.backend.properties()
    }
}
