//! What is left to do about the cache after writes that could not be fenced, or whose settlement was lost.
//!
//! The former leave in the cache what they replaced, the latter a fence. Their keys are queued here, loads of this process go around the cache
//! for those that were not fenced, and the entries are settled as soon as the cache answers. A task looks after that, and after the circuit breakers:
//! it probes each server that is left alone, and traffic uses the server again as soon as it answers, except for the keys
//! that are still queued. Repairs run side by side, each in its key's write queue; one that fails backs off by itself.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::select;
use futures_util::stream::{self, StreamExt as _};
use session_core::{Cache, CacheError, Persistence, StoredKey, Timestamp, Token};
use tracing::Span;

use crate::cache_guard::Gate;
use crate::inner::Inner;
use crate::metrics::{Gauge, Labels};
use crate::queue::Job;
use crate::tasks::Admission;

/// How many keys are repaired at the same time.
const SIDE_BY_SIDE: usize = 32;

/// The longest time between two attempts to repair a key.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// After how many attempts a key that cannot be repaired is logged.
const SUSPICIOUS: u32 = 4;

/// The queue: keys only, bounded, of each key the last write.
#[derive(Debug)]
pub(crate) struct Repairs {
    capacity: usize,
    /// Read without the lock: in good times every load looks here, and there is nothing.
    len: AtomicUsize,
    queue: Mutex<Queue>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Queue {
    items: HashMap<StoredKey, Item>,
    /// Those that wait, in the order in which they come due.
    due: BTreeMap<(Timestamp, Token), StoredKey>,
    /// How many of them are being repaired.
    under_way: usize,
    /// Whether a task is at work on it.
    tended: bool,
}

#[derive(Debug)]
struct Item {
    /// The last writer: in whose name the entry is settled.
    token: Token,
    /// Writers whose statement has no outcome yet.
    in_flight: Vec<Token>,
    /// A statement whose outcome is unknown may commit until then; to settle before would be too early.
    not_before: Option<Timestamp>,
    /// When no value from before the last write can be shown any more, whatever the cache holds. `None` while it is under way.
    obsolete_at: Option<Timestamp>,
    /// How many repairs have failed since the last write.
    failures: u32,
    is_under_way: bool,
    /// Its place among those that wait.
    due: Option<(Timestamp, Token)>,
    /// A fence keeps readers on the database until the repair, so no load has to look here.
    is_fenced: bool,
}

impl Item {
    const fn new(token: Token) -> Self {
        Self {
            token,
            in_flight: Vec::new(),
            not_before: None,
            obsolete_at: None,
            failures: 0,
            is_under_way: false,
            due: None,
            is_fenced: false,
        }
    }

    /// Whether nothing is left to repair.
    fn is_obsolete(&self, now: Timestamp) -> bool {
        self.in_flight.is_empty() && self.obsolete_at.is_some_and(|obsolete_at| obsolete_at <= now)
    }

    /// Whether all its writes have an outcome, and none of them may commit any more.
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

    /// The first that has come due.
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
    pub(crate) fn new(capacity: usize, labels: &Labels) -> Self {
        let gauge = Gauge::new(
            "session_cache_repair_queue",
            "Keys whose cache entries wait to be repaired after writes that could not be fenced",
            labels,
        );
        Self { capacity, len: AtomicUsize::new(0), queue: Mutex::default(), gauge }
    }

    /// Whether the cache is not to be trusted with `key`.
    pub(crate) fn holds(&self, key: &StoredKey) -> bool {
        self.len() > 0 && self.lock().items.get(key).is_some_and(|item| !item.is_fenced)
    }

