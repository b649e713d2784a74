use std::pin::Pin;
use std::sync::Arc;

use session_core::{BoxFuture, Cache, Entry, Outcome, Stamp, StoredKey, Timestamp, Token, Value};

use super::confirmed_fence::ConfirmedFence;
use super::fence::NotFenced;
use super::{Coherence, CoherentCache, OutagePolicy, WriteOperation};
use crate::Error;

/// The maximum number of times that a write renews a fence which has nearly expired by the time the cache confirms it.
const MAX_RENEWALS: u32 = 8;

/// One write of one key, from its fence to its settlement.
///
/// Must be driven by a detached task: a write that is dropped in the middle leaves its fence until the deadline.
pub(crate) struct FencedWrite<'a, C: Cache> {
    cache: &'a Arc<CoherentCache<C>>,
    operation: WriteOperation,
    key: StoredKey,
    protection: Protection,
    /// The instant at which the write gives up getting ahead of writers in other processes.
    deadline: Timestamp,
    /// A statement may still commit, with no client that waits for its answer.
    is_unknown: bool,
    /// A statement was carried out.
    is_written: bool,
    /// The wait after which no node shows what a final operation replaces, if there is a near cache.
    final_wait: Option<BoxFuture<()>>,
}

/// The reason why no reader elsewhere is shown the replaced value.
enum Protection {
    /// Our confirmed fence.
    Fence(ConfirmedFence),
    /// None, because the cache did not answer. The key is in the repair queue, in the name of this token.
    Repair(Token),
    /// None any more: the write is over.
    Ended,
}

impl Protection {
    /// Returns the wait of a final operation that begins with its fence, if this is one.
    fn final_wait<C: Cache>(
        &self,
        cache: &CoherentCache<C>,
        operation: WriteOperation,
    ) -> Option<BoxFuture<()>> {
        matches!(self, Self::Fence(_)).then(|| cache.wait_after_fence(operation)).flatten()
    }
}

impl<'a, C: Cache> FencedWrite<'a, C> {
    /// Fences `key`. `seen` is the stamp of the value that the cache held when the session was loaded.
    pub(crate) async fn begin(
        cache: &'a Arc<CoherentCache<C>>,
        operation: WriteOperation,
        key: StoredKey,
        seen: Option<Stamp>,
    ) -> Result<Self, Error> {
        // The entry seen was a value. A fence replaces a value as it does a lease.
        let known = seen.map(Entry::lease);
        let deadline = cache.runtime.now() + cache.settings.write_timeout;
        #[cfg(feature = "__simulation")]
        let early = if mutant!(NearWaitFromBeginning) { cache.wait_after_fence(operation) } else { None };
        let protection = cache.protect(operation, &key, known, deadline).await?;
        let final_wait = protection.final_wait(cache, operation);
        #[cfg(feature = "__simulation")]
        let final_wait = early.or(final_wait);
        Ok(Self {
            cache,
            operation,
            key,
            protection,
            deadline,
            is_unknown: false,
            is_written: false,
            final_wait,
        })
    }

    /// Returns `true` if a statement may be tried again after this number of conflicts with other processes. Waits a while
    /// before it returns.
    pub(crate) async fn may_try_again(&mut self, conflicts: u32) -> bool {
        self.cache.may_try(conflicts, self.deadline).await && self.cache.runtime.now() < self.deadline
    }

    pub(crate) const fn key(&self) -> &StoredKey {
        &self.key
    }

    /// Runs one statement within the protection of the fence. Another one may follow only if the one before had no effect.
    ///
    /// The statement stays where its caller has pinned it: it is large, and every function that it is moved into would have
    /// room for it twice.
    pub(crate) async fn statement<T>(
        &mut self,
        statement: Pin<&mut (impl Future<Output = Result<T, Error>> + Send)>,
    ) -> Result<T, Error> {
        if !self.is_fenced_long_enough() {
            // Boxed because it is rare: the future of every write would have room for it.
            Box::pin(self.renew_fence()).await?;
        }
        // Until its answer, should this be dropped in the middle.
        let was_unknown = std::mem::replace(&mut self.is_unknown, true);
        let result = statement.await;
        let is_unknown = result.as_ref().is_err_and(|error| error.outcome() == Outcome::Unknown);
        self.is_unknown = was_unknown || is_unknown;
        if result.is_ok() {
            self.note_commit();
        }
        result
    }

    /// Notes that a statement has certainly been committed: its answer, or what was read since, says so.
    pub(crate) fn note_commit(&mut self) {
        self.is_written = true;
        if let Some(wait) = self.cache.wait_after_commit(self.operation) {
            self.final_wait = Some(wait);
        }
    }

    /// Returns `true` if a statement that is sent now cannot outlive the fence.
    fn is_fenced_long_enough(&self) -> bool {
        let is_late = |latest| self.cache.runtime.now() > latest;
        !self.latest_sending().is_some_and(is_late) || mutant!(WritePastDeadline)
    }

    /// Returns the latest instant at which a statement can be sent that does not outlive the fence. Without a fence there is
    /// nothing to outlive.
    pub(crate) fn latest_sending(&self) -> Option<Timestamp> {
        let Protection::Fence(fence) = &self.protection else { return None };
        Some(fence.deadline - self.cache.settings.longest_statement)
    }

