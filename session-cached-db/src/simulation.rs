//! What the simulator of `conformance-tests` needs of a store: a digest of the state that a store's tasks share, to
//! recognise a state that was explored before, and seeded faults, to show that the simulator would find them.
//!
//! No part of the interface; a build without the feature `__simulation` contains nothing of it.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{
    Acquired, BoxFuture, Cache, Entry, Exchange, Expected, Fence, Holder, Persistence, Record, Stamp, State,
    StoreId, StoredKey, Timestamp, Token, Value, protocol,
};
use tokio::sync::oneshot;

use crate::cache_guard::Gate;
use crate::flight::Loaded;
use crate::inner::Inner;
use crate::load::Look;
use crate::operations::Saved;
use crate::queue::{Job, Latest};
use crate::tasks::Admission;
use crate::write::{Placed, Write};
use crate::{CachedDb, Coherence, Error, Operation};

impl<C: Cache, P> CachedDb<C, P> {
    /// Returns a digest of flights, write queues, repairs and breakers: all that tasks of this store have in common, besides
    /// cache and database. No more than `failures_left` cache calls are going to fail.
    #[must_use]
    pub fn __shared_state(&self, failures_left: u32) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.inner.flights.digest().hash(&mut hasher);
        self.inner.queues.digest().hash(&mut hasher);
        self.inner.repairs.digest().hash(&mut hasher);
        self.inner.cache.digest(failures_left).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether no cache calls are made.
    #[must_use]
    pub fn __breaker_is_open(&self) -> bool {
        self.inner.cache.is_any_open()
    }

    /// Whether `key` waits for a repair, or an unfenced write of it is in flight.
    #[must_use]
    pub fn __awaits_repair(&self, key: &StoredKey) -> bool {
        self.inner.repairs.holds(key)
    }

    /// How many keys are being written.
    #[must_use]
    pub fn __queues(&self) -> usize {
        self.inner.queues.len()
    }

    /// How many keys are being loaded.
    #[must_use]
    pub fn __flights(&self) -> usize {
        self.inner.flights.len()
    }

    /// The identity that is bound into this store's values.
    #[must_use]
    pub fn __store_id(&self) -> StoreId {
        self.inner.config.store_id
    }
}

thread_local! {
    static CURRENT: Cell<u64> = const { Cell::new(0) };
    static TURNS: Cell<u64> = const { Cell::new(0) };
}

/// Says which task is polled on this thread from now on. Loads and writes carry its number, so that a digest tells who
/// waits for what.
pub fn enter_task(number: u64) {
    CURRENT.set(number);
}

pub(crate) fn current_task() -> u64 {
    CURRENT.get()
}

/// Returns how often a write queue on this thread has begun to carry out what came next. A queue's task keeps nothing from
/// before that but what is in the digest.
#[must_use]
pub fn turns() -> u64 {
    TURNS.get()
}

pub(crate) fn note_turn() {
    TURNS.set(TURNS.get() + 1);
}

pub(crate) fn digest_of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn digest_record(record: &Record) -> u64 {
    let times = [record.expires_at(), record.last_seen_at()].map(Timestamp::as_micros);
    digest_of((&record.payload()[..], times, record.version().as_u64(), record.subject().is_some()))
}

thread_local! {
    static SELECTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Makes every store that runs on this thread wrong in one way, until another or none is selected.
pub fn select_mutant(mutant: Option<Mutant>) {
    SELECTED.set(mutant);
}

pub(crate) fn is_selected(mutant: Mutant) -> bool {
    SELECTED.get() == Some(mutant)
}

macro_rules! mutants {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// A seeded fault of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Mutant {
            $($(#[doc = $doc])* $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What is wrong.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),*).trim_ascii(),)*
                }
            }
        }
    };
}

mutants! {
    /// No lease check: a fill replaces whatever is there.
    NoLeaseCheck,
    /// No fence: a writer only deletes the entry after its write.
    NoFence,
    /// A second writer's fence replaces the first one's, instead of joining it.
    FenceOverwritten,
    /// No poisoning: a writer whose fence was lost leaves the fence of another one as it is.
    NoPoisoning,
    /// A dead holder is never pruned, and kept as long as a living one.
    NeverPruned,
    /// A fence is settled although the outcome of the write is unknown.
    SettledOnUnknown,
    /// Ungated flight: every follower takes whatever result comes next.
    UngatedFlight,
    /// An upserting save: what is not there is inserted.
    UpsertingSave,
    /// A fill whose lease was removed fills the vacant key (after a delete, for instance).
    FillAfterDelete,
    /// The cache's TTL is trusted, instead of the session's expiry.
    TtlTrusted,
    /// An ambiguous fence is retried as it was, with the same token and stamp.
    FenceRetriedAsItWas,
    /// An ambiguous lease is retried with the same stamp.
    LeaseRetriedAsItWas,
    /// A create publishes over a vacant key, without a lease.
    PublishOverVacancy,
    /// A follower that joined after the fill was applied takes its result.
    LateFollower,
    /// A writer that could not fence publishes, instead of having the key repaired.
    DegradedPublishes,
    /// A repair leaves another's fence clean.
    CleanRepair,
    /// A touch publishes the record that was loaded before it.
    TouchPublishes,
    /// A revoke lists a subject's sessions once.
    RevokeListsOnce,
    /// A write is sent although it may outlive its fence.
    WritePastDeadline,
    /// To lose a few exchanges in a row counts as an outage of the cache.
    LosingIsOutage,
    /// Writes of one process do not queue.
    QueueSkipped,
    /// A save is composed onto the session as it was loaded, although its queue has written it since.
    BaseNotRenewed,
    /// Saves that become one are answered before they are written.
    BatchAnswersEarly,
    /// The breaker does not close while a key waits to be repaired.
    BreakerWaitsForQueue,
    /// A key that cannot be repaired yet holds up the repair of the others.
    RepairBlocksOthers,
    /// Only the load that began an attempt drives it.
    LeaderOwnsFlight,
    /// An attempt ends with the last load that waits for it.
    CallerOwnsStatement,
    /// An operation of several writes ends with its caller.
    CallerOwnsRevocation,
}