    /// How many keys wait.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// An unfenced write of `key` is about to be sent.
    pub(crate) fn begin(&self, key: &StoredKey, token: Token) {
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
            item.token = token;
            item.is_fenced = false;
            item.in_flight.push(token);
            queue.schedule(key, Timestamp::MIN);
        });
    }

    /// The settlement of a fenced write of `key` was lost. At `obsolete_at` its fence has ended by itself.
    pub(crate) fn add_fenced(&self, key: &StoredKey, token: Token, obsolete_at: Timestamp) {
        self.change(|queue| {
            // An unfenced write is repaired in its own name, and a full queue is not worth it: the fence ends.
            if queue.items.len() < self.capacity {
                let item = Item { is_fenced: true, obsolete_at: Some(obsolete_at), ..Item::new(token) };
                queue.items.entry(*key).or_insert(item);
                queue.schedule(key, Timestamp::MIN);
            }
        });
    }

    /// That write has an outcome, or may have one until `unknown_until`. At `obsolete_at` there is nothing left to repair.
    pub(crate) fn finish(
        &self,
        key: &StoredKey,
        token: Token,
        unknown_until: Option<Timestamp>,
        obsolete_at: Timestamp,
    ) {
        self.change(|queue| {
            // Gone after an overflow.
            let item = queue.items.entry(*key).or_insert(Item::new(token));
            item.in_flight.retain(|other| *other != token);
            item.not_before = item.not_before.max(unknown_until);
            item.obsolete_at = item.obsolete_at.max(Some(obsolete_at));
            item.failures = 0;
            queue.schedule(key, Timestamp::MIN);
        });
    }

    /// Takes the keys whose repair has come due, as many as may be repaired beside those that are. `is_reachable` says for
    /// which of them the cache answers.
    fn take_due(
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
                    // Looked at again a little later: not at every turn, because there may be many.
                    queue.schedule(&key, now + interval / 4);
                } else {
                    item.is_under_way = true;
                    let pause = (interval / 16).saturating_mul(1 << item.failures.min(16)).min(LONGEST_PAUSE);
                    due.push(Repair {
                        repairs: Arc::clone(self),
                        key,
                        token: item.token,
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

    /// A repair has ended, in whatever way.
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

    /// Whether so many repairs are under way that others may wait for one of them to end.
    fn is_full(&self) -> bool {
        self.lock().under_way >= SIDE_BY_SIDE
    }

    /// The entry of `key` was settled, and there will be no more writes of this process.
    fn remove(&self, key: &StoredKey) {
        self.change(|queue| queue.remove(key));
    }

    /// All keys that wait.
    fn all(&self) -> Vec<(StoredKey, Token)> {
        self.lock().items.iter().map(|(key, item)| (*key, item.token)).collect()
    }

    /// Asks for a task to tend the queue. Returns `true` if the caller is to start it.
    fn claim(&self) -> bool {
        !std::mem::replace(&mut self.lock().tended, true)
    }

    /// Ends the task's claim, unless there is work left.
    fn release_if_empty(&self) -> bool {
        let mut queue = self.lock();
        if queue.items.is_empty() {
            queue.tended = false;
        }
        !queue.tended
    }

    fn release(&self) {
        self.lock().tended = false;
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn forget(&self, key: &StoredKey, token: Token) {
        self.change(|queue| {
            if queue.items.get(key).is_some_and(|item| item.token == token) {
                queue.remove(key);
            }
        });
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self) -> impl std::hash::Hash + use<> {
        let queue = self.lock();
        let items = queue.items.iter().map(|(key, item)| {
            let instants =
                [item.not_before, item.obsolete_at].map(|instant| instant.map(Timestamp::as_micros));
            let key = key.as_str().to_owned();
            (
                key,
                item.token,
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Makes sure that a task looks after the repair queue and the breakers, if they need it. Cheap if they do not.
    pub(crate) fn tend_cache(self: &Arc<Self>) {
        let needed = self.cache.is_any_open() || self.repairs.len() > 0;
        if needed && self.repairs.claim() {
            let closed = self.tasks.closed();
            let claim = Claim { store: Arc::downgrade(self), is_released: false };
            let tend = tend(claim, self.config.probe_interval);
            let runtime = &self.runtime;
            runtime.spawn(Box::pin(async move {
                select(std::pin::pin!(closed), std::pin::pin!(tend)).await;
            }));
        }
    }

    /// A write of `key` without a fence has ended. Its statement may still commit until `unknown_until`.
    pub(crate) fn finish_unfenced(&self, key: &StoredKey, token: Token, unknown_until: Option<Timestamp>) {
        let last_commit = unknown_until.unwrap_or_else(|| self.runtime.now());
        let obsolete_at = last_commit + self.config.max_cache_age + self.config.clock_slack;
        self.repairs.finish(key, token, unknown_until, obsolete_at);
    }

    /// Starts the repair of keys that are due, each in its queue.
    fn start_repairs(self: &Arc<Self>) {
        let (now, interval) = (self.runtime.now(), self.config.probe_interval);
        for repair in self.repairs.take_due(now, interval, |key| !self.cache.is_open_for(key)) {
            let key = repair.key;
            // Refused only while the store is being closed, which makes a last pass of its own.
            let _ = self.start_job(&key, Admission::New, Span::none(), Job::Repair(repair));
        }
    }

    /// Carries out a repair whose turn it is.
    pub(crate) async fn repair(self: &Arc<Self>, mut repair: Repair) {
        match self.settle_unfenced(&repair.key, repair.token).await {
            Ok(()) => {
                self.counters.repairs.bump();
                repair.done_at = Some(self.runtime.now());
            }
            Err(error) if repair.failures == SUSPICIOUS => {
                tracing::warn!(target: "session_cached_db", event = "repair_failing", session = %self.name(&repair.key), %error,
                    "the cache entry of a session that was written during an outage cannot be repaired; it is tried again now \
                     and then, and this node reads the session from the database until max_cache_age has passed");
            }
            Err(_) => {}
        }
        let others_may_wait = self.repairs.is_full();
        drop(repair);
        if others_may_wait {
            self.start_repairs();
        }
    }

    /// Settles the entry of `key` in the name of `token`, whose write was not fenced.
    async fn settle_unfenced(&self, key: &StoredKey, token: Token) -> Result<(), CacheError> {
        let until = self.runtime.now() + self.config.write_timeout;
        let found = self.cache.get(key, Gate::Respect).await?;
        mutant!(CleanRepair => if crate::simulation::is_fence_of_others(found.as_ref(), token) { return Ok(()) });
        self.settle_entry(key, token, None, found, until).await.map(drop)
    }

    /// Repairs what would be forgotten when the store is gone. For as long as two probe intervals, which a blip is shorter
    /// than, it waits for a cache that does not answer.
    pub(crate) async fn repair_at_the_end(self: &Arc<Self>) {
        let patience = self.config.probe_interval.saturating_mul(2);
        let repairs = pin!(async {
            while self.repairs.len() > 0 {
                self.cache.probe().await;
                self.repair_all().await;
                if self.repairs.len() > 0 {
                    self.runtime.sleep(self.config.probe_interval / 8).await;
                }
            }
        });
        if self.repairs.len() > 0 {
            select(repairs, self.runtime.sleep(patience)).await;
        }
        if self.repairs.len() > 0 {
            tracing::warn!(target: "session_cached_db", event = "repairs_abandoned", keys = self.repairs.len(),
                "the store is closed while the cache does not answer; other nodes may see old sessions until max_cache_age");
        }
    }

    /// Repairs what can be repaired now, after the last write.
    async fn repair_all(&self) {
        stream::iter(self.repairs.all())
            .for_each_concurrent(SIDE_BY_SIDE, async |(key, token)| {
                // At once an error where the server does not answer.
                if self.settle_unfenced(&key, token).await.is_ok() {
                    self.counters.repairs.bump();
                    self.repairs.remove(&key);
                }
            })
            .await;
    }
}

/// A repair, from when it was found to be due until it has ended, in whatever way.
#[derive(Debug)]
pub(crate) struct Repair {
    repairs: Arc<Repairs>,
    key: StoredKey,
    token: Token,
    /// How many have failed before it since the last write.
    failures: u32,
    /// When to try again if it fails.
    again_at: Timestamp,
    /// When it was carried out, if it was.
    done_at: Option<Timestamp>,
}

#[cfg(feature = "__simulation")]
impl Repair {
    pub(crate) fn digest(&self) -> u64 {
        crate::simulation::digest_of((self.token, self.failures, self.again_at.as_micros()))
    }
}

impl Drop for Repair {
    fn drop(&mut self) {
        self.repairs.end(self);
    }
}

/// The right to tend the queue. Given back in whatever way the task ends.
struct Claim<C: Cache, P: Persistence> {
    store: Weak<Inner<C, P>>,
    is_released: bool,
}

impl<C: Cache, P: Persistence> Drop for Claim<C, P> {
    fn drop(&mut self) {
        if !self.is_released
            && let Some(store) = self.store.upgrade()
        {
            store.repairs.release();
        }
    }
}

/// Works until all breakers are closed and the queue is empty, or the store is gone.
async fn tend<C: Cache, P: Persistence>(mut claim: Claim<C, P>, interval: Duration) {
    // The first look comes soon: it may have been one lost call.
    let mut pause = interval / 16;
    loop {
        let Some(inner) = claim.store.upgrade() else { return };
        let timer = inner.runtime.sleep(pause);
        // Not kept alive over the pause: a store that nothing uses any more ends its tasks.
        drop(inner);
        timer.await;
        let Some(inner) = claim.store.upgrade() else { return };
        if inner.repairs.len() == 0 || !mutant!(BreakerWaitsForQueue) {
            inner.cache.probe().await;
        }
        inner.start_repairs();
        let is_any_open = inner.cache.is_any_open();
        if !is_any_open && inner.repairs.release_if_empty() {
            claim.is_released = true;
            // A write may have come in just before the claim ended, and found it taken.
            if inner.cache.is_any_open() && inner.repairs.claim() {
                claim.is_released = false;
            } else {
                return;
            }
        }
        // What can be repaired soon is looked at soon, however long the cache may be away.
        pause = if is_any_open { (pause * 2).clamp(interval / 16, interval) } else { interval / 16 };
    }
}
