//! What is left to do about the cache after writes that could not be fenced.
//!
//! Such a write leaves in the cache what it replaced. Its key is queued here, loads of this process go around the cache
//! for it, and a task settles the entry as soon as the cache answers. The same task closes the circuit breaker, after
//! the queue has been drained.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::select;
use session_core::{Cache, CacheError, Persistence, StoredKey, Timestamp, Token};

use crate::cache_guard::Gate;
use crate::inner::Inner;
use crate::metrics::{Gauge, Labels};

/// How many keys are repaired between two looks at the queue.
const BATCH: usize = 64;

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

    /// An unfenced write of `key` is about to be sent.
    pub(crate) fn begin(&self, key: &StoredKey, token: Token) {
        self.change(|queue| {
            if queue.items.len() >= self.capacity && !queue.items.contains_key(key) {
                tracing::error!(target: "session_cached_db", event = "repair_queue_overflow",
                    dropped = queue.items.len(),
                    "too many writes during a cache outage; other nodes may see old sessions until max_cache_age");
                queue.items.clear();
            }
            let item = queue.items.entry(*key).or_insert(Item { token, in_flight: Vec::new(), not_before: None });
            item.token = token;
            item.in_flight.push(token);
        });
    }

    /// That write has an outcome, or may have one until `unknown_until`.
    pub(crate) fn finish(&self, key: &StoredKey, token: Token, unknown_until: Option<Timestamp>) {
        self.change(|queue| {
            // Gone after an overflow.
            let item =
                queue.items.entry(*key).or_insert(Item { token, in_flight: Vec::new(), not_before: None });
            item.in_flight.retain(|other| *other != token);
            item.not_before = item.not_before.max(unknown_until);
        });
    }

    /// The keys whose repair has come due.
    fn due(&self, now: Timestamp) -> Vec<(StoredKey, Token)> {
        let queue = self.lock();
        let due = queue.items.iter().filter(|(_, item)| item.is_due(now));
        let mut due: Vec<_> = due.map(|(key, item)| (*key, item.token)).take(BATCH).collect();
        // In some order, so that a simulated run can be repeated.
        due.sort_unstable_by_key(|(_, token)| *token);
        due
    }

    /// The entry of `key` was settled in the name of `token`. If somebody wrote since, that is not enough.
    fn done(&self, key: &StoredKey, token: Token, now: Timestamp) {
        self.change(|queue| {
            if queue.items.get(key).is_some_and(|item| item.token == token && item.is_due(now)) {
                queue.items.remove(key);
            }
        });
    }

    /// Asks for a task to tend the queue; whether the caller is to start it.
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
            let not_before = item.not_before.map(Timestamp::as_micros);
            (key.as_str().to_owned(), item.token, item.in_flight.clone(), not_before)
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

impl Item {
    fn is_due(&self, now: Timestamp) -> bool {
        self.in_flight.is_empty() && self.not_before.is_none_or(|instant| instant <= now)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Makes sure that somebody looks after the repair queue and the breaker, if they need it. Cheap if they do not.
    pub(crate) fn tend_cache(self: &Arc<Self>) {
        let needed = self.cache.is_open() || self.repairs.len.load(Ordering::Acquire) > 0;
        if needed && self.repairs.claim() {
            let closed = self.tasks.closed();
            let tend = tend(Arc::downgrade(self), self.config.probe_interval);
            let runtime = &self.runtime;
            runtime.spawn(Box::pin(async move {
                select(std::pin::pin!(closed), std::pin::pin!(tend)).await;
            }));
        }
    }

    /// Settles the entries of all keys that are due, and closes the breaker if the cache has answered all the time.
    async fn repair_due(self: &Arc<Self>) -> Result<(), CacheError> {
        loop {
            let due = self.repairs.due(self.runtime.now());
            if due.is_empty() {
                break;
            }
            for (key, token) in due {
                self.repair(&key, token).await?;
                self.repairs.done(&key, token, self.runtime.now());
                self.counters.repairs.bump();
            }
        }
        if self.cache.is_open() {
            self.cache.get(&self.probe_key, Gate::Probe).await?;
            self.cache.close_breaker();
            tracing::info!(target: "session_cached_db", event = "cache_breaker_closed", "the cache answers again");
        }
        Ok(())
    }

    async fn repair(&self, key: &StoredKey, token: Token) -> Result<(), CacheError> {
        let found = self.cache.get(key, Gate::Probe).await?;
        self.settle_entry(key, token, None, found, Gate::Probe).await.map(drop)
    }
}

/// Works until the breaker is closed and the queue is empty, or the store is gone.
async fn tend<C: Cache, P: Persistence>(store: Weak<Inner<C, P>>, interval: Duration) {
    // The first look comes soon: it may have been one lost call.
    let mut pause = interval / 16;
    loop {
        let Some(inner) = store.upgrade() else { return };
        let timer = inner.runtime.sleep(pause);
        // Not kept alive over the pause: a store that nobody has any more ends its tasks.
        drop(inner);
        timer.await;
        let Some(inner) = store.upgrade() else { return };
        pause = match inner.repair_due().await {
            Ok(()) if inner.repairs.release_if_empty() => {
                // Somebody may have come in just before the claim ended, and found it taken.
                if inner.cache.is_open() && inner.repairs.claim() { interval } else { return }
            }
            Ok(()) => interval,
            Err(_) => (pause * 2).clamp(interval / 16, interval),
        };
    }
}
