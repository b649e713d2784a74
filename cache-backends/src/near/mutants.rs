//! The faulty code of the seeded faults of near caches, and the simulator's view of one.

use std::sync::{Arc, PoisonError};

use session_core::{CacheError, Entry, NoticeListener, StoredKey};

use super::channel::Keeper;
use super::source::Source;
use super::{Inner, Listener, NearCache, Open};

impl Listener {
    /// Puts a report off until after the next answer.
    pub(super) fn put_off(&self, key: &StoredKey) {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).push(*key);
    }

    /// Applies the reports that were put off.
    pub(super) fn catch_up(&self) {
        for key in self.late.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.memory.remove(&key);
        }
    }
}

impl<S: Source> Keeper<S> {
    /// Opens a newer channel for reads, and goes on with the answers of the first one.
    pub(super) async fn use_first_until_lost(&self, first: Arc<S::Channel>) -> Option<CacheError> {
        let listener = Arc::clone(&self.listener) as Arc<dyn NoticeListener>;
        let newer = self.inner.upgrade()?.shared.open(listener).await.ok()?;
        let newer = Open { channel: Arc::new(newer), runtime: Arc::clone(&self.runtime) };
        self.inner.upgrade()?.set_channel(Some(newer));
        loop {
            let (sent, answer) = self.ping(&first).await?;
            match answer {
                Ok(()) => self.inner.upgrade()?.note_answer(sent, self.bound),
                Err(error) => return Some(error),
            }
            self.runtime.sleep(self.interval()).await;
        }
    }
}

#[doc(hidden)]
impl<S: Source> NearCache<S> {
    /// Returns what memory has under `key`, whether or not it may be shown.
    #[must_use]
    pub fn __present(&self, key: &StoredKey) -> Option<Entry> {
        self.inner.memory.present(key)
    }

    /// Returns whether memory may answer, until when, and whether there is a channel.
    #[must_use]
    pub fn __state(&self) -> (bool, u64, bool) {
        let Inner { fresh_until, .. } = &*self.inner;
        let until = fresh_until.load(std::sync::atomic::Ordering::Acquire);
        let now = self.inner.now();
        let is_fresh = self.inner.is_fresh(now);
        (is_fresh, if is_fresh { until.saturating_sub(now.0) } else { 0 }, self.inner.channel().is_some())
    }
}
