use std::collections::HashMap;
use std::hash::BuildHasher;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use session_core::{Entry, Stamp, State, StoredKey};

use super::clock::Tick;

/// The leases and fences of a cache, and the locks under which its keys change.
pub(super) struct Pending {
    shards: [Mutex<Shard>; Self::SHARDS],
    hasher: RandomState,
}

impl Pending {
    /// Many more shards than cores, so that calls for two keys rarely need the same shard at the same time.
    const SHARDS: usize = 64;

    pub(super) fn new(hasher: RandomState) -> Self {
        let shard =
            |_| Mutex::new(Shard { entries: HashMap::with_hasher(hasher.clone()), sweep_at: Shard::SMALL });
        Self { shards: std::array::from_fn(shard), hasher }
    }

    /// Locks the shard of `key`.
    #[expect(clippy::indexing_slicing, reason = "a remainder of the length")]
    pub(super) fn lock(&self, key: &StoredKey) -> MutexGuard<'_, Shard> {
        // Use bits in the middle, because the map inside of the shard uses the low and the highest ones.
        let number = (self.hasher.hash_one(key) >> 32) as usize % Self::SHARDS;
        // A poisoned shard is still consistent: no call in this module can panic in the middle of a change.
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().entries.len()).sum()
    }
}

/// The leases and fences that share a lock.
pub(super) struct Shard {
    entries: HashMap<StoredKey, Placed, RandomState>,
    /// The number of entries at which the next insertion removes those whose owners were dropped.
    sweep_at: usize,
}

struct Placed {
    entry: Entry,
    deadline: Tick,
    generation: u64,
}

impl Placed {
    /// Makes a fence dirty, and says whether the entry is one. A dirty fence has another stamp, so that its writer does not
    /// find it as it was confirmed, and publishes nothing.
    fn spoil(&mut self) -> bool {
        let State::Fence(fence) = &mut self.entry.state else { return false };
        if !mutant!(NotifiedFenceKept) && !std::mem::replace(&mut fence.dirty, true) {
            let Stamp(stamp) = self.entry.stamp;
            self.entry.stamp = Stamp(NonZeroU64::new(!stamp.get()).unwrap_or(NonZeroU64::MIN));
        }
        true
    }
}

impl Shard {
    /// A number of entries that is not worth a sweep.
    const SMALL: usize = 64;

    /// Returns the entry under `key`. Removes it instead if its TTL has passed, or if it is a lease of another generation.
    /// A fence of another generation is made dirty.
    pub(super) fn get(&mut self, key: &StoredKey, now: Tick, generation: u64) -> Option<Entry> {
        let placed = self.entries.get_mut(key)?;
        let is_present = placed.generation == generation || mutant!(NearLeasesKept) || placed.spoil();
        if is_present {
            placed.generation = generation;
        }
        if is_present && now < placed.deadline {
            return Some(placed.entry.clone());
        }
        self.entries.remove(key);
        None
    }

    pub(super) fn insert(
        &mut self,
        key: StoredKey,
        entry: Entry,
        deadline: Tick,
        generation: u64,
        now: Tick,
    ) {
        if self.entries.len() >= self.sweep_at {
            self.sweep(now);
        }
        self.entries.insert(key, Placed { entry, deadline, generation });
    }

    pub(super) fn remove(&mut self, key: &StoredKey) {
        self.entries.remove(key);
    }

    /// Removes the lease under `key`, and makes a fence there dirty.
    #[cfg(feature = "near")]
    pub(super) fn spoil(&mut self, key: &StoredKey) {
        if self.entries.get_mut(key).is_some_and(|placed| !placed.spoil()) {
            self.entries.remove(key);
        }
    }

    /// Removes every entry whose TTL has passed. The next sweep comes when there are twice as many entries as
    /// are left now, so an insertion pays for two entries of a sweep at most, and expired entries never
    /// outnumber the others by more than [`Self::SMALL`].
    fn sweep(&mut self, now: Tick) {
        self.entries.retain(|_, placed| now < placed.deadline);
        self.sweep_at = Self::SMALL.max(2 * self.entries.len());
        self.entries.shrink_to(self.sweep_at);
    }
}
