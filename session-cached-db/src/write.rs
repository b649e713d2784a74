//! Writing a session: fence, database, settle.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{
    Acquired, Cache, CacheError, Entry, Exchange, Expected, Fence, Holder, Outcome, Persistence,
    PersistenceError, Stamp, State, StoredKey, Timestamp, Token, Value, protocol,
};

use crate::cache_guard::Gate;
use crate::inner::Inner;
use crate::{Coherence, Error, Operation, OutagePolicy};

/// How many exchanges are tried again at once after another process got ahead. Then there are pauses.
const HASTY_EXCHANGES: u32 = 4;

/// The longest pause before an exchange is tried again.
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// How often a fence is renewed that is as good as over when the cache confirms it.
const MAX_RENEWALS: u32 = 8;

/// One write of one key, from its fence to its settlement.
///
/// Must be driven by a detached task: what is dropped in the middle leaves its fence until the deadline.
pub(crate) struct Write<'a, C: Cache, P: Persistence> {
    store: &'a Arc<Inner<C, P>>,
    operation: Operation,
    key: StoredKey,
    protection: Protection,
    /// When it is no longer tried to get ahead of writers in other processes.
    deadline: Timestamp,
    /// A statement may still commit after its client has given up.
    is_unknown: bool,
}

/// What keeps other readers from being shown what this write replaces.
enum Protection {
    /// Our fence, confirmed.
    Fence(Placed),
    /// Nothing: the cache did not answer. The key is in the repair queue, in the name of this token.
    Repair(Token),
    /// None any more: the write is over.
    Ended,
}

/// Why a fence was not placed.
enum NotFenced {
    /// The cache did not answer. The key is to be repaired in the name of this token.
    NoAnswer(Token),
    /// Writers of other processes got ahead, until there was no time left.
    OutOfTime,
}

/// A fence that the cache has confirmed.
pub(crate) struct Placed {
    pub(crate) token: Token,
    pub(crate) stamp: Stamp,
    pub(crate) fence: Fence,
    pub(crate) deadline: Timestamp,
}

impl<'a, C: Cache, P: Persistence> Write<'a, C, P> {
    /// Fences `key`. `seen` is the stamp of the value that the cache held when the session was loaded.
    pub(crate) async fn begin(
        store: &'a Arc<Inner<C, P>>,
        operation: Operation,
        key: StoredKey,
        seen: Option<Stamp>,
    ) -> Result<Self, Error> {
        // What was seen was a value. A fence replaces it, as it would a lease.
        let known = seen.map(Entry::lease);
        let deadline = store.runtime.now() + store.config.write_timeout;
        let protection = store.protect(operation, &key, known, deadline).await?;
        Ok(Self { store, operation, key, protection, deadline, is_unknown: false })
    }

    /// Whether a statement that another process got ahead of may be tried again, after so many conflicts. Waits before it
    /// says so.
    pub(crate) async fn may_try_again(&self, conflicts: u32) -> bool {
        self.store.may_try(conflicts, self.deadline).await && self.store.runtime.now() < self.deadline
    }

    pub(crate) const fn key(&self) -> &StoredKey {
        &self.key
    }

    /// Runs one statement, within the protection of the fence. A further one only if the one before had no effect.
    ///
    /// It stays where its caller has pinned it: a statement is large, and every function that it is moved into would
    /// have room for it twice.
    pub(crate) async fn statement<T>(
        &mut self,
        statement: Pin<&mut (impl Future<Output = Result<T, PersistenceError>> + Send)>,
    ) -> Result<T, Error> {
        if !self.is_fenced_long_enough() {
            // Boxed, because it is rare, and every write's future would have room for it.
            Box::pin(self.renew_fence()).await?;
        }
        let result = self.store.bounded(statement).await;
        self.is_unknown |= result.as_ref().is_err_and(|error| error.outcome() == Outcome::Unknown);
        result
    }

    /// Whether a statement that is sent now cannot outlive the fence. Where there is none, there is nothing to outlive.
    fn is_fenced_long_enough(&self) -> bool {
        let Protection::Fence(placed) = &self.protection else { return true };
        let latest_commit = self.store.runtime.now() + self.store.config.longest_statement();
        latest_commit <= placed.deadline || mutant!(WritePastDeadline)
    }

    /// Places another fence as long as a statement that is sent now could outlive the present one.
    async fn renew_fence(&mut self) -> Result<(), Error> {
        let store = self.store;
        for _ in 0..MAX_RENEWALS {
            let Protection::Fence(placed) = &self.protection else { return Ok(()) };
            let mut known = placed.fence.clone();
            known.holders.retain(|holder| holder.token != placed.token);
            let known = Some(Entry::fence(placed.stamp, known));
            self.protection = store.protect(self.operation, &self.key, known, self.deadline).await?;
            // The answer, too, may have come so late that the new fence is as good as over.
            if self.is_fenced_long_enough() {
                return Ok(());
            }
        }
        self.protection = store.degrade(self.operation, &self.key, store.token())?;
        Ok(())
    }

