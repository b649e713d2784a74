//! A near cache: memory of this process that is told of changes, in front of a shared cache, or [alone](notified()).
//!
//! ```
//! # #[cfg(feature = "redis")] {
//! use cache_backends::moka::MokaCache;
//! use cache_backends::near::near;
//! use cache_backends::redis::RedisCache;
//!
//! let cache = near(MokaCache::builder().build(), RedisCache::builder().url("redis://10.0.0.1/").build()?);
//! # }
//! # Ok::<(), cache_backends::ConnectError>(())
//! ```
//!
//! `docs/near-caches.md` in the repository says what is promised, why it holds, what it costs, and when not to use one.

// Three rules keep memory true. `channel` has a fourth: it forgets everything before another channel counts.
//
// - Only what the channel has read enters memory, over a lease that lies there since before the read was sent. A report
//   removes leases and values alike.
// - A call that goes around memory (a writer, a reader of the shared cache or of the database) removes the key from memory
//   after the answer and before the caller has it. So this process shows nothing older afterwards.
// - Memory answers only while the newest answered ping was sent less than the bound ago, and that is looked at first.

mod channel;
mod inspect;
#[cfg(feature = "__simulation")]
mod mutants;
mod notified;
mod source;

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{
    Acquired, BoxFuture, Cache, CacheError, CacheProperties, DatabaseNotices, Entry, Exchange, Expected,
    Near, NearEvent, NearObserver, NearSource, NoticeChannel, NoticeListener, NoticeSource, Runtime, State,
    StoredKey,
};

pub use self::notified::{NotifiedCache, notified};

use self::channel::{Keeper, Running};
use self::source::Source;

use crate::moka::MokaCache;
use crate::moka::clock::{LAG, Tick};

/// The default of [`NearCache::with_freshness_bound`].
const DEFAULT_BOUND: Duration = Duration::from_millis(100);

/// The longest time for which a value is kept in memory. The store does not show it for longer than its `max_cache_age`.
const VALUE_TTL: Duration = Duration::from_secs(60 * 60);

/// Creates a near cache of `memory`, which nothing else may use, in front of `shared`.
pub fn near<S: Cache + NoticeSource>(memory: MokaCache, shared: S) -> NearCache<S> {
    NearCache { inner: Arc::new(Inner::new(memory, shared)), bound: DEFAULT_BOUND }
}

/// A shared cache with memory of this process in front of it. Cloning it creates another handle to both.
///
/// # Behavior
///
/// - As a [`Cache`], it behaves like the shared cache.
/// - Memory is used from the moment on at which a store that has this cache is built and the channel is open, until the
///   last such store is closed.
/// - A value enters memory when it is read from the shared cache, not when this process has written it.
/// - If the channel is lost, or does not answer for the [bound](Self::with_freshness_bound), calls go to the shared
///   cache. No call fails for it.
///
/// A [`NotifiedCache`] has no shared cache behind it, and behaves as follows:
///
/// - As a [`Cache`], it behaves like the memory, and keeps what the store has read or written.
/// - While memory may not answer, [`acquire`](Cache::acquire) finds the key occupied, so that the store reads the database.
pub struct NearCache<S: Source> {
    inner: Arc<Inner<S>>,
    bound: Duration,
}

struct Inner<S: Source> {
    memory: MokaCache,
    shared: S,
    /// The instant from which on memory may not answer, in ticks of the memory's clock.
    fresh_until: AtomicU64,
    channel: Mutex<Option<Open<S::Channel>>>,
    users: Mutex<Users>,
    observers: Arc<Observers>,
}

/// A channel that is used.
struct Open<C> {
    channel: Arc<C>,
    /// The runtime of the store for which it was opened.
    runtime: Arc<dyn Runtime>,
}

impl<C> Clone for Open<C> {
    fn clone(&self) -> Self {
        Self { channel: Arc::clone(&self.channel), runtime: Arc::clone(&self.runtime) }
    }
}

/// The stores that use a near cache, and the task that keeps a channel open for them.
#[derive(Default)]
struct Users {
    count: usize,
    task: Option<Running>,
}

/// The observers of all stores that use a near cache. Weak, so that this keeps no store alive.
#[derive(Debug, Default)]
struct Observers(Mutex<Vec<Weak<dyn NearObserver>>>);

impl Observers {
    fn add(&self, observer: &Arc<dyn NearObserver>) {
        let mut observers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        observers.retain(|observer| observer.strong_count() > 0);
        observers.push(Arc::downgrade(observer));
    }
}

impl NearObserver for Observers {
    fn note(&self, event: NearEvent<'_>) {
        let observers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for observer in observers.iter().filter_map(Weak::upgrade) {
            observer.note(event);
        }
    }
}

