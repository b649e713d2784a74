use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use session_core::{
    Cache, CacheError, CacheProperties, Entry, Exchange, Expected, NoticeChannel, NoticeListener,
    NoticeSource, Scope, StoredKey,
};

/// A cache that loses nothing before its TTL, and reports changes: a map under a lock. A clone is another handle to the
/// same cache.
#[derive(Clone, Debug, Default)]
pub struct MemoryCache {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    entries: HashMap<StoredKey, Kept>,
    channels: Vec<Weak<Watcher>>,
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    until: Instant,
}

impl Shared {
    fn living(&self, key: &StoredKey) -> Option<Entry> {
        self.entries.get(key).filter(|kept| Instant::now() < kept.until).map(|kept| kept.entry.clone())
    }

    /// Removes the entries whose TTL has ended.
    fn expire(&mut self) {
        let now = Instant::now();
        let ended: Vec<_> =
            self.entries.extract_if(|_, kept| kept.until <= now).map(|(key, _)| key).collect();
        for key in ended {
            self.report(&key);
        }
    }

    fn report(&mut self, key: &StoredKey) {
        self.channels.retain(|channel| channel.strong_count() > 0);
        for watcher in self.channels.iter().filter_map(Weak::upgrade) {
            if watcher.watched.lock().expect("no holder of the lock panics").remove(key) {
                watcher.listener.changed(key);
            }
        }
    }
}

impl MemoryCache {
    /// Cuts every channel.
    pub fn cut_channels(&self) {
        for watcher in self.lock().channels.drain(..).filter_map(|channel| channel.upgrade()) {
            watcher.is_cut.store(true, Ordering::SeqCst);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder of the lock panics")
    }
}

impl Cache for MemoryCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        Ok(self.lock().living(key))
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let mut shared = self.lock();
        let found = shared.living(key);
        let is_expected = match expected {
            Expected::Vacant => found.is_none(),
            Expected::Stamp(stamp) => found.as_ref().is_some_and(|entry| entry.stamp == stamp),
        };
        if !is_expected {
            return Ok(Exchange::Lost(found));
        }
        match new.filter(|_| !ttl.is_zero()) {
            Some(entry) => shared.entries.insert(*key, Kept { entry, until: Instant::now() + ttl }),
            None => shared.entries.remove(key),
        };
        shared.report(key);
        Ok(Exchange::Stored)
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Process)
    }
}

impl NoticeSource for MemoryCache {
    type Channel = MemoryChannel;

    async fn open_channel(&self, listener: Arc<dyn NoticeListener>) -> Result<MemoryChannel, CacheError> {
        let watcher =
            Arc::new(Watcher { listener, watched: Mutex::default(), is_cut: AtomicBool::new(false) });
        self.lock().channels.push(Arc::downgrade(&watcher));
        Ok(MemoryChannel { cache: self.clone(), watcher })
    }
}

/// A channel of a [`MemoryCache`]. It reports a change while the change is made.
#[derive(Debug)]
pub struct MemoryChannel {
    cache: MemoryCache,
    watcher: Arc<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    listener: Arc<dyn NoticeListener>,
    watched: Mutex<HashSet<StoredKey>>,
    is_cut: AtomicBool,
}

impl MemoryChannel {
    fn check(&self) -> Result<(), CacheError> {
        let is_cut = self.watcher.is_cut.load(Ordering::SeqCst);
        if is_cut { Err(CacheError::Unavailable("the channel was cut".into())) } else { Ok(()) }
    }
}

impl NoticeChannel for MemoryChannel {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let shared = self.cache.lock();
        self.check()?;
        self.watcher.watched.lock().expect("no holder of the lock panics").insert(*key);
        Ok(shared.living(key))
    }

    async fn ping(&self) -> Result<(), CacheError> {
        self.cache.lock().expire();
        self.check()
    }
}