    /// Ends the write: takes the fence away, in favour of `publish` if that is possible. Gives the stamp under which it
    /// is published, and how far the cache is to be trusted.
    pub(crate) async fn settle(mut self, publish: Option<Value>) -> (Option<Stamp>, Coherence) {
        let store = self.store;
        match std::mem::replace(&mut self.protection, Protection::Ended) {
            Protection::Fence(placed) => {
                store.counters.fenced_writes.bump();
                if self.is_unknown && !mutant!(SettledOnUnknown) {
                    // The fence stays: the statement may still commit.
                    return (None, Coherence::Coherent);
                }
                let confirmed = Some(Entry::fence(placed.stamp, placed.fence));
                let publish = publish.and_then(|value| store.cacheable(&self.key, value));
                let publish = publish.map(|value| (placed.stamp, value));
                let until = store.runtime.now() + store.config.write_timeout;
                let settling = store.settle_entry(&self.key, placed.token, publish, confirmed, until);
                let settled = settling.await;
                if let Err(error) = &settled {
                    // Until the fence is taken away, or ends at its deadline, the key is read from the database.
                    tracing::debug!(target: "session_cached_db", event = "settle_lost", session = %store.name(&self.key), %error);
                    let obsolete_at = placed.deadline + store.config.clock_slack;
                    store.repairs.add_fenced(&self.key, placed.token, obsolete_at);
                    store.tend_cache();
                }
                (settled.unwrap_or_default(), Coherence::Coherent)
            }
            Protection::Repair(token) => {
                store.counters.degraded_writes.bump();
                mutant!(DegradedPublishes => return store.publish_anyway(&self.key, token, publish).await);
                let unknown_until =
                    self.is_unknown.then(|| store.runtime.now() + store.config.longest_statement());
                store.finish_unfenced(&self.key, token, unknown_until);
                store.tend_cache();
                (None, Coherence::Degraded)
            }
            Protection::Ended => (None, Coherence::Coherent),
        }
    }
}

