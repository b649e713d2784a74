use std::time::Duration;

use session_core::{Expiry, InvalidKey, KeyForm, KeyPrefix, SessionKey, StoreId, StoredKey, Timestamp};

/// What a store was built with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// What the store is called in metrics.
    pub(crate) name: String,
    pub(crate) key_form: KeyForm,
    pub(crate) key_prefix: KeyPrefix,
    /// What is bound into every value that the store caches.
    pub(crate) store_id: StoreId,
    pub(crate) max_key_bytes: usize,
    pub(crate) max_payload_bytes: usize,
    pub(crate) max_keys: Option<usize>,
    /// Whether sessions may still be stored under plain keys, although new ones are not.
    pub(crate) accepts_plain_keys: bool,
    pub(crate) idle_timeout: Duration,
    pub(crate) absolute_timeout: Option<Duration>,
    pub(crate) touch_interval: Duration,
    pub(crate) expire_at_browser_close: bool,
    pub(crate) max_cache_age: Duration,
    pub(crate) lease_ttl: Duration,
    pub(crate) fence_ttl: Duration,
    pub(crate) clock_slack: Duration,
    pub(crate) cache_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) statement_bound: Duration,
    pub(crate) breaker_threshold: u32,
    pub(crate) probe_interval: Duration,
    pub(crate) repair_capacity: usize,
    pub(crate) flight_capacity: usize,
    pub(crate) max_waiting_writes: usize,
    pub(crate) conflict_policy: ConflictPolicy,
    pub(crate) fail_closed: Vec<Operation>,
}

impl Config {
    pub(crate) fn outage_policy(&self, operation: Operation) -> OutagePolicy {
        if self.fail_closed.contains(&operation) { OutagePolicy::FailClosed } else { OutagePolicy::Degrade }
    }

    /// How long after it was sent a statement may commit.
    pub(crate) fn longest_statement(&self) -> Duration {
        self.write_timeout.saturating_add(self.statement_bound)
    }

    /// How much time passes at least between two touches of a session that chose `expiry`. Short enough that a session
    /// in use does not expire in between.
    pub(crate) fn touch_interval(&self, expiry: Option<Expiry>) -> Duration {
        match expiry {
            Some(Expiry::After(lifetime)) => self.touch_interval.min(lifetime / 4),
            _ => self.touch_interval,
        }
    }

    /// When a session that chose `expiry` (or left it to the store) and is used at `now` ends.
    pub(crate) fn expires_at(
        &self,
        expiry: Option<Expiry>,
        created_at: Timestamp,
        now: Timestamp,
    ) -> Timestamp {
        let idle_end = expiry.unwrap_or(Expiry::After(self.idle_timeout)).instant(now, self.idle_timeout);
        self.absolute_timeout.map_or(idle_end, |lifetime| idle_end.min(created_at + lifetime))
    }

    pub(crate) fn stored_key(&self, key: &SessionKey) -> Result<StoredKey, InvalidKey> {
        let stored = StoredKey::derive(key, self.key_form, &self.key_prefix)?;
        if stored.as_bytes().len() > self.max_key_bytes { Err(InvalidKey) } else { Ok(stored) }
    }

    /// How long a load may take: the cache's answer, the database's, and the cache's once more.
    pub(crate) fn longest_load(&self) -> Duration {
        self.read_timeout.saturating_add(self.cache_timeout.saturating_mul(2))
    }

    /// Returns `true` if the session under `key` is one of this store's, and not of another application with another prefix.
    pub(crate) fn owns(&self, key: &StoredKey) -> bool {
        key.belongs_to(self.key_form, &self.key_prefix)
            || self.accepts_plain_keys
                && SessionKey::parse(key.as_str()).is_ok_and(|key| self.may_be_plain(&key))
    }

    /// Whether a session may be stored under `key` as it is. From 43 characters on, it may be a hashed key behind the prefix
    /// of any application, which whoever has read the table could present.
    pub(crate) fn may_be_plain(&self, key: &SessionKey) -> bool {
        key.expose().len() < KeyForm::HASHED_LEN && !self.looks_stored(key)
    }

    /// Whether `key` looks like what is stored instead of keys.
    pub(crate) fn looks_stored(&self, key: &SessionKey) -> bool {
        self.key_form == KeyForm::Hashed
            && key
                .expose()
                .strip_prefix(self.key_prefix.as_str())
                .is_some_and(|rest| rest.len() == KeyForm::HASHED_LEN)
    }
}

/// What a save does when somebody else has changed the session since it was opened.
///
/// Changes of different keys are merged under either policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConflictPolicy {
    /// Where both changed the same key, this save's value stays.
    #[default]
    LastWrite,
    /// Where both changed the same key, the save fails with [`Error::Conflict`](crate::Error::Conflict).
    Reject,
}

/// What a write does when the cache does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutagePolicy {
    /// The database is written, and the result says [`Coherence::Degraded`]. The cache entry is repaired when the cache
    /// answers again; until then other nodes that still reach it may be shown the session as it was before, for at most
    /// `max_cache_age`.
    ///
    /// The default, because a node cannot tell "the cache is down" from "only I am cut off": the other policy refuses
    /// logins and logouts in a plain outage.
    #[default]
    Degrade,
    /// Nothing is written, and the operation fails with
    /// [`Error::CacheUnavailable`](crate::Error::CacheUnavailable).
    FailClosed,
}

/// A kind of write, to choose an [`OutagePolicy`] for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Writing a session that exists.
    Save,
    /// Prolonging a session.
    Touch,
    /// Giving a session another key.
    Rename,
    /// Ending a session: `flush`, `delete`, `revoke`, `revoke_subject`.
    Delete,
}

/// How far caches are to be trusted after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// No cache shows what the write replaced.
    Coherent,
    /// The cache did not answer. Other nodes may be shown what the write replaced, for at most `max_cache_age`; see
    /// [`OutagePolicy::Degrade`].
    Degraded,
}

impl Coherence {
    /// The worse of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Coherent { other } else { self }
    }
}

/// What becomes of the session table when a store is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schema {
    /// It is made, or brought up to date.
    #[default]
    Migrate,
    /// It is the application's business; building fails if it is not as it should be.
    Check,
    /// It is the application's business, and nobody looks.
    Trust,
}
