//! The driver of the coherence protocol, over the cache alone: no file in this folder knows a database.
//!
//! ```text
//!   load ──► lookup ──► Hit: shown           write ──► fence ──► (the caller's statement) ──► finish
//!               │                                        │                                      │
//!               ├────► Leased: the caller reads          │ no answer                            │ no answer
//!               │      the database, then fill           ▼                                      ▼
//!               └────► Bypass: the caller only reads   repair queue ◄───────────────────────────┘
//! ```
//!
//! The transitions themselves are pure functions in [`session_core::protocol`]. `docs/coherence.md` explains them.

mod backoff;
mod breaker;
mod confirmed_fence;
mod fence;
mod guard;
mod lease;
mod lookup;
#[cfg(feature = "__simulation")]
mod mutants;
mod near;
mod repair;
mod repair_task;
mod settings;
mod write;

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use session_core::{
    Cache, CacheError, Entry, Record, Runtime, Stamp, State, StoredKey, Timestamp, Token, Value, protocol,
};

use self::guard::{CacheGuard, Gate};
use self::repair::Repairs;
use crate::runtime::Tasks;
use crate::telemetry::metrics::Labels;
use crate::telemetry::{NearTelemetry, Telemetry};

pub(crate) use self::lookup::{Loaded, Lookup};
pub(crate) use self::repair::Repair;
pub(crate) use self::settings::CoherenceSettings;
pub use self::settings::{Coherence, OutagePolicy, WriteOperation};
pub(crate) use self::write::FencedWrite;

/// A cache that never lies: every entry is read and written by the coherence protocol.
#[derive(Debug)]
pub(crate) struct CoherentCache<C> {
    cache: CacheGuard<C>,
    settings: CoherenceSettings,
    repairs: Arc<Repairs>,
    repair_turns: Weak<dyn RepairTurns>,
    tasks: Arc<Tasks>,
    runtime: Arc<dyn Runtime>,
    telemetry: Arc<Telemetry>,
    /// Told of a near cache's events, from its start to its stop.
    observer: Mutex<Option<Arc<NearTelemetry>>>,
}

/// The write queues, in which repairs wait for their turn like the writes of their keys.
pub(crate) trait RepairTurns: Send + Sync {
    /// Queues `repair`. When its turn has come, it is passed to [`CoherentCache::repair`].
    fn queue_repair(self: Arc<Self>, repair: Repair);
}

/// The answer of the cache to a [ping](CoherentCache::ping).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reachable {
    All,
    Some,
    None,
    /// It answers, and refuses every call.
    Refused,
}

impl<C: Cache> CoherentCache<C> {
    pub(crate) fn new(
        cache: C,
        settings: CoherenceSettings,
        repair_turns: Weak<dyn RepairTurns>,
        tasks: Arc<Tasks>,
        runtime: Arc<dyn Runtime>,
        telemetry: Arc<Telemetry>,
        labels: &Labels,
    ) -> Self {
        Self {
            cache: CacheGuard::new(cache, &settings, Arc::clone(&runtime), Arc::clone(&telemetry), labels),
            repairs: Arc::new(Repairs::new(settings.repair_capacity, labels)),
            settings,
            repair_turns,
            tasks,
            runtime,
            telemetry,
            observer: Mutex::default(),
        }
    }

    /// Asks the cache whether it answers, even if its breaker is open.
    pub(crate) async fn ping(&self) -> Reachable {
        let answer = self.cache.get(&StoredKey::PROBE, Gate::Probe).await;
        let is_refused = matches!(answer, Err(CacheError::Unusable(_)));
        match (answer.is_ok(), self.cache.is_any_open()) {
            (true, false) => Reachable::All,
            _ if self.cache.is_all_open() || answer.is_err() && !self.cache.has_others() => {
                let is_refused = is_refused || self.cache.is_refused_for(&StoredKey::PROBE);
                if is_refused { Reachable::Refused } else { Reachable::None }
            }
            _ => Reachable::Some,
        }
    }

    /// Returns `true` unless all servers of the cache are known not to answer.
    pub(crate) fn answers(&self) -> bool {
        !self.cache.is_all_open()
    }

    /// Returns `record`, which the database had at `made_at`, as this store caches it under `key`. Returns `None` if it is
    /// larger than the cache takes.
    pub(crate) fn value(&self, key: &StoredKey, record: &Arc<Record>, made_at: Timestamp) -> Option<Value> {
        let value = Value { record: Arc::clone(record), made_at, store: self.settings.store_id };
        let state = State::Value(value);
        let len = Stamp::LEN + state.encoded_len(key);
        match state {
            State::Value(value) if len <= self.cache.properties().max_entry_bytes => Some(value),
            _ => None,
        }
    }

    /// Returns the entry of `value` under a new stamp, and its TTL.
    fn value_entry(&self, value: Value) -> (Entry, Duration) {
        let ttl = protocol::value_ttl(&value, self.runtime.now(), self.max_cache_age());
        (Entry::value(self.stamp(), value), ttl)
    }

    /// Returns how far the clocks of other nodes may be off.
    fn slack(&self) -> Duration {
        if mutant!(NeverPruned) { Duration::MAX } else { self.settings.clock_slack }
    }

    fn max_cache_age(&self) -> Duration {
        if mutant!(AgeIgnored) { Duration::MAX } else { self.settings.max_cache_age }
    }

    fn token(&self) -> Token {
        Token(self.runtime.random_u64())
    }

    fn stamp(&self) -> Stamp {
        Stamp(self.runtime.random_u64())
    }
}

#[cfg(feature = "__simulation")]
impl<C: Cache> CoherentCache<C> {
    pub(crate) fn store_id(&self) -> session_core::StoreId {
        self.settings.store_id
    }

    pub(crate) fn is_breaker_open(&self) -> bool {
        self.cache.is_any_open()
    }

    pub(crate) fn awaits_repair(&self, key: &StoredKey) -> bool {
        self.repairs.holds(key)
    }

    /// Returns a digest of repairs and breakers, if at most `failures_left` more cache calls can fail.
    pub(crate) fn digest(&self, failures_left: u32) -> impl std::hash::Hash + use<C> {
        use crate::simulation::digest_of;
        (digest_of(self.repairs.digest()), self.cache.digest(failures_left))
    }
}