/// What the seeded faults do instead.
impl<C: Cache, P: Persistence> Inner<C, P> {
    pub(crate) async fn look_again(self: &Arc<Self>, key: &StoredKey, lease: Stamp) -> Look {
        match self.cache.acquire(key, Entry::lease(lease), self.config.lease_ttl).await {
            Ok(Acquired::Placed) => Look::Leased(lease),
            Ok(Acquired::Found(entry)) => self.hit(entry).map_or(Look::Bypass, Look::Hit),
            Err(_) => Look::Bypass,
        }
    }

    /// Fills the key whether or not the lease still holds: over nothing, or over whatever is there.
    pub(crate) async fn fill_anyway(&self, key: &StoredKey, lease: Stamp, value: Value) -> Option<Stamp> {
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

    async fn place_value(
        &self,
        key: &StoredKey,
        expected: Expected,
        value: Value,
    ) -> Result<Stamp, Option<Exchange>> {
        let stamp = self.stamp();
        let ttl = protocol::value_ttl(&value, self.runtime.now(), self.config.max_cache_age);
        let new = Some(Entry::value(stamp, value));
        match self.cache.compare_exchange(key, expected, new, ttl).await {
            Ok(Exchange::Stored) => Ok(stamp),
            other => Err(other.ok()),
        }
    }

    /// A fence that was never placed.
    pub(crate) fn no_fence(&self, token: Token) -> Placed {
        let deadline = Timestamp::MAX;
        let fence = Fence { holders: vec![Holder { token, deadline }], dirty: false };
        Placed { token, stamp: self.stamp(), fence, deadline }
    }

    pub(crate) async fn resend_fence(
        &self,
        key: &StoredKey,
        expected: Expected,
        ttl: Duration,
        placed: Placed,
    ) -> Result<Placed, Token> {
        let again = Some(Entry::fence(placed.stamp, placed.fence.clone()));
        match self.cache.compare_exchange(key, expected, again, ttl).await {
            Ok(Exchange::Stored) => Ok(placed),
            // The first one was applied.
            Ok(Exchange::Lost(Some(other))) if other.stamp == placed.stamp => Ok(placed),
            _ => Err(placed.token),
        }
    }

    /// Replaces whatever is there by the value of a write that was not fenced.
    pub(crate) async fn publish_anyway(
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

    pub(crate) async fn create_over_vacancy(
        self: &Arc<Self>,
        key: StoredKey,
        record: Record,
    ) -> Result<Saved, Error> {
        let made_at = self.runtime.now();
        let version = self.bounded(pin!(self.db.insert(&key, &record))).await?;
        let record = Arc::new(record.with_version(version));
        let value = self.value(&record, made_at);
        let stamp = self.place_value(&key, Expected::Vacant, value).await.ok();
        Ok(Saved { key, loaded: Loaded { record, stamp }, coherence: Coherence::Coherent })
    }

    pub(crate) async fn touch_and_publish(
        self: &Arc<Self>,
        key: StoredKey,
        expires_at: Timestamp,
    ) -> Result<Coherence, Error> {
        let loaded = self.read(&key).await?;
        let mut write = Write::begin(self, Operation::Touch, key, None).await?;
        let made_at = self.runtime.now();
        let touched = write.statement(pin!(self.db.touch(&key, expires_at, Timestamp::MAX, made_at))).await;
        let record = loaded.map(|loaded| Record::clone(&loaded.record).with_expires_at(expires_at));
        let value = record.map(|record| self.value(&Arc::new(record), made_at));
        let value = if touched.is_ok() { value } else { None };
        let (_, coherence) = write.settle(value).await;
        touched.map(|_| coherence)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Carries out a write beside those of the same key that are under way.
    pub(crate) fn start_unqueued(
        self: &Arc<Self>,
        key: &StoredKey,
        admission: Admission,
        job: Job,
    ) -> Result<(), Error> {
        let (store, key) = (Arc::clone(self), *key);
        let task = async move {
            let mut latest = Latest::default();
            match job {
                Job::Save(save, reply) if save.rename.is_none() => {
                    store.save_all(&key, vec![(save, reply)], &mut latest).await;
                }
                job => store.carry_out(&key, job, &mut latest).await,
            }
        };
        self.tasks.start(admission, Box::pin(task))
    }
}

/// The result of `task`, unless whoever waits for it leaves before.
pub(crate) async fn unless_left<T>(
    task: BoxFuture<Result<T, Error>>,
    reply: &mut oneshot::Sender<Result<T, Error>>,
) -> Result<T, Error> {
    match select(task, pin!(reply.closed())).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(Error::Interrupted),
    }
}

/// `loaded` with the version that the session has by now.
pub(crate) fn base_as_loaded(loaded: &Arc<Record>, present: Option<&Arc<Record>>) -> Arc<Record> {
    let version = present.map_or(loaded.version(), |present| present.version());
    Arc::new(Record::clone(loaded).with_version(version))
}

/// Whether `entry` is a fence in which `me` is not.
pub(crate) fn is_fence_of_others(entry: Option<&Entry>, me: Token) -> bool {
    match entry.map(|entry| &entry.state) {
        Some(State::Fence(fence)) => fence.holders.iter().all(|holder| holder.token != me),
        _ => false,
    }
}
