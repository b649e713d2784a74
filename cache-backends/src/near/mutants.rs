//! The faulty code of the seeded faults of near caches, and the simulator's view of one.

use std::sync::{Arc, PoisonError};

use session_core::{CacheError, Entry, NoticeSource, StoredKey};

use super::channel::Keeper;
use super::{Inner, Listener, NearCache};

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

impl<S: NoticeSource> Keeper<S> {
    /// Opens another channel when this one is lost, and goes on with the answers of the first one as well.
    pub(super) async fn use_first_until_lost(&self, first: Arc<S::Channel>) -> Option<CacheError> {
        loop {
            let (sent, answer) = self.ping(&first).await?;
            match answer {
                Ok(()) => self.inner.upgrade()?.note_answer(sent, self.bound),
                Err(error) => {
                    self.give_up(&error);
                    let listener = Arc::clone(&self.listener) as Arc<dyn session_core::NoticeListener>;
                    let inner = self.inner.upgrade()?;
                    let opened = inner.shared.open_channel(listener).await.ok()?;
                    inner.set_channel(Some(Arc::new(opened)));
                }
            }
            self.runtime.sleep(self.bound / 4).await;
        }
    }
}

#[doc(hidden)]
impl<S: NoticeSource> NearCache<S> {
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
