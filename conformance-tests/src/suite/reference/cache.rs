use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use session_core::{Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, StoredKey};

/// A cache that loses nothing before its TTL: a map under a lock. A clone is another handle to the same
/// cache.
#[derive(Clone, Debug, Default)]
pub struct MemoryCache {
    entries: Arc<Mutex<HashMap<StoredKey, Kept>>>,
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    until: Instant,
}

impl MemoryCache {
    fn lock(&self) -> MutexGuard<'_, HashMap<StoredKey, Kept>> {
        self.entries.lock().expect("no holder of the lock panics")
    }
}

fn living(entries: &HashMap<StoredKey, Kept>, key: &StoredKey) -> Option<Entry> {
    entries.get(key).filter(|kept| Instant::now() < kept.until).map(|kept| kept.entry.clone())
}

impl Cache for MemoryCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        Ok(living(&self.lock(), key))
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let mut entries = self.lock();
        let found = living(&entries, key);
        let is_expected = match expected {
            Expected::Vacant => found.is_none(),
            Expected::Stamp(stamp) => found.as_ref().is_some_and(|entry| entry.stamp == stamp),
        };
        if !is_expected {
            return Ok(Exchange::Lost(found));
        }
        match new.filter(|_| !ttl.is_zero()) {
            Some(entry) => entries.insert(*key, Kept { entry, until: Instant::now() + ttl }),
            None => entries.remove(key),
        };
        Ok(Exchange::Stored)
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Process)
    }
}
