use std::time::Duration;

use session_core::{StoreId, Timestamp};

/// The settings of the coherence protocol.
#[derive(Clone, Debug)]
pub(crate) struct CoherenceSettings {
    /// The identity that is bound into every cached value.
    pub(crate) store_id: StoreId,
    pub(crate) max_cache_age: Duration,
    pub(crate) lease_ttl: Duration,
    pub(crate) fence_ttl: Duration,
    /// The maximum difference between the clocks of nodes.
    pub(crate) clock_slack: Duration,
    /// The time that a cache call may take.
    pub(crate) cache_timeout: Duration,
    /// The maximum time for which a write tries to get ahead of writers in other processes.
    pub(crate) write_timeout: Duration,
    /// The maximum time after its sending at which a statement may still commit.
    pub(crate) longest_statement: Duration,
    pub(crate) breaker_threshold: u32,
    pub(crate) probe_interval: Duration,
    pub(crate) repair_capacity: usize,
    /// The operations that fail when the cache does not answer.
    pub(crate) fail_closed: Vec<WriteOperation>,
    /// The operations that are final with a near cache, besides those that always are.
    pub(crate) strict: Vec<WriteOperation>,
}

impl CoherenceSettings {
    pub(super) fn outage_policy(&self, operation: WriteOperation) -> OutagePolicy {
        if self.fail_closed.contains(&operation) { OutagePolicy::FailClosed } else { OutagePolicy::Degrade }
    }

    /// Returns `true` if `operation` is acknowledged only when no node shows what it has replaced.
    pub(super) fn is_final(&self, operation: WriteOperation) -> bool {
        matches!(operation, WriteOperation::Delete | WriteOperation::Rename)
            || self.strict.contains(&operation) && !mutant!(NearStrictIgnored)
    }

    /// Returns when no cached value from before `last_commit` can be shown any more.
    pub(super) fn obsolete_at(&self, last_commit: Timestamp) -> Timestamp {
        last_commit + self.max_cache_age + self.clock_slack
    }
}

/// The choice between writing and failing when the cache does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutagePolicy {
    /// Writes the database and returns [`Coherence::Degraded`]. The cache entry is repaired when the cache answers again;
    /// until then, other nodes that still reach the cache may be shown the session as it was before, for at most
    /// `max_cache_age`.
    ///
    /// This is the default, because a node cannot tell "the cache is down" from "only this node is cut off": the other
    /// policy refuses logins and logouts in a plain outage.
    #[default]
    Degrade,
    /// Writes nothing and fails with [`Error::CacheUnavailable`](crate::Error::CacheUnavailable).
    FailClosed,
}

/// A kind of write, to choose an [`OutagePolicy`] for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteOperation {
    /// Writing a session that exists.
    Save,
    /// Prolonging a session.
    Touch,
    /// Giving a session another key.
    Rename,
    /// Ending a session: `flush`, `delete`, `revoke`, `revoke_subject`.
    Delete,
}

impl WriteOperation {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Save, Self::Touch, Self::Rename, Self::Delete];
}

/// The trust that caches deserve after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// No cache shows what the write replaced.
    Coherent,
    /// The cache did not answer. Other nodes may be shown what the write replaced, for at most `max_cache_age`; see
    /// [`OutagePolicy::Degrade`].
    Degraded,
}

impl Coherence {
    /// Returns the worse of the two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Coherent { other } else { self }
    }
}
