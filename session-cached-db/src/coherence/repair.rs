//! The queue of cache entries that are to be settled after an outage.
//!
//! A write that could not be fenced leaves the replaced value in the cache; a write whose settlement was lost
//! leaves its fence. Their keys wait here. Loads of this process bypass the cache for the keys whose writes
//! were not fenced.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::{StoredKey, Timestamp, Token};

use crate::telemetry::metrics::{Gauge, Labels};

/// The number of keys that are repaired at the same time.
pub(super) const SIDE_BY_SIDE: usize = 32;

/// The longest time between two attempts to repair a key.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The number of failed attempts after which a key that cannot be repaired is logged.
pub(super) const SUSPICIOUS: u32 = 4;

/// The number of writers of a key before the last one whose fences a repair removes, too. Those of older ones end by
/// themselves.
const MAX_EARLIER: usize = 7;

/// The repair queue. Bounded; holds the last write of each key.
#[derive(Debug)]
pub(super) struct Repairs {
    capacity: usize,
    /// Read without the lock: every load looks here, and in good times the queue is empty.
    len: AtomicUsize,
    queue: Mutex<Queue>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Queue {
    items: HashMap<StoredKey, Item>,
    /// The keys that wait, in the order in which they come due.
    due: BTreeMap<(Timestamp, Token), StoredKey>,
    /// The number of keys that are being repaired.
    under_way: usize,
    /// A task is at work on the queue.
    tended: bool,
}

#[derive(Debug)]
struct Item {
    /// The token of the last writer, in whose name the entry is settled.
    token: Token,
    /// The tokens of writers before it, which may have left fences, too.
    earlier: Vec<Token>,
    /// Writers whose statement has no outcome yet.
    in_flight: Vec<Token>,
    /// A statement with an unknown outcome may commit until then, so a settlement before that would be too early.
    not_before: Option<Timestamp>,
    /// The instant from which no value from before the last write can be shown any more, whatever the cache holds. `None`
    /// while it is under way.
    obsolete_at: Option<Timestamp>,
    /// The number of repairs that have failed since the last write.
    failures: u32,
    is_under_way: bool,
    /// The item's place among those that wait.
    due: Option<(Timestamp, Token)>,
    /// A fence keeps readers on the database until the repair, so no load has to look here.
    is_fenced: bool,
}

impl Item {
    const fn new(token: Token) -> Self {
        Self {
            token,
            earlier: Vec::new(),
            in_flight: Vec::new(),
            not_before: None,
            obsolete_at: None,
            failures: 0,
            is_under_way: false,
            due: None,
            is_fenced: false,
        }
    }

    /// Notes a writer after those that are known.
    fn follow_with(&mut self, token: Token) {
        let earlier = std::mem::replace(&mut self.token, token);
        if earlier != token {
            if self.earlier.len() >= MAX_EARLIER {
                self.earlier.remove(0);
            }
            self.earlier.push(earlier);
        }
    }

    /// Returns the tokens of all writers in whose names the entry is settled.
    fn tokens(&self) -> Vec<Token> {
        self.earlier.iter().copied().chain([self.token]).collect()
    }

    /// Returns `true` if nothing is left to repair.
    fn is_obsolete(&self, now: Timestamp) -> bool {
        self.in_flight.is_empty() && self.obsolete_at.is_some_and(|obsolete_at| obsolete_at <= now)
    }

    /// Returns `true` if all writes of the key have an outcome, and none of them may commit any more.
    fn is_settled(&self, now: Timestamp) -> bool {
        self.in_flight.is_empty() && self.not_before.is_none_or(|instant| instant <= now)
    }
}

impl Queue {
    /// Puts the item of `key` among those that wait, if it is one of them, to come due when its writes are settled, and not
    /// before `earliest`.
    fn schedule(&mut self, key: &StoredKey, earliest: Timestamp) {
        let Some(item) = self.items.get_mut(key) else { return };
        if let Some(due) = item.due.take() {
            self.due.remove(&due);
        }
        if item.in_flight.is_empty() && !item.is_under_way {
            let due = (item.not_before.map_or(earliest, |instant| instant.max(earliest)), item.token);
            item.due = Some(due);
            self.due.insert(due, *key);
        }
    }

    fn remove(&mut self, key: &StoredKey) {
        if let Some(due) = self.items.remove(key).and_then(|item| item.due) {
            self.due.remove(&due);
        }
    }

