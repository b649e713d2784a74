use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use session_core::{CacheError, DatabaseNotices, DynCache, Timestamp};

/// A cache whose servers can report their state to an operator.
#[async_trait]
pub trait Inspect: DynCache {
    /// Returns the state of each server. A cache in this process has none.
    ///
    /// # Errors
    ///
    /// Returns [`CacheError`] if one of the servers does not answer.
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError>;

    /// Opens a channel as a near cache does, pings on it, and closes it. `notices` are those of the database, for memory that
    /// it tells of changes. Returns `None` if this is no near cache, which is the default.
    async fn inspect_channel(
        &self,
        notices: Option<Arc<dyn DatabaseNotices>>,
    ) -> Option<Result<ChannelInspection, CacheError>> {
        let _ = notices;
        None
    }
}

/// The state of the channel of a near cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelInspection {
    /// The near cache's freshness bound.
    pub freshness_bound: Duration,
    /// The time of the slowest of a few answers.
    pub slowest_answer: Duration,
}

#[cfg(feature = "near")]
impl ChannelInspection {
    pub(crate) const fn new(freshness_bound: Duration, slowest_answer: Duration) -> Self {
        Self { freshness_bound, slowest_answer }
    }
}

/// The state of a cache's server. A field is `None` if the server does not report it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The server's address, if there are several servers, or if Redis Sentinel has named it.
    pub address: Option<String>,
    /// The name of the server's program, and its version.
    pub version: Option<String>,
    /// The oldest version that this cache can use, if the server's is older.
    pub needed_version: Option<&'static str>,
    /// The time of the server's clock.
    pub clock: Option<Timestamp>,
    /// The eviction policy, by the server's own name for it.
    pub eviction: Option<String>,
    /// `true` if the server evicts the entries with the shortest TTL first, which are the fences that keep
    /// outdated sessions out.
    pub evicts_fences_first: bool,
    /// `true` if the server is a replica, which accepts no writes and lags behind.
    pub is_replica: bool,
    /// The memory that the server uses, in bytes.
    pub used_bytes: Option<u64>,
    /// The memory that the server may use, in bytes.
    pub max_bytes: Option<u64>,
    /// The number of entries that the server has evicted since it was started.
    pub evicted: Option<u64>,
    /// The number of keys that the server remembers because near caches may have them in memory.
    pub tracked_keys: Option<u64>,
    /// The number of such keys for which the server has room.
    pub max_tracked_keys: Option<u64>,
}
