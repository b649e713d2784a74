//! The task that closes breakers and starts repairs.
//!
//! It probes each server whose breaker is open. As soon as a server answers, it is used again for all keys but those in the
//! repair queue. Repairs run side by side, each in its key's write queue; a repair that fails backs off by itself.

use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use session_core::{Cache, CacheError, StoredKey, Timestamp, Token};

use super::CoherentCache;
use super::guard::Gate;
use super::repair::{Repair, SIDE_BY_SIDE, SUSPICIOUS};
use crate::runtime::{run_until, within};

impl<C: Cache> CoherentCache<C> {
    /// Starts the task that looks after the repair queue and the breakers, if they need it. Cheap if they do not.
    pub(super) fn tend(self: &Arc<Self>) {
        let needed = self.cache.needs_probes() || self.repairs.len() > 0;
        if needed && self.repairs.claim() {
            let closed = self.tasks.closed();
            let claim = Claim { cache: Arc::downgrade(self), is_released: false };
            let tend = tend(claim, self.settings.probe_interval);
            self.runtime.spawn(Box::pin(run_until(closed, tend)));
        }
    }

    /// Notes that a write of `key` without a fence has ended. Its statement may still commit until `unknown_until`.
    pub(super) fn finish_unfenced(&self, key: &StoredKey, token: Token, unknown_until: Option<Timestamp>) {
        let last_commit = unknown_until.unwrap_or_else(|| self.runtime.now());
        let obsolete_at = self.settings.obsolete_at(last_commit);
        self.repairs.finish(key, token, unknown_until, obsolete_at);
    }

    /// Queues the repairs that have come due.
    fn start_repairs(&self) {
        let Some(turns) = self.repair_turns.upgrade() else { return };
        let (now, interval) = (self.runtime.now(), self.settings.probe_interval);
        for repair in self.repairs.take_due(now, interval, |key| !self.cache.is_open_for(key)) {
            Arc::clone(&turns).queue_repair(repair);
        }
    }

    /// Carries out a repair whose turn has come.
    pub(crate) async fn repair(&self, mut repair: Repair) {
        match self.settle_all(&repair.key, &repair.tokens).await {
            Ok(()) => {
                self.telemetry.counters.repairs.bump();
                repair.done_at = Some(self.runtime.now());
            }
            Err(error) if repair.failures == SUSPICIOUS => {
                tracing::warn!(target: "session_cached_db", event = "repair_failing", session = %self.telemetry.log_id(&repair.key), %error,
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

    /// Settles the entry of `key` in the names of these writers, whose writes were not fenced or not settled.
    async fn settle_all(&self, key: &StoredKey, tokens: &[Token]) -> Result<(), CacheError> {
        let until = self.runtime.now() + self.settings.write_timeout;
        for token in tokens {
            let found = self.cache.get(key, Gate::Respect).await?;
            mutant!(CleanRepair => if Self::is_fence_of_others(found.as_ref(), *token) { return Ok(()) });
            if found.is_none() {
                break;
            }
            self.settle(key, *token, None, found, until).await?;
        }
        Ok(())
    }

    /// Repairs the keys that would be forgotten when the store is gone. Waits two probe intervals for a cache
    /// that does not answer, which is long enough for a short outage.
    pub(crate) async fn repair_at_the_end(&self) {
        let patience = self.settings.probe_interval.saturating_mul(2);
        let repairs = pin!(async {
            while self.repairs.len() > 0 {
                self.cache.probe().await;
                self.repair_all().await;
                if self.repairs.len() > 0 {
                    self.runtime.sleep(self.settings.probe_interval / 8).await;
                }
            }
        });
        if self.repairs.len() > 0 {
            within(&*self.runtime, patience, repairs).await;
        }
        if self.repairs.len() > 0 {
            tracing::warn!(target: "session_cached_db", event = "repairs_abandoned", keys = self.repairs.len(),
                "the store is closed while the cache does not answer; other nodes may see old sessions until max_cache_age");
        }
    }

    /// Repairs all keys that can be repaired now, after the last write.
    async fn repair_all(&self) {
        stream::iter(self.repairs.all())
            .for_each_concurrent(SIDE_BY_SIDE, async |(key, tokens)| {
                // Fails at once for a server whose breaker is open.
                if self.settle_all(&key, &tokens).await.is_ok() {
                    self.telemetry.counters.repairs.bump();
                    self.repairs.remove(&key);
                }
            })
            .await;
    }
}

/// The right to tend the queue, which is released in whatever way the task ends.
struct Claim<C: Cache> {
    cache: Weak<CoherentCache<C>>,
    is_released: bool,
}

impl<C: Cache> Drop for Claim<C> {
    fn drop(&mut self) {
        if !self.is_released
            && let Some(cache) = self.cache.upgrade()
        {
            cache.repairs.release();
        }
    }
}

/// Works until all breakers are closed, no key is left out and the queue is empty, or the store is gone.
async fn tend<C: Cache>(mut claim: Claim<C>, interval: Duration) {
    // The first look comes soon: it may have been one lost call.
    let mut pause = interval / 16;
    loop {
        let Some(cache) = claim.cache.upgrade() else { return };
        let timer = cache.runtime.sleep(pause);
        // Hold only a weak reference over the pause: a store that nothing uses any more ends its tasks.
        drop(cache);
        timer.await;
        let Some(cache) = claim.cache.upgrade() else { return };
        if cache.repairs.len() == 0 || !mutant!(BreakerWaitsForQueue) {
            cache.cache.probe().await;
        }
        cache.start_repairs();
        let needs_probes = cache.cache.needs_probes();
        if !needs_probes && cache.repairs.release_if_empty() {
            claim.is_released = true;
            // A write may have come in just before the claim ended, and found it taken.
            if cache.cache.needs_probes() && cache.repairs.claim() {
                claim.is_released = false;
            } else {
                return;
            }
        }
        // Keys that can be repaired soon are looked at soon, however long the cache may be away; and so is a server that falls
        // silent while a key is left out.
        let is_away = cache.cache.is_any_open();
        pause = if is_away { (pause * 2).clamp(interval / 16, interval) } else { interval / 16 };
    }
}
