//! Deletes expired sessions in the background.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use session_core::{Cache, Persistence};

use super::inner::Inner;
use super::settings::Reaper;
use crate::Error;
use crate::runtime::run_until;

/// The reaper rests for this many times as long as a batch took: reaping can wait, and the requests beside it cannot. So
/// three nodes that reap at the same time leave most of the database's time to others.
const REST: u32 = 9;

impl<C: Cache, P: Persistence> Inner<C, P> {
    pub(crate) fn start_reaper(self: &Arc<Self>, reaper: Reaper) {
        let closed = self.tasks.closed();
        let rounds = rounds(Arc::downgrade(self), reaper);
        self.runtime.spawn(Box::pin(run_until(closed, rounds)));
    }

    /// Returns the difference between this machine's clock and the database's, without the part that the time of asking may
    /// explain.
    pub(crate) async fn clock_skew(&self) -> Result<Duration, Error> {
        let asked_at = self.runtime.now();
        let theirs = self.db.now().await?;
        Ok(theirs.since(self.runtime.now()).max(asked_at.since(theirs)))
    }

    /// Fails if this machine's clock and the database's differ by more than the slack.
    async fn check_clock(&self) -> Result<(), Error> {
        let by = self.clock_skew().await?;
        if by <= self.settings.clock_slack {
            return Ok(());
        }
        self.telemetry.counters.clock_skews.bump();
        tracing::error!(target: "session_cached_db", event = "clock_skew", ?by,
            "this machine's clock and the database's differ by more than clock_slack; nothing is deleted, set the clock that is wrong");
        Err(Error::ClockSkew { by })
    }

    /// Deletes the sessions that expired at least a clock slack ago: no cache serves them any more, on any node. Rests between
    /// two batches, for `pause` at least, if that is some.
    pub(crate) async fn reap(&self, batch: u32, pause: Option<Duration>) -> Result<u64, Error> {
        self.check_clock().await?;
        let before = self.runtime.now() - self.settings.clock_slack;
        let mut reaped = 0;
        loop {
            let began = self.runtime.now();
            let mut deleted = self.db.delete_expired(before, batch).await?;
            let took = self.runtime.now().since(began);
            self.telemetry.counters.reaped.add(deleted.count);
            reaped += deleted.count;
            if deleted.count > 0 {
                // The subjects of another application on this table are other people.
                deleted.sessions.retain(|session| self.settings.owns(&session.key));
                self.telemetry.call_hooks(|hooks| hooks.expired(deleted.count, &deleted.sessions));
            }
            if !deleted.is_unfinished(batch) {
                return Ok(reaped);
            }
            if let Some(pause) = pause {
                self.runtime.sleep(pause.max(took.saturating_mul(REST))).await;
            }
        }
    }

    /// Returns `interval`, give or take a quarter.
    fn jittered(&self, interval: Duration) -> Duration {
        let eighths = 6 + self.runtime.random_u64().get() % 5;
        (interval / 8).saturating_mul(u32::try_from(eighths).unwrap_or(8))
    }
}

/// Runs rounds until the store is gone.
async fn rounds<C: Cache, P: Persistence>(store: Weak<Inner<C, P>>, reaper: Reaper) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        let timer = inner.runtime.sleep(inner.jittered(reaper.interval));
        // Hold only a weak reference over the pause: a store that nothing uses any more ends its tasks.
        drop(inner);
        timer.await;
        let Some(inner) = store.upgrade() else { return };
        let round = AssertUnwindSafe(inner.reap(reaper.batch, Some(reaper.pause))).catch_unwind();
        // A panic of a hook ends its round, and not the reaper.
        let Ok(reaped) = round.await else {
            tracing::error!(target: "session_cached_db", event = "reaper_panicked",
                "Hooks::expired has panicked; the sessions of its batch are deleted, others follow in the next round");
            continue;
        };
        match reaped {
            Ok(reaped) => tracing::debug!(target: "session_cached_db", event = "reaped", reaped),
            // Logged when it was found.
            Err(Error::ClockSkew { .. }) => {}
            Err(error) => tracing::warn!(target: "session_cached_db", event = "reaper_failed", %error,
                "expired sessions could not be deleted; trying again in the next round"),
        }
    }
}