/// A write that ends in the middle, by a panic for instance, may still commit.
impl<C: Cache, P: Persistence> Drop for Write<'_, C, P> {
    fn drop(&mut self) {
        if let Protection::Repair(token) = self.protection {
            let unknown_until = self.store.runtime.now() + self.store.config.longest_statement();
            self.store.finish_unfenced(&self.key, token, Some(unknown_until));
        }
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Runs one statement for as long as the write timeout allows.
    pub(crate) async fn bounded<T>(
        &self,
        statement: Pin<&mut (impl Future<Output = Result<T, PersistenceError>> + Send)>,
    ) -> Result<T, Error> {
        match select(statement, self.runtime.sleep(self.config.write_timeout)).await {
            Either::Left((result, _)) => result.map_err(Error::from),
            Either::Right(_) => {
                Err(PersistenceError::Unknown("no answer within the write timeout".into()).into())
            }
        }
    }

    /// Fences `key`, where `known` was last; or does what the outage policy says.
    async fn protect(
        self: &Arc<Self>,
        operation: Operation,
        key: &StoredKey,
        known: Option<Entry>,
        deadline: Timestamp,
    ) -> Result<Protection, Error> {
        match self.place_fence(key, known, deadline).await {
            Ok(placed) => Ok(Protection::Fence(placed)),
            Err(NotFenced::OutOfTime) => Err(Error::Busy),
            Err(NotFenced::NoAnswer(token)) => {
                self.tend_cache();
                self.degrade(operation, key, token)
            }
        }
    }

    /// Does what the outage policy says for a write of `key` that cannot be fenced.
    fn degrade(&self, operation: Operation, key: &StoredKey, token: Token) -> Result<Protection, Error> {
        match self.config.outage_policy(operation) {
            OutagePolicy::FailClosed => Err(Error::CacheUnavailable),
            OutagePolicy::Degrade => {
                tracing::warn!(target: "session_cached_db", event = "degraded_write", ?operation, session = %self.name(key),
                    "a session is written while the cache does not answer; its entry is repaired later");
                self.repairs.begin(key, token);
                Ok(Protection::Repair(token))
            }
        }
    }

    /// Places a fence of our own.
    async fn place_fence(
        &self,
        key: &StoredKey,
        known: Option<Entry>,
        until: Timestamp,
    ) -> Result<Placed, NotFenced> {
        let mut found = known;
        let mut may_retry = true;
        let mut token = self.token();
        mutant!(NoFence => return Ok(self.no_fence(token)));
        for attempt in 0.. {
            if !self.may_exchange(attempt, until).await {
                break;
            }
            mutant!(LosingIsOutage => if attempt >= HASTY_EXCHANGES { return Err(NotFenced::NoAnswer(token)) });
            let stamp = self.stamp();
            let now = self.runtime.now();
            let deadline = now + self.config.fence_ttl;
            let joined = if mutant!(FenceOverwritten) { None } else { found.as_ref() };
            let fence = protocol::fence(joined, Holder { token, deadline }, now, self.slack());
            let (new, ttl) = (Entry::fence(stamp, fence.clone()), fence.ttl(now));
            let expected = found.as_ref().map_or(Expected::Vacant, |entry| Expected::Stamp(entry.stamp));
            match self.cache.compare_exchange(key, expected, Some(new), ttl).await {
                Ok(Exchange::Stored) => return Ok(Placed { token, stamp, fence, deadline }),
                Ok(Exchange::Lost(other)) => found = other,
                Err(error) if may_retry && error.is_retryable() => {
                    mutant!(FenceRetriedAsItWas => {
                        let placed = Placed { token, stamp, fence, deadline };
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
            // Never the same twice: the attempt before may be applied after all, long after this one is settled.
            token = self.token();
        }
        Err(NotFenced::OutOfTime)
    }

    /// Whether an exchange may be tried for the time with this number, counted from zero. Waits before it says so, for the
    /// longer the more often another process got ahead, and by chance, so that they do not meet again.
    async fn may_try(&self, attempt: u32, until: Timestamp) -> bool {
        if attempt < HASTY_EXCHANGES {
            return true;
        }
        let longest = Duration::from_millis(1 << (attempt - HASTY_EXCHANGES).min(6)).min(LONGEST_PAUSE);
        let eighths = u32::try_from(self.runtime.random_u64().get() % 8 + 1).unwrap_or(8);
        self.runtime.sleep(longest / 8 * eighths).await;
        self.runtime.now() < until
    }

    /// As [`may_try`](Self::may_try), for an exchange. What a lost exchange has found is used at once: after a pause it is
    /// old, and the next exchange would be lost for certain where other processes write all the time.
    async fn may_exchange(&self, attempt: u32, until: Timestamp) -> bool {
        let knows_what_is_there = attempt > HASTY_EXCHANGES && attempt % 2 == 1;
        knows_what_is_there || self.may_try(attempt, until).await
    }

    /// Settles the entry of `key` in the name of `me`, beginning with what was `found` there. `publish` is the value to
    /// publish, and the stamp of our confirmed fence. Gives the stamp under which it is published.
    pub(crate) async fn settle_entry(
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
            let stamp = self.stamp();
            let confirmed = publish.as_ref().map(|(confirmed, _)| *confirmed);
            let settlement = protocol::settle(found.as_ref(), me, confirmed, now, self.slack());
            mutant!(NoPoisoning => if crate::simulation::is_fence_of_others(found.as_ref(), me) { return Ok(None) });
            let (Some(entry), false) = (&found, settlement == protocol::Settlement::Keep) else {
                return Ok(None);
            };
            let (new, ttl) = match (settlement, &publish) {
                (protocol::Settlement::Publish, Some((_, value))) => {
                    let ttl = protocol::value_ttl(value, now, self.config.max_cache_age);
                    (Some(Entry::value(stamp, value.clone())), ttl)
                }
                (protocol::Settlement::Fence(fence), _) => {
                    let ttl = if mutant!(NeverPruned) { self.config.fence_ttl } else { fence.ttl(now) };
                    (Some(Entry::fence(stamp, fence)), ttl)
                }
                _ => (None, self.config.lease_ttl),
            };
            let published = matches!(new, Some(Entry { state: State::Value(_), .. })).then_some(stamp);
            let exchange = self.cache.compare_exchange(key, Expected::Stamp(entry.stamp), new, ttl).await;
            match exchange {
                Ok(Exchange::Stored) => return Ok(published),
                Ok(Exchange::Lost(other)) => found = other,
                // The value was refused, as too large for instance: nothing is published instead.
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

    /// Places a lease on a key that is about to come into being. `None` if it is not surely ours.
    pub(crate) async fn lease_new(self: &Arc<Self>, key: &StoredKey) -> Option<Stamp> {
        let lease = self.stamp();
        match self.cache.acquire(key, Entry::lease(lease), self.config.lease_ttl).await {
            Ok(Acquired::Placed) => Some(lease),
            Ok(Acquired::Found(_)) => None,
            Err(_) => {
                self.tend_cache();
                None
            }
        }
    }

    /// Ends the lease of a key that has, or has not, come into being: by `value`, or by nothing after a definite failure.
    pub(crate) async fn settle_new(
        self: &Arc<Self>,
        key: &StoredKey,
        lease: Option<Stamp>,
        value: Option<Value>,
    ) -> Option<Stamp> {
        let lease = lease?;
        match value.and_then(|value| self.cacheable(key, value)) {
            Some(value) => self.fill_lease(key, lease, value).await,
            None => {
                self.release(key, lease).await;
                None
            }
        }
    }

    /// `value`, unless it is larger than what the cache takes.
    pub(crate) fn cacheable(&self, key: &StoredKey, value: Value) -> Option<Value> {
        let state = State::Value(value);
        let len = Stamp::LEN + state.encoded_len(key);
        match state {
            State::Value(value) if len <= self.cache.properties().max_entry_bytes => Some(value),
            _ => None,
        }
    }

    /// How far other nodes' clocks may be off.
    fn slack(&self) -> Duration {
        if mutant!(NeverPruned) { Duration::MAX } else { self.config.clock_slack }
    }

    pub(crate) fn token(&self) -> Token {
        Token(self.runtime.random_u64())
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp(self.runtime.random_u64())
    }
}
