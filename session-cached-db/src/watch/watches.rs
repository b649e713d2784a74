use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use session_core::{Runtime, SessionKey, StoredKey, Timestamp};

use super::hints::Hints;
use super::looking::{self, Look, Looking, WeakLooking};
use crate::telemetry::metrics::{Gauge, Labels};

/// The number of looks per millisecond after a hint at all sessions, to protect the database.
const LOOKS_PER_MS: u32 = 1;

/// The sessions that are watched in this process. An entry is removed with its last watch.
#[derive(Debug)]
pub(crate) struct Watches {
    watched: Mutex<HashMap<StoredKey, Watched>>,
    /// The number of watched sessions. A report reads only this while there are none.
    count: AtomicUsize,
    gauge: Gauge,
    runtime: Arc<dyn Runtime>,
}

#[derive(Debug)]
struct Watched {
    /// Identifies this entry, in case another one has taken its place.
    hints: Arc<Hints>,
    looking: WeakLooking,
}

impl Watches {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, labels: &Labels) -> Self {
        let gauge = Gauge::new(
            "session_watched_sessions",
            "Sessions whose end is watched for in this process",
            labels,
        );
        Self { watched: Mutex::default(), count: AtomicUsize::new(0), gauge, runtime }
    }

    /// Joins the looks at the session under `key`, or begins them. The next look finds every change from before this call.
    pub(super) fn join(
        self: &Arc<Self>,
        key: StoredKey,
        session_key: Option<SessionKey>,
        interval: Duration,
        store: &Weak<dyn Look>,
    ) -> Looking {
        // Declared before the guard, so that it is dropped after it: its drop takes the lock.
        let _ended;
        let mut watched = self.lock();
        if let Some(Watched { hints, looking }) = watched.get(&key)
            && let Some(looking) = looking.upgrade()
        {
            if looking.peek().is_none() {
                hints.join(interval, session_key);
                hints.add(Duration::ZERO);
                return looking;
            }
            _ended = looking;
        }
        let hints = Arc::new(Hints::new(interval, session_key));
        let registered = Registered { watches: Arc::clone(self), key, hints: Arc::clone(&hints) };
        let (store, runtime) = (Weak::clone(store), Arc::clone(&self.runtime));
        let looking = async move {
            let Registered { hints, .. } = &registered;
            looking::run(key, Arc::clone(hints), store, runtime).await
        };
        let looking = looking.boxed().shared();
        if let Some(weak) = looking.downgrade() {
            watched.insert(key, Watched { hints, looking: weak });
        }
        self.note_count(&watched);
        looking
    }

    /// Hints that the session under `key` may have ended.
    pub(crate) fn hint(&self, key: &StoredKey) {
        if self.count.load(Ordering::Acquire) > 0
            && let Some(watched) = self.lock().get(key)
        {
            watched.hints.add(Duration::ZERO);
        }
    }

    /// Notes that a write of this process has set the expiry of the session under `key`.
    pub(crate) fn note_expiry(&self, key: &StoredKey, expires_at: Timestamp) {
        if self.count.load(Ordering::Acquire) > 0
            && let Some(watched) = self.lock().get(key)
        {
            watched.hints.note_expiry(expires_at);
        }
    }

    /// Hints that any session may have ended.
    pub(crate) fn hint_all(&self) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let watched = self.lock();
        let longest = u64::try_from(watched.len()).unwrap_or(u64::MAX) / u64::from(LOOKS_PER_MS);
        for Watched { hints, .. } in watched.values() {
            hints.add_spread(Duration::from_millis(self.runtime.random_u64().get() % longest.max(1)));
        }
    }

    fn note_count(&self, watched: &HashMap<StoredKey, Watched>) {
        self.count.store(watched.len(), Ordering::Release);
        self.gauge.set(watched.len());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StoredKey, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registration of a watched session. Its drop, with the last watch, removes the entry.
struct Registered {
    watches: Arc<Watches>,
    key: StoredKey,
    hints: Arc<Hints>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut watched = self.watches.lock();
        if watched.get(&self.key).is_some_and(|watched| Arc::ptr_eq(&watched.hints, &self.hints)) {
            watched.remove(&self.key);
        }
        self.watches.note_count(&watched);
    }
}