    /// Removes and returns the first key that has come due.
    fn pop_due(&mut self, now: Timestamp) -> Option<StoredKey> {
        let first = self.due.first_entry().filter(|first| first.key().0 <= now)?;
        let key = first.remove();
        if let Some(item) = self.items.get_mut(&key) {
            item.due = None;
        }
        Some(key)
    }
}

impl Repairs {
    pub(super) fn new(capacity: usize, labels: &Labels) -> Self {
        let gauge = Gauge::new(
            "session_cache_repair_queue",
            "Keys whose cache entries wait to be repaired after writes that could not be fenced",
            labels,
        );
        Self { capacity, len: AtomicUsize::new(0), queue: Mutex::default(), gauge }
    }

    /// Returns `true` if the cache must not be asked for `key`.
    pub(super) fn holds(&self, key: &StoredKey) -> bool {
        self.len() > 0 && self.lock().items.get(key).is_some_and(|item| !item.is_fenced)
    }

    /// Returns the number of keys that wait.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Notes that an unfenced write of `key` is about to be sent.
    pub(super) fn begin(&self, key: &StoredKey, token: Token) {
        self.change(|queue| {
            if queue.items.len() >= self.capacity && !queue.items.contains_key(key) {
                tracing::error!(target: "session_cached_db", event = "repair_queue_overflow",
                    dropped = queue.items.len(),
                    "too many writes during a cache outage; other nodes may see old sessions until max_cache_age");
                queue.items.clear();
                queue.due.clear();
                queue.under_way = 0;
            }
            let item = queue.items.entry(*key).or_insert(Item::new(token));
            item.follow_with(token);
            item.is_fenced = false;
            item.in_flight.push(token);
            queue.schedule(key, Timestamp::MIN);
        });
    }

    /// Adds `key` after the settlement of a fenced write was lost. At `obsolete_at` the fence has ended by itself.
    pub(super) fn add_fenced(&self, key: &StoredKey, token: Token, obsolete_at: Timestamp) {
        self.change(|queue| {
            // In a full queue there is no room: the fence ends by itself.
            if queue.items.len() < self.capacity || queue.items.contains_key(key) {
                let item = || Item { is_fenced: true, ..Item::new(token) };
                let item = queue.items.entry(*key).or_insert_with(item);
                item.follow_with(token);
                item.obsolete_at = item.obsolete_at.max(Some(obsolete_at));
                item.failures = 0;
                queue.schedule(key, Timestamp::MIN);
            }
        });
    }

    /// Notes that an unfenced write has ended; its statement may still commit until `unknown_until`. At `obsolete_at` there
    /// is nothing left to repair.
    pub(super) fn finish(
        &self,
        key: &StoredKey,
        token: Token,
        unknown_until: Option<Timestamp>,
        obsolete_at: Timestamp,
    ) {
        self.change(|queue| {
            // Absent after an overflow.
            let item = queue.items.entry(*key).or_insert(Item::new(token));
            item.in_flight.retain(|other| *other != token);
            item.not_before = item.not_before.max(unknown_until);
            item.obsolete_at = item.obsolete_at.max(Some(obsolete_at));
            item.failures = 0;
            queue.schedule(key, Timestamp::MIN);
        });
    }

    /// Takes the repairs that have come due, up to [`SIDE_BY_SIDE`] with those under way. `is_reachable` returns `true` for the
    /// keys for which the cache answers.
    pub(super) fn take_due(
        self: &Arc<Self>,
        now: Timestamp,
        interval: Duration,
        is_reachable: impl Fn(&StoredKey) -> bool,
    ) -> Vec<Repair> {
        let mut due = Vec::new();
        self.change(|queue| {
            mutant!(RepairBlocksOthers => if queue.items.values().any(|item| !item.is_settled(now)
                || item.due.is_some_and(|due| due.0 > now)) { return });
            while queue.under_way < SIDE_BY_SIDE
                && let Some(key) = queue.pop_due(now)
            {
                let Some(item) = queue.items.get_mut(&key) else { continue };
                if item.is_obsolete(now) {
                    queue.remove(&key);
                } else if !is_reachable(&key) {
                    // Look again a little later, and not at every turn, because there may be many.
                    queue.schedule(&key, now + interval / 4);
                } else {
                    item.is_under_way = true;
                    let pause = (interval / 16).saturating_mul(1 << item.failures.min(16)).min(LONGEST_PAUSE);
                    due.push(Repair {
                        repairs: Arc::clone(self),
                        key,
                        token: item.token,
                        tokens: item.tokens(),
                        failures: item.failures,
                        again_at: now + pause,
                        done_at: None,
                    });
                    queue.under_way += 1;
                }
            }
        });
        due
    }

