use session_core::{
    Cache, CacheError, Entry, Exchange, Expected, Holder, Stamp, State, StoredKey, Timestamp, Token, Value,
    protocol,
};

use super::CoherentCache;
use super::confirmed_fence::ConfirmedFence;
use super::guard::Gate;

/// The reason why a fence was not placed.
pub(super) enum NotFenced {
    /// The cache did not answer. The key is to be repaired in the name of this token.
    NoAnswer(Token),
    /// Writers of other processes got ahead until there was no time left.
    OutOfTime,
}

impl<C: Cache> CoherentCache<C> {
    /// Fences `key`, whose entry was last known as `known`.
    pub(super) async fn place_fence(
        &self,
        key: &StoredKey,
        known: Option<Entry>,
        until: Timestamp,
    ) -> Result<ConfirmedFence, NotFenced> {
        let mut found = known;
        let mut may_retry = true;
        let mut token = self.token();
        mutant!(NoFence => return Ok(self.no_fence(token)));
        for attempt in 0.. {
            if !self.may_exchange(attempt, until).await {
                break;
            }
            mutant!(LosingIsOutage => if attempt >= super::backoff::HASTY_EXCHANGES {
                return Err(NotFenced::NoAnswer(token));
            });
            let stamp = self.stamp();
            let now = self.runtime.now();
            let deadline = now + self.settings.fence_ttl;
            let joined = if mutant!(FenceOverwritten) { None } else { found.as_ref() };
            let fence = protocol::fence(joined, Holder { token, deadline }, now, self.slack());
            let (new, ttl) = (Entry::fence(stamp, fence.clone()), fence.ttl(now));
            let expected = found.as_ref().map_or(Expected::Vacant, |entry| Expected::Stamp(entry.stamp));
            match self.cache.compare_exchange(key, expected, Some(new), ttl).await {
                Ok(Exchange::Stored) => return Ok(ConfirmedFence { token, stamp, fence, deadline }),
                Ok(Exchange::Lost(other)) => {
                    mutant!(EvictionUnfenced => if other.is_none() { return Ok(self.no_fence(token)) });
                    found = other;
                }
                Err(error) if may_retry && error.is_retryable() => {
                    mutant!(FenceRetriedAsItWas => {
                        let placed = ConfirmedFence { token, stamp, fence, deadline };
                        return self.resend_fence(key, expected, ttl, placed).await.map_err(NotFenced::NoAnswer);
                    });
                    may_retry = false;
                    match self.cache.get(key, Gate::Respect).await {
                        Ok(other) => found = other,
                        Err(_) => return Err(NotFenced::NoAnswer(token)),
                    }
                }
                Err(_) => return Err(NotFenced::NoAnswer(token)),
            }
            // Never use a token twice: the attempt before may be applied after all, long after this one is settled.
            token = self.token();
        }
        Err(NotFenced::OutOfTime)
    }

    /// Settles the entry of `key` in the name of `me`, beginning with the entry that was `found` there. `publish` is the
    /// value to publish, with the stamp of our confirmed fence. Returns the stamp under which the value is published.
    pub(super) async fn settle(
        &self,
        key: &StoredKey,
        me: Token,
        mut publish: Option<(Stamp, Value)>,
        mut found: Option<Entry>,
        until: Timestamp,
    ) -> Result<Option<Stamp>, CacheError> {
        let mut may_retry = true;
        for attempt in 0.. {
            if !self.may_exchange(attempt, until).await {
                break;
            }
            let now = self.runtime.now();
            let confirmed = publish.as_ref().map(|(confirmed, _)| *confirmed);
            let settlement = protocol::settle(found.as_ref(), me, confirmed, now, self.slack());
            mutant!(NoPoisoning => if Self::is_fence_of_others(found.as_ref(), me) { return Ok(None) });
            let (Some(entry), false) = (&found, settlement == protocol::Settlement::Keep) else {
                return Ok(None);
            };
            let (new, ttl) = match (settlement, &publish) {
                (protocol::Settlement::Publish, Some((_, value))) => {
                    let (entry, ttl) = self.value_entry(value.clone());
                    (Some(entry), ttl)
                }
                (protocol::Settlement::Fence(fence), _) => {
                    let ttl = if mutant!(NeverPruned) { self.settings.fence_ttl } else { fence.ttl(now) };
                    (Some(Entry::fence(self.stamp(), fence)), ttl)
                }
                _ => (None, self.settings.lease_ttl),
            };
            let published = match &new {
                Some(Entry { stamp, state: State::Value(_) }) => Some(*stamp),
                _ => None,
            };
            let exchange = self.cache.compare_exchange(key, Expected::Stamp(entry.stamp), new, ttl).await;
            match exchange {
                Ok(Exchange::Stored) => return Ok(published),
                Ok(Exchange::Lost(other)) => found = other,
                // The value was refused, as too large for instance: publish nothing instead.
                Err(error) if published.is_some() && !error.is_retryable() => publish = None,
                Err(error) if may_retry && error.is_retryable() => {
                    may_retry = false;
                    found = self.cache.get(key, Gate::Respect).await?;
                }
                Err(error) => return Err(error),
            }
        }
        // The fence that is left there keeps readers on the database until its deadline.
        Err(CacheError::Refused("other processes write this key all the time".into()))
    }
}
