//! What is left to do about the cache after writes that could not be fenced.
//!
//! Such a write leaves in the cache what it replaced. Its key is queued here, loads of this process go around the cache
//! for it, and its entry is settled as soon as the cache answers. A task looks after that, and after the circuit breakers:
//! it probes each server that is left alone, and traffic uses the server again as soon as it answers, except for the keys
//! that are still queued. Repairs run side by side, each in its key's write queue; one that fails backs off by itself.

use std::collections::HashMap;
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
    /// A statement whose outcome is unknown may commit until then; to settle before would be too early. Also when a repair
    /// that has failed may be tried again.
    not_before: Option<Timestamp>,
    /// When no value from before the last write can be shown any more, whatever the cache holds. `None` while it is under way.
    obsolete_at: Option<Timestamp>,
    /// How many repairs have failed since the last write.
    failures: u32,
    is_under_way: bool,
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
        }
    }

    /// Whether all its writes have an outcome, and none of them may commit any more.
    fn is_settled(&self, now: Timestamp) -> bool {
        self.in_flight.is_empty() && self.not_before.is_none_or(|instant| instant <= now)
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
        self.len.load(Ordering::Acquire) > 0 && self.lock().items.contains_key(key)
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
                queue.under_way = 0;
            }
            let item = queue.items.entry(*key).or_insert(Item::new(token));
            item.token = token;
            item.in_flight.push(token);
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
        });
    }

    /// Takes the keys whose repair has come due, as many as may be repaired beside those that are. `is_reachable` says for
    /// which of them the cache answers.
    fn take_due(&self, now: Timestamp, is_reachable: impl Fn(&StoredKey) -> bool) -> Vec<(StoredKey, Token)> {
        let mut due = Vec::new();
        self.change(|queue| {
            queue.items.retain(|_, item| {
                item.is_under_way
                    || !item.in_flight.is_empty()
                    || item.obsolete_at.is_none_or(|obsolete_at| now < obsolete_at)
            });
            let room = SIDE_BY_SIDE.saturating_sub(queue.under_way);
            let is_due = |key: &StoredKey, item: &Item| {
                !item.is_under_way && item.is_settled(now) && is_reachable(key)
            };
            let items = queue.items.iter().filter(|(key, item)| is_due(key, item));
            due = items.map(|(key, item)| (*key, item.token)).take(room).collect();
            // In some order, so that a simulated run can be repeated.
            due.sort_unstable_by_key(|(_, token)| *token);
            for (key, _) in &due {
                if let Some(item) = queue.items.get_mut(key) {
                    item.is_under_way = true;
                }
            }
            queue.under_way += due.len();
        });
        due
    }

    /// A repair of `key` in the name of `token` has ended. Returns whether others had to wait for it.
    fn done(&self, key: &StoredKey, token: Token, result: Result<(), Timestamp>, now: Timestamp) -> bool {
        let mut was_full = false;
        self.change(|queue| {
            let Some(item) = queue.items.get_mut(key) else { return };
            if std::mem::take(&mut item.is_under_way) {
                was_full = queue.under_way >= SIDE_BY_SIDE;
                queue.under_way = queue.under_way.saturating_sub(1);
            }
            match result {
                // If the session was written since, that is not enough.
                Ok(()) if item.token == token && item.is_settled(now) => drop(queue.items.remove(key)),
                Ok(()) => {}
                Err(again_at) => {
                    item.failures = item.failures.saturating_add(1);
                    item.not_before = item.not_before.max(Some(again_at));
                }
            }
        });
        was_full
    }

    /// How many repairs of `key` have failed in a row.
    fn failures(&self, key: &StoredKey) -> u32 {
        self.lock().items.get(key).map_or(0, |item| item.failures)
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
                queue.items.remove(key);
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
            (key, item.token, item.in_flight.clone(), instants, item.failures, item.is_under_way)
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
        let due = self.repairs.take_due(self.runtime.now(), |key| !self.cache.is_open_for(key));
        for (key, token) in due {
            let job = Job::Repair(Repair { store: Arc::downgrade(self), key, token, result: None });
            // Refused only while the store is being closed, which makes a last pass of its own.
            let _ = self.start_job(&key, Admission::New, Span::none(), job);
        }
    }

    /// Carries out a repair whose turn it is.
    pub(crate) async fn repair(self: &Arc<Self>, mut repair: Repair<C, P>) {
        let result = self.settle_unfenced(&repair.key, repair.token, Gate::Respect).await;
        if let Err(error) = &result {
            self.note_failed_repair(&repair.key, error);
        }
        repair.result = Some(result.is_ok());
    }

    /// Settles the entry of `key` in the name of `token`, whose write was not fenced.
    async fn settle_unfenced(&self, key: &StoredKey, token: Token, gate: Gate) -> Result<(), CacheError> {
        let until = self.runtime.now() + self.config.write_timeout;
        let found = self.cache.get(key, gate).await?;
        self.settle_entry(key, token, None, found, gate, until).await.map(drop)
    }

    fn note_failed_repair(&self, key: &StoredKey, error: &CacheError) {
        if self.repairs.failures(key) == SUSPICIOUS {
            tracing::warn!(target: "session_cached_db", event = "repair_failing", session = %self.name(key), %error,
                "the cache entry of a session that was written during an outage cannot be repaired; it is tried again now and \
                 then, and this node reads the session from the database until max_cache_age has passed");
        }
    }

    fn repair_ended(self: &Arc<Self>, key: &StoredKey, token: Token, is_ok: bool) {
        let now = self.runtime.now();
        let result = if is_ok {
            self.counters.repairs.bump();
            Ok(())
        } else {
            let doublings = self.repairs.failures(key).min(16);
            let pause = (self.config.probe_interval / 16).saturating_mul(1 << doublings).min(LONGEST_PAUSE);
            Err(now + pause)
        };
        if self.repairs.done(key, token, result, now) {
            self.start_repairs();
        }
    }

    /// Repairs what can be repaired, once, before the store is gone: what would be forgotten otherwise.
    pub(crate) async fn repair_at_the_end(self: &Arc<Self>) {
        let left = self.repairs.all();
        if left.is_empty() {
            return;
        }
        self.cache.probe().await;
        let repairs = stream::iter(left).for_each_concurrent(SIDE_BY_SIDE, async |(key, token)| {
            if !self.cache.is_open_for(&key) && self.settle_unfenced(&key, token, Gate::Respect).await.is_ok()
            {
                self.counters.repairs.bump();
                self.repairs.done(&key, token, Ok(()), Timestamp::MAX);
            }
        });
        let deadline = self.runtime.sleep(self.config.write_timeout);
        select(std::pin::pin!(repairs), deadline).await;
        if self.repairs.len() > 0 {
            tracing::warn!(target: "session_cached_db", event = "repairs_abandoned", keys = self.repairs.len(),
                "the store is closed while the cache does not answer; other nodes may see old sessions until max_cache_age");
        }
    }
}

/// A repair, from when it was found to be due until it has ended, in whatever way.
#[derive(Debug)]
pub(crate) struct Repair<C: Cache, P: Persistence> {
    store: Weak<Inner<C, P>>,
    key: StoredKey,
    token: Token,
    /// Whether it was carried out with success, if it was.
    result: Option<bool>,
}

impl<C: Cache, P: Persistence> Drop for Repair<C, P> {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            store.repair_ended(&self.key, self.token, self.result == Some(true));
        }
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
        inner.cache.probe().await;
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
