//! A cache in this process's memory, over the crate `moka`.

// moka may evict any entry, so it holds values only. Leases and fences are in a table beside it, and every
// change of a key is made under the lock of the key's shard there. Two rules turn the two into one register
// per key:
//
// - A key is in at most one of them, except while its shard is locked.
// - A value has left moka before the exchange that replaces it returns.
//
// So a value found in moka without the lock was there at that moment. If moka has no value, both are asked
// again under the lock, because the key may just have been on its way from one to the other.

mod builder;
pub(crate) mod clock;
mod held;
mod inspect;
mod key;
mod pending;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use foldhash::fast::RandomState;
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, State, StoredKey,
};

pub use self::builder::MokaCacheBuilder;
use self::clock::{Clock, Tick};
use self::held::Held;
use self::key::Key;
use self::pending::{Pending, Shard};

/// The name in metrics.
const NAME: &str = "moka";

/// A cache in this process's memory, bounded by bytes. Cloning it creates another handle to the same cache.
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
/// - All readers of a value share one [`Record`](session_core::Record), which is decoded once.
/// - All values together take about [`max_bytes`](MokaCacheBuilder::max_bytes) of memory at most, apart from
///   what that does not count. The least recently used values make room for new ones.
/// - Leases and fences are never evicted. There is one per operation in flight. If its owner was dropped, it is
///   dropped after its TTL, at the latest when many others have come.
#[derive(Clone)]
pub struct MokaCache {
    values: moka::sync::Cache<Key, Held, RandomState>,
    pending: Arc<Pending>,
    /// Values and leases of an older generation count as removed, and fences as dirty. So everything can be removed at one
    /// moment.
    generation: Arc<AtomicU64>,
    clock: Clock,
    max_bytes: u64,
}

impl MokaCache {
    /// Returns a builder with the default options.
    pub fn builder() -> MokaCacheBuilder {
        MokaCacheBuilder::new()
    }

    /// Returns the value under `key` by one lookup, without a lock or an allocation: the hit.
    ///
    /// This and its callers are inlined into the caller's crate, because passing the entry from function to
    /// function would cost a sixth of a hit.
    #[inline]
    pub(crate) fn hit(&self, key: &StoredKey, now: Tick) -> Option<Entry> {
        let held = self.values.get(key)?;
        let is_present = held.generation == self.generation() || mutant!(NearValuesKept);
        (is_present && now < held.deadline).then(|| Entry::value(held.stamp, held.value))
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn lock(&self, key: &StoredKey) -> Locked<'_> {
        let shard = self.pending.lock(key);
        Locked { cache: self, key: *key, shard, now: self.clock.now(), generation: self.generation() }
    }

    fn exchange(&self, key: &StoredKey, expected: Expected, new: Option<Entry>, ttl: Duration) -> Exchange {
        let mut locked = self.lock(key);
        let found = locked.get();
        let as_expected = match expected {
            Expected::Vacant => found.is_none(),
            Expected::Stamp(stamp) => found.as_ref().is_some_and(|entry| entry.stamp == stamp),
        };
        if !as_expected {
            return Exchange::Lost(found);
        }
        locked.put(new, ttl);
        Exchange::Stored
    }
}

/// The memory of a near cache, which does more than every cache can.
#[cfg(feature = "near")]
impl MokaCache {
    pub(crate) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Places `entry` under `key`, whatever is there.
    pub(crate) fn place(&self, key: &StoredKey, entry: Entry, ttl: Duration) {
        self.lock(key).put(Some(entry), ttl);
    }

    /// Replaces the lease with this stamp by `value`, if it is still there.
    pub(crate) fn fill(&self, key: &StoredKey, lease: session_core::Stamp, value: Entry, ttl: Duration) {
        self.exchange(key, Expected::Stamp(lease), Some(value), ttl);
    }

    /// Removes the value or the lease under `key`. A fence stays, and becomes dirty.
    pub(crate) fn remove(&self, key: &StoredKey) {
        let mut locked = self.lock(key);
        locked.cache.values.invalidate(key);
        locked.shard.spoil(key);
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn remove_value(&self, key: &StoredKey) {
        self.values.invalidate(key);
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn present(&self, key: &StoredKey) -> Option<Entry> {
        self.lock(key).get()
    }

    /// Removes all values and leases, and makes all fences dirty, at one moment.
    pub(crate) fn remove_all(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// A key whose shard is locked. No other caller changes its entry meanwhile, but moka may evict a value.
struct Locked<'a> {
    cache: &'a MokaCache,
    key: StoredKey,
    shard: MutexGuard<'a, Shard>,
    now: Tick,
    generation: u64,
}

impl Locked<'_> {
    fn get(&mut self) -> Option<Entry> {
        if let Some(entry) = self.shard.get(&self.key, self.now, self.generation) {
            return Some(entry);
        }
        let held = self.cache.values.get(&self.key)?;
        let is_present = held.generation == self.generation || mutant!(NearValuesKept);
        if is_present && self.now < held.deadline {
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
                let generation = self.generation;
                self.cache.values.insert(Key::from(&self.key), Held { stamp, value, deadline, generation });
            }
            Some(pending) => {
                self.cache.values.invalidate(&self.key);
                self.shard.insert(self.key, pending, deadline, self.generation, self.now);
            }
        }
    }
}

impl Cache for MokaCache {
    #[inline]
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        if let Some(found) = self.hit(key, self.clock.now()) {
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
        Ok(self.exchange(key, expected, new, ttl))
    }

    #[inline]
    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        if let Some(found) = self.hit(key, self.clock.now()) {
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
            .with_name(NAME)
            .with_max_entry_bytes(usize::try_from(self.max_bytes).unwrap_or(usize::MAX))
            .with_ttl_granularity(clock::GRANULARITY)
    }
}

impl fmt::Debug for MokaCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaCache").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}