    /// Notes that a repair has ended, in whatever way.
    fn end(&self, repair: &Repair) {
        self.change(|queue| {
            let Some(item) = queue.items.get_mut(&repair.key) else { return };
            if std::mem::take(&mut item.is_under_way) {
                queue.under_way = queue.under_way.saturating_sub(1);
            }
            match repair.done_at {
                // If the session was written since, that is not enough.
                Some(now) if item.token == repair.token && item.is_settled(now) => queue.remove(&repair.key),
                Some(_) => queue.schedule(&repair.key, Timestamp::MIN),
                None => {
                    item.failures = item.failures.saturating_add(1);
                    queue.schedule(&repair.key, repair.again_at);
                }
            }
        });
    }

    /// Returns `true` if others may wait for one of the repairs under way to end.
    pub(super) fn is_full(&self) -> bool {
        self.lock().under_way >= SIDE_BY_SIDE
    }

    /// Removes `key`, whose entry was settled, after the last write of this process.
    pub(super) fn remove(&self, key: &StoredKey) {
        self.change(|queue| queue.remove(key));
    }

    /// Returns all keys that wait, with the tokens of their writers.
    pub(super) fn all(&self) -> Vec<(StoredKey, Vec<Token>)> {
        self.lock().items.iter().map(|(key, item)| (*key, item.tokens())).collect()
    }

    /// Claims the queue for a task that tends it. Returns `false` if another task has it.
    pub(super) fn claim(&self) -> bool {
        !std::mem::replace(&mut self.lock().tended, true)
    }

    /// Ends the claim, unless there is work left. Returns `true` if it has ended.
    pub(super) fn release_if_empty(&self) -> bool {
        let mut queue = self.lock();
        if queue.items.is_empty() {
            queue.tended = false;
        }
        !queue.tended
    }

    pub(super) fn release(&self) {
        self.lock().tended = false;
    }

    #[cfg(feature = "__simulation")]
    pub(super) fn forget(&self, key: &StoredKey, token: Token) {
        self.change(|queue| {
            if queue.items.get(key).is_some_and(|item| item.token == token) {
                queue.remove(key);
            }
        });
    }

    #[cfg(feature = "__simulation")]
    pub(super) fn digest(&self) -> impl std::hash::Hash + use<> {
        let queue = self.lock();
        let items = queue.items.iter().map(|(key, item)| {
            let instants =
                [item.not_before, item.obsolete_at].map(|instant| instant.map(Timestamp::as_micros));
            let key = key.as_str().to_owned();
            (
                key,
                item.tokens(),
                item.in_flight.clone(),
                instants,
                item.failures,
                (item.is_under_way, item.is_fenced, item.due.map(|(instant, _)| instant.as_micros())),
            )
        });
        (queue.tended, items.collect::<std::collections::BTreeSet<_>>())
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.lock();
        change(&mut queue);
        self.len.store(queue.items.len(), Ordering::Release);
        self.gauge.set(queue.items.len());
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One repair of a key, from the moment it comes due until it has ended, in whatever way.
#[derive(Debug)]
pub(crate) struct Repair {
    repairs: Arc<Repairs>,
    pub(super) key: StoredKey,
    /// The token of the last writer when the repair came due.
    token: Token,
    /// The tokens of the writers in whose names the entry is settled.
    pub(super) tokens: Vec<Token>,
    /// The number of repairs that have failed before this one since the last write.
    pub(super) failures: u32,
    /// The instant at which to try again if this one fails.
    again_at: Timestamp,
    /// The instant at which the repair was done, if it was.
    pub(super) done_at: Option<Timestamp>,
}

impl Repair {
    pub(crate) const fn key(&self) -> &StoredKey {
        &self.key
    }
}

#[cfg(feature = "__simulation")]
impl Repair {
    pub(crate) fn digest(&self) -> u64 {
        crate::simulation::digest_of((&self.tokens, self.failures, self.again_at.as_micros()))
    }
}

impl Drop for Repair {
    fn drop(&mut self) {
        self.repairs.end(self);
    }
}