impl<S: Source> Inner<S> {
    fn new(memory: MokaCache, shared: S) -> Self {
        Self {
            memory,
            shared,
            fresh_until: AtomicU64::new(0),
            channel: Mutex::new(None),
            users: Mutex::default(),
            observers: Arc::default(),
        }
    }

    fn now(&self) -> Tick {
        self.memory.clock().now()
    }

    #[inline]
    fn is_fresh(&self, now: Tick) -> bool {
        now.0 < self.fresh_until.load(Ordering::Acquire) || mutant!(NearAlwaysFresh)
    }

    /// Notes that the server has answered a ping that was sent at `basis`.
    fn note_answer(&self, basis: Tick, bound: Duration) {
        let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        // The clock may be behind when it is read at a hit.
        self.fresh_until.store(basis.0.saturating_add(bound.saturating_sub(LAG)), Ordering::Release);
    }

    fn channel(&self) -> Option<Open<S::Channel>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_channel(&self, channel: Option<Open<S::Channel>>) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the use of memory, and forgets everything in it, because changes may not have been reported.
    fn give_up_channel(&self) {
        self.fresh_until.store(0, Ordering::Release);
        self.set_channel(None);
        self.memory.remove_all();
    }

    /// Closes the channel and detaches the source, unless another store uses this by now.
    fn reset_unless_used(&self) {
        let users = self.users();
        if users.count == 0 {
            self.give_up_channel();
            self.shared.detach();
        }
    }
}

impl<S: NoticeSource> Inner<S> {
    /// Reads `key` by the channel, and keeps a value that it finds. Returns `None` if the shared cache has nothing, or if
    /// the channel cannot be used just now.
    async fn read_through(
        &self,
        key: &StoredKey,
        lease: &Entry,
        ttl: Duration,
        patience: Duration,
    ) -> Option<Entry> {
        if !self.is_fresh(self.now()) {
            return None;
        }
        // The entry there was of no use to the caller, or is another reader's lease, which then keeps nothing.
        self.memory.place(key, lease.clone(), ttl);
        // After the lease: if this channel is lost from here on, the lease is forgotten with it.
        let Open { channel, runtime } = self.channel()?;
        let found = match select(pin!(channel.get(key)), runtime.sleep(patience)).await {
            Either::Left((found, _)) => found.ok().flatten()?,
            Either::Right(_) => return None,
        };
        if let State::Value(_) = found.state {
            mutant!(NearWithoutLease => {
                self.memory.place(key, found.clone(), VALUE_TTL);
                return Some(found);
            });
            self.memory.fill(key, lease.stamp, found.clone(), VALUE_TTL);
        } else {
            self.memory.remove(key);
        }
        Some(found)
    }
}

impl<S: Source> NearCache<S> {
    /// Sets the maximum time by which memory may be behind: what another process has saved is seen after that time at the
    /// latest, and operations that end sessions are acknowledged after it. Defaults to 100 ms. At least 20 ms, and at most
    /// the store's `max_cache_age`; a store refuses other values.
    ///
    /// The node asks the server whether it is still there four times in this time.
    #[must_use]
    pub const fn with_freshness_bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Returns the time for which a read waits for the channel before the shared cache is asked.
    fn patience(&self) -> Duration {
        self.bound / 2
    }
}

impl<S: Cache + NoticeSource> Cache for NearCache<S> {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let found = self.inner.shared.get(key).await;
        self.inner.memory.remove(key);
        found
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        mutant!(NearOwnRemovedEarly => {
            if new.as_ref().is_some_and(|entry| matches!(entry.state, State::Fence(_))) {
                self.inner.memory.remove(key);
            }
            return self.inner.shared.compare_exchange(key, expected, new, ttl).await;
        });
        let exchanged = self.inner.shared.compare_exchange(key, expected, new, ttl).await;
        mutant!(NearOwnKept => return exchanged);
        // Before the caller has the answer, and so before it writes the database.
        self.inner.memory.remove(key);
        exchanged
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        // The channel only reads, so what it leaves open can be asked again on another connection.
        if let Some(found) = self.inner.read_through(key, &lease, ttl, self.patience()).await {
            return Ok(Acquired::Found(found));
        }
        mutant!(NearNeedsChannel => if self.inner.channel().is_none() {
            return Err(CacheError::Unavailable("there is no channel".into()));
        });
        let acquired = self.inner.shared.acquire(key, lease, ttl).await;
        self.forget(key);
        acquired
    }

    fn server(&self, key: &StoredKey) -> usize {
        self.inner.shared.server(key)
    }

    fn properties(&self) -> CacheProperties {
        self.inner.shared.properties()
    }

    #[inline]
    fn near(&self) -> Option<&dyn Near> {
        Some(self)
    }
}

