//! The faulty code of the seeded faults of the protocol.

use std::sync::Arc;
use std::time::Duration;

use session_core::{
    Acquired, Cache, Entry, Exchange, Expected, Fence, Holder, Near, Stamp, State, StoredKey, Timestamp,
    Token, Value,
};

use super::confirmed_fence::ConfirmedFence;
use super::guard::Gate;
use super::{Coherence, CoherentCache, Loaded, Lookup};

/// The time for which a thread is interrupted: as long as the simulator's final operations wait.
const INTERRUPTION: Duration = Duration::from_millis(1_291);

impl<C: Cache> CoherentCache<C> {
    pub(super) async fn look_up_again(self: &Arc<Self>, key: &StoredKey, lease: Stamp) -> Lookup {
        match self.cache.acquire(key, Entry::lease(lease), self.settings.lease_ttl).await {
            Ok(Acquired::Placed) => Lookup::Leased(lease),
            Ok(Acquired::Found(entry)) => self.hit(entry).map_or(Lookup::Bypass, Lookup::Hit),
            Err(_) => Lookup::Bypass,
        }
    }

    /// Fills the key whether or not the lease still holds: over nothing, or over whatever is there.
    pub(super) async fn fill_anyway(&self, key: &StoredKey, lease: Stamp, value: Value) -> Option<Stamp> {
        let mut expected = Expected::Stamp(lease);
        loop {
            match self.place_value(key, expected, value.clone()).await {
                Ok(stamp) => return Some(stamp),
                Err(Some(Exchange::Lost(None))) => expected = Expected::Vacant,
                Err(Some(Exchange::Lost(Some(other)))) if mutant!(NoLeaseCheck) => {
                    expected = Expected::Stamp(other.stamp);
                }
                Err(_) => return None,
            }
        }
    }

    pub(crate) async fn place_value(
        &self,
        key: &StoredKey,
        expected: Expected,
        value: Value,
    ) -> Result<Stamp, Option<Exchange>> {
        let (entry, ttl) = self.value_entry(value);
        let stamp = entry.stamp;
        match self.cache.compare_exchange(key, expected, Some(entry), ttl).await {
            Ok(Exchange::Stored) => Ok(stamp),
            other => Err(other.ok()),
        }
    }

    /// Returns a fence that was never placed.
    pub(super) fn no_fence(&self, token: Token) -> ConfirmedFence {
        let deadline = Timestamp::MAX;
        let fence = Fence { holders: vec![Holder { token, deadline }], dirty: false };
        ConfirmedFence { token, stamp: self.stamp(), fence, deadline }
    }

    pub(super) async fn resend_fence(
        &self,
        key: &StoredKey,
        expected: Expected,
        ttl: Duration,
        placed: ConfirmedFence,
    ) -> Result<ConfirmedFence, Token> {
        let again = Some(Entry::fence(placed.stamp, placed.fence.clone()));
        match self.cache.compare_exchange(key, expected, again, ttl).await {
            Ok(Exchange::Stored) => Ok(placed),
            // The first one was applied.
            Ok(Exchange::Lost(Some(other))) if other.stamp == placed.stamp => Ok(placed),
            _ => Err(placed.token),
        }
    }

    /// Takes the entry from memory, is interrupted, and looks at the basis afterwards.
    pub(super) async fn near_hit_freshness_last(&self, near: &dyn Near, key: &StoredKey) -> Option<Loaded> {
        let entry = near.__peek_anyway(key)?;
        self.runtime.sleep(INTERRUPTION).await;
        if self.repairs.holds(key) || !near.__is_fresh() {
            return None;
        }
        self.hit(entry)
    }

    /// Replaces whatever is there by the value of a write that was not fenced.
    pub(super) async fn publish_anyway(
        self: &Arc<Self>,
        key: &StoredKey,
        token: Token,
        value: Option<Value>,
    ) -> (Option<Stamp>, Coherence) {
        let found = self.cache.get(key, Gate::Probe).await.ok().flatten();
        let expected = found.map_or(Expected::Vacant, |entry| Expected::Stamp(entry.stamp));
        let stamp = match value {
            Some(value) => self.place_value(key, expected, value).await.ok(),
            None => None,
        };
        self.repairs.forget(key, token);
        (stamp, Coherence::Degraded)
    }

    /// Returns `true` if `entry` is a fence without `me`.
    pub(super) fn is_fence_of_others(entry: Option<&Entry>, me: Token) -> bool {
        match entry.map(|entry| &entry.state) {
            Some(State::Fence(fence)) => fence.holders.iter().all(|holder| holder.token != me),
            _ => false,
        }
    }
}
