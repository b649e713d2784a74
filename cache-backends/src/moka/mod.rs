//! A cache in this process's memory, over the crate `moka`.

// moka evicts whatever it likes, so it holds values only. Leases and fences are in a table beside it, and every change of
// a key is made under the lock of the key's shard there. Two rules make one register per key of the two:
//
// - A key is in at most one of them, except while its shard is locked.
// - A value has left moka before the exchange that replaces it returns.
//
// So a value found in moka without the lock was there at that moment. When moka has none, both are asked again under the
// lock, because the key may just have been on its way from one to the other.

mod builder;
mod clock;
mod key;
mod pending;
#[cfg(test)]
mod tests;
mod weight;

use std::fmt;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use foldhash::fast::RandomState;
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, Stamp, State, StoredKey,
    Value,
};

pub use self::builder::MokaCacheBuilder;
use self::clock::{Clock, Tick};
use self::key::Key;
use self::pending::{Pending, Shard};
use crate::{Inspect, Inspection};

/// A cache in this process's memory, bounded by bytes. Cloning it gives another handle to the same cache.
///
/// ```
/// use cache_backends::moka::MokaCache;
///
/// let cache = MokaCache::builder().max_bytes(64 << 20).build();
/// ```
///
/// # Behavior
///
/// - Every call returns at once and never fails.
/// - A value that everybody reads is the same [`Record`](session_core::Record): it is decoded once.
/// - The values together take no more than about [`max_bytes`](MokaCacheBuilder::max_bytes) of memory, what that does not count
///   set aside; those not used for the longest time make room for new ones.
/// - Leases and fences are never evicted. There is one per operation in flight, and one whose owner has gone is dropped
///   after its TTL, at the latest when many others have come.
#[derive(Clone)]
pub struct MokaCache {
    values: moka::sync::Cache<Key, Held, RandomState>,
    pending: Arc<Pending>,
    clock: Clock,
    max_bytes: u64,
}

/// A value as moka keeps it. A reader's copy costs one reference count.
#[derive(Clone)]
struct Held {
    stamp: Stamp,
    value: Value,
    deadline: Tick,
}

impl MokaCache {
    /// Starts to describe a cache.
    pub fn builder() -> MokaCacheBuilder {
        MokaCacheBuilder::new()
    }

    /// The hit: one lookup, no lock, no allocation. Inlined into the caller's crate, with what calls it, because moving the
    /// entry from function to function would cost a sixth of it.
    #[inline]
    fn hit(&self, key: &StoredKey) -> Option<Entry> {
        let held = self.values.get(key)?;
        (self.clock.now() < held.deadline).then(|| Entry::value(held.stamp, held.value))
    }

    fn lock(&self, key: &StoredKey) -> Locked<'_> {
        Locked { cache: self, key: *key, shard: self.pending.lock(key), now: self.clock.now() }
    }
}

/// One key whose shard is locked: nobody else changes what is there, except that moka may evict a value.
struct Locked<'a> {
    cache: &'a MokaCache,
    key: StoredKey,
    shard: MutexGuard<'a, Shard>,
    now: Tick,
}

impl Locked<'_> {
    fn get(&mut self) -> Option<Entry> {
        if let Some(entry) = self.shard.get(&self.key, self.now) {
            return Some(entry);
        }
        let held = self.cache.values.get(&self.key)?;
        if self.now < held.deadline {
            return Some(Entry::value(held.stamp, held.value));
        }
        self.cache.values.invalidate(&self.key);
        None
    }

    fn put(&mut self, new: Option<Entry>, ttl: Duration) {
        let deadline = self.now.after(ttl);
        match new.filter(|_| !ttl.is_zero()) {
            None => {
                self.cache.values.invalidate(&self.key);
                self.shard.remove(&self.key);
            }
            Some(Entry { stamp, state: State::Value(value) }) => {
                self.shard.remove(&self.key);
                self.cache.values.insert(Key::from(&self.key), Held { stamp, value, deadline });
            }
            Some(pending) => {
                self.cache.values.invalidate(&self.key);
                self.shard.insert(self.key, pending, deadline, self.now);
            }
        }
    }
}

impl Cache for MokaCache {
    #[inline]
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        if let Some(found) = self.hit(key) {
            return Ok(Some(found));
        }
        Ok(self.lock(key).get())
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let mut locked = self.lock(key);
        let found = locked.get();
        let as_expected = match expected {
            Expected::Vacant => found.is_none(),
            Expected::Stamp(stamp) => found.as_ref().is_some_and(|entry| entry.stamp == stamp),
        };
        if !as_expected {
            return Ok(Exchange::Lost(found));
        }
        locked.put(new, ttl);
        Ok(Exchange::Stored)
    }

    #[inline]
    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        if let Some(found) = self.hit(key) {
            return Ok(Acquired::Found(found));
        }
        let mut locked = self.lock(key);
        if let Some(found) = locked.get() {
            return Ok(Acquired::Found(found));
        }
        locked.put(Some(lease), ttl);
        Ok(Acquired::Placed)
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Process)
            .with_name("moka")
            .with_max_entry_bytes(usize::try_from(self.max_bytes).unwrap_or(usize::MAX))
            .with_ttl_granularity(clock::GRANULARITY)
    }
}

#[async_trait]
impl Inspect for MokaCache {
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError> {
        Ok(Vec::new())
    }
}

impl fmt::Debug for MokaCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaCache").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}