    /// Places another fence as long as a statement that is sent now could outlive the present one.
    async fn renew_fence(&mut self) -> Result<(), Error> {
        let cache = self.cache;
        for _ in 0..MAX_RENEWALS {
            let Protection::Fence(placed) = &self.protection else { return Ok(()) };
            let mut known = placed.fence.clone();
            known.holders.retain(|holder| holder.token != placed.token);
            let known = Some(Entry::fence(placed.stamp, known));
            self.protection = cache.protect(self.operation, &self.key, known, self.deadline).await?;
            // The fence before may have ended, and the key may have been read since.
            self.final_wait = self.protection.final_wait(cache, self.operation);
            // This answer, too, may have come so late that the new fence has nearly expired.
            if self.is_fenced_long_enough() {
                return Ok(());
            }
        }
        self.protection = cache.degrade(self.operation, &self.key, cache.token())?;
        Ok(())
    }

    /// Ends the write: removes the fence, and publishes `publish` in its place if that is possible. Returns the stamp under
    /// which it is published, and how far caches can be trusted.
    pub(crate) async fn finish(mut self, publish: Option<Value>) -> (Option<Stamp>, Coherence) {
        let cache = self.cache;
        match std::mem::replace(&mut self.protection, Protection::Ended) {
            Protection::Fence(fence) => {
                cache.telemetry.counters.fenced_writes.bump();
                let stamp = if self.is_unknown && !mutant!(SettledOnUnknown) {
                    // The fence stays: the statement may still commit.
                    None
                } else {
                    self.remove_fence(fence, publish).await
                };
                self.wait_until_final().await;
                (stamp, Coherence::Coherent)
            }
            Protection::Repair(token) => {
                cache.telemetry.counters.degraded_writes.bump();
                mutant!(DegradedPublishes => return cache.publish_anyway(&self.key, token, publish).await);
                let unknown_until =
                    self.is_unknown.then(|| cache.runtime.now() + cache.settings.longest_statement);
                cache.finish_unfenced(&self.key, token, unknown_until);
                cache.tend();
                self.wait_until_final().await;
                (None, Coherence::Degraded)
            }
            Protection::Ended => (None, Coherence::Coherent),
        }
    }

    /// Waits until no node shows what a final operation has replaced.
    async fn wait_until_final(&mut self) {
        if let Some(wait) = self.final_wait.take().filter(|_| self.is_written) {
            wait.await;
        }
    }

    async fn remove_fence(&mut self, placed: ConfirmedFence, publish: Option<Value>) -> Option<Stamp> {
        let cache = self.cache;
        let ConfirmedFence { token, stamp, fence, deadline } = placed;
        let publish = publish.map(|value| (stamp, value));
        let until = cache.runtime.now() + cache.settings.write_timeout;
        let settling = cache.settle(&self.key, token, publish, Some(Entry::fence(stamp, fence)), until);
        settling.await.unwrap_or_else(|error| {
            // Until the fence is removed, or ends at its deadline, the key is read from the database.
            tracing::debug!(target: "session_cached_db", event = "settle_lost", session = %cache.telemetry.log_id(&self.key), %error);
            cache.repairs.add_fenced(&self.key, token, deadline + cache.settings.clock_slack);
            cache.tend();
            None
        })
    }
}

/// A write that ends in the middle, by a panic for instance. A statement that was sent may still commit.
impl<C: Cache> Drop for FencedWrite<'_, C> {
    fn drop(&mut self) {
        let cache = self.cache;
        match std::mem::replace(&mut self.protection, Protection::Ended) {
            Protection::Fence(fence) if !self.is_unknown => {
                let ConfirmedFence { token, deadline, .. } = fence;
                cache.repairs.add_fenced(&self.key, token, deadline + cache.settings.clock_slack);
                cache.tend();
            }
            Protection::Repair(token) => {
                let until = cache.runtime.now() + cache.settings.longest_statement;
                cache.finish_unfenced(&self.key, token, self.is_unknown.then_some(until));
                cache.tend();
            }
            // The fence stays: the statement may still commit.
            Protection::Fence(_) | Protection::Ended => {}
        }
    }
}

impl<C: Cache> CoherentCache<C> {
    /// Fences `key`, whose entry was last known as `known`, or follows the outage policy.
    async fn protect(
        self: &Arc<Self>,
        operation: WriteOperation,
        key: &StoredKey,
        known: Option<Entry>,
        deadline: Timestamp,
    ) -> Result<Protection, Error> {
        match self.place_fence(key, known, deadline).await {
            Ok(fence) => Ok(Protection::Fence(fence)),
            Err(NotFenced::OutOfTime) => Err(Error::Busy),
            Err(NotFenced::NoAnswer(token)) => {
                self.tend();
                self.degrade(operation, key, token)
            }
        }
    }

    /// Follows the outage policy for a write of `key` that cannot be fenced.
    fn degrade(&self, operation: WriteOperation, key: &StoredKey, token: Token) -> Result<Protection, Error> {
        mutant!(OutageFailsWrites => return Err(Error::CacheUnavailable));
        match self.settings.outage_policy(operation) {
            OutagePolicy::FailClosed if mutant!(FailClosedWrites) => {
                self.repairs.begin(key, token);
                Ok(Protection::Repair(token))
            }
            OutagePolicy::FailClosed => Err(Error::CacheUnavailable),
            OutagePolicy::Degrade => {
                if let Some(suppressed) =
                    self.telemetry.log_limits.admit("degraded_write", self.runtime.now())
                {
                    tracing::warn!(target: "session_cached_db", event = "degraded_write", ?operation, session = %self.telemetry.log_id(key), suppressed,
                        "a session is written while the cache does not answer; its entry is repaired later");
                }
                self.repairs.begin(key, token);
                Ok(Protection::Repair(token))
            }
        }
    }
}