impl<S: Source> Near for NearCache<S> {
    #[inline]
    fn peek(&self, key: &StoredKey) -> Option<Entry> {
        let now = self.inner.now();
        // First: an entry that was taken while the channel was behind may have been removed since, and a ping answered.
        if !self.inner.is_fresh(now) {
            return None;
        }
        self.inner.memory.hit(key, now)
    }

    fn forget(&self, key: &StoredKey) {
        mutant!(NearKeptOnBypass => return);
        self.inner.memory.remove(key);
    }

    fn watch(&self, key: &StoredKey) -> Option<BoxFuture<bool>> {
        let (channel, key) = (self.inner.channel()?, *key);
        Some(Box::pin(async move { S::watch(&channel.channel, &key).await.is_ok() }))
    }

    fn freshness_bound(&self) -> Duration {
        self.bound
    }

    fn source(&self) -> NearSource {
        S::KIND
    }

    fn refusal(&self) -> Option<&'static str> {
        self.inner.shared.why_never()
    }

    fn start(
        &self,
        runtime: &Arc<dyn Runtime>,
        observer: Arc<dyn NearObserver>,
        notices: Option<Arc<dyn DatabaseNotices>>,
    ) -> Result<(), &'static str> {
        let mut users = self.inner.users();
        let is_running = users.task.as_mut().is_some_and(Running::is_running);
        if let Some(refusal) = self.inner.shared.why_never().filter(|_| is_running) {
            return Err(refusal);
        }
        users.count += 1;
        self.inner.observers.add(&observer);
        if is_running {
            if self.inner.channel().is_some() {
                observer.note(NearEvent::Opened);
            }
            return Ok(());
        }
        if users.task.take().is_some() {
            // The runtime of the store that had begun it has ended.
            self.inner.give_up_channel();
            self.inner.shared.detach();
        }
        self.inner.shared.attach(notices);
        let observer = Arc::clone(&self.inner.observers) as Arc<dyn NearObserver>;
        let listener = Arc::new(Listener::new(self.inner.memory.clone(), Arc::clone(&observer)));
        let inner = Arc::downgrade(&self.inner);
        let (keeper_runtime, bound) = (Arc::clone(runtime), self.bound);
        let keeper = Keeper { inner, listener, observer, runtime: keeper_runtime, bound };
        users.task = Some(Running::start(&**runtime, keeper));
        Ok(())
    }

    fn stop(&self) -> BoxFuture<()> {
        let mut users = self.inner.users();
        users.count = users.count.saturating_sub(1);
        let task = if users.count == 0 { users.task.take() } else { None };
        drop(users);
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            if let Some(task) = task {
                task.stop().await;
                // The task has done so, unless its runtime has dropped it.
                inner.reset_unless_used();
            }
        })
    }

    #[cfg(feature = "__simulation")]
    fn __peek_anyway(&self, key: &StoredKey) -> Option<Entry> {
        self.inner.memory.hit(key, self.inner.now())
    }

    #[cfg(feature = "__simulation")]
    fn __is_fresh(&self) -> bool {
        self.inner.is_fresh(self.inner.now())
    }
}

impl<S: Source> Clone for NearCache<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), bound: self.bound }
    }
}

impl<S: Source> fmt::Debug for NearCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NearCache")
            .field("memory", &self.inner.memory)
            .field("shared", &self.inner.shared)
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

/// Applies reports to memory, in the order in which they come, before the channel hands on a later answer.
#[derive(Debug)]
struct Listener {
    memory: MokaCache,
    observer: Arc<dyn NearObserver>,
    #[cfg(feature = "__simulation")]
    late: Mutex<Vec<StoredKey>>,
}

impl Listener {
    fn new(memory: MokaCache, observer: Arc<dyn NearObserver>) -> Self {
        Self {
            memory,
            observer,
            #[cfg(feature = "__simulation")]
            late: Mutex::default(),
        }
    }
}

impl NoticeListener for Listener {
    fn changed(&self, key: &StoredKey) {
        mutant!(NearNoticeKeepsLease => return self.memory.remove_value(key));
        mutant!(NearNoticesLate => return self.put_off(key));
        self.memory.remove(key);
        self.observer.note(NearEvent::Noticed(key));
    }

    fn all_changed(&self) {
        self.memory.remove_all();
        self.observer.note(NearEvent::Forgotten);
    }

    fn ignored(&self) {
        self.observer.note(NearEvent::Ignored);
    }
}
