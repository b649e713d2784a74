//! Near caches in the driver: their start and stop, and the wait before a final operation is acknowledged.

use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use session_core::{BoxFuture, Cache, DatabaseNotices, NearEvent, NearObserver as _, NearSource, StoredKey};

use super::{CoherentCache, WriteOperation};
use crate::runtime::within;
use crate::telemetry::NearTelemetry;
use crate::telemetry::metrics::Labels;
use crate::watch::Watches;

/// The share of the freshness bound that is added to the wait, because the clocks of two nodes do not run equally fast.
const DRIFT: u32 = 128;

/// The time that is added to the wait because timers may be rounded.
const ROUNDING: Duration = Duration::from_millis(1);

/// The maximum time to wait for the end of a channel.
const LONGEST_STOP: Duration = Duration::from_secs(5);

/// A near cache could not be asked to report a change.
#[derive(Debug)]
pub(crate) struct NoReport;

impl<C: Cache> CoherentCache<C> {
    /// Returns `true` if the cache is a near one.
    pub(crate) fn is_near(&self) -> bool {
        self.cache.near().is_some()
    }

    /// Starts listening for changes, if the cache is a near one. `notices` are those of the database, if it reports them. Fails
    /// with the reason if the cache has become another store's.
    pub(crate) fn start_near(
        &self,
        labels: &Labels,
        notices: Option<Arc<dyn DatabaseNotices>>,
        watches: &Arc<Watches>,
    ) -> Result<(), &'static str> {
        let Some(near) = self.cache.near() else { return Ok(()) };
        let telemetry = NearTelemetry::new(&self.telemetry, watches, Arc::clone(&self.runtime), labels);
        let observer = Arc::new(telemetry);
        near.start(&self.runtime, Arc::clone(&observer) as _, notices)?;
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(observer);
        Ok(())
    }

    /// Stops listening for changes, if the cache is a near one. Calls after the first one do nothing.
    pub(crate) async fn stop_near(&self) {
        let observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(near), Some(observer)) = (self.cache.near(), observer) {
            // The channel's task may belong to another store, whose runtime is no longer driven.
            within(&*self.runtime, LONGEST_STOP, pin!(near.stop())).await;
            observer.note(NearEvent::Stopped);
        }
    }

    /// Returns `true` unless the cache is memory alone, and may not show what was just filled under `key`.
    pub(crate) fn may_show(&self, key: &StoredKey) -> bool {
        let alone = self.cache.near().filter(|near| near.source() == NearSource::Database);
        alone.is_none_or(|near| near.peek(key).is_some())
    }

    /// Asks a near cache for a report of the next change of `key`. Fails if its channel does not answer. Does nothing if
    /// no channel is open, or the cache receives no reports.
    pub(crate) async fn ask_for_report(&self, key: &StoredKey) -> Result<(), NoReport> {
        // What is in memory was asked for when it was read.
        let near = self.cache.near().filter(|near| near.peek(key).is_none());
        let Some(asked) = near.and_then(|near| near.watch(key)) else { return Ok(()) };
        match within(&*self.runtime, self.settings.cache_timeout, pin!(asked)).await {
            Some(true) => Ok(()),
            Some(false) | None => Err(NoReport),
        }
    }

    /// Returns a wait that begins now, when the fence of `operation` is confirmed, and after which no node shows what the
    /// operation replaces. Returns `None` if the operation need not be final, if its commit is what other nodes hear of, or if
    /// the cache is no near one: then nothing shows it any more.
    pub(super) fn wait_after_fence(&self, operation: WriteOperation) -> Option<BoxFuture<()>> {
        let source =
            if mutant!(NotifiedWaitFromFence) { NearSource::Database } else { NearSource::SharedCache };
        self.final_wait(operation, source)
    }

    /// The same for a wait that begins when the commit of `operation` is confirmed.
    pub(super) fn wait_after_commit(&self, operation: WriteOperation) -> Option<BoxFuture<()>> {
        mutant!(NotifiedWaitFromFence => return None);
        self.final_wait(operation, NearSource::Database)
    }

    fn final_wait(&self, operation: WriteOperation, source: NearSource) -> Option<BoxFuture<()>> {
        let near = self.cache.near().filter(|near| near.source() == source)?;
        if !self.settings.is_final(operation) || mutant!(NearNoWait) {
            return None;
        }
        Some(self.runtime.sleep(longest_answer(near.freshness_bound())))
    }

    /// Waits until no node shows what was replaced before this is called.
    pub(crate) async fn wait_for_all_nodes(&self) {
        if let Some(near) = self.cache.near() {
            self.runtime.sleep(longest_answer(near.freshness_bound())).await;
        }
    }
}

/// Returns the time after a fence for which a node that has not heard of it may answer from memory.
fn longest_answer(bound: Duration) -> Duration {
    bound.saturating_add(bound / DRIFT).saturating_add(ROUNDING)
}
