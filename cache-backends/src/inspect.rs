use async_trait::async_trait;
use session_core::{CacheError, DynCache, Timestamp};

/// What an operator asks a cache, beside what a store does.
#[async_trait]
pub trait Inspect: DynCache {
    /// How its servers are, each of them; none for a cache in this process.
    ///
    /// # Errors
    ///
    /// As [`get`](session_core::Cache::get), if one of them does not answer.
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError>;
}

/// How a cache's server is. What it does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// Where it is, if there are several, or if Redis Sentinel has said so.
    pub address: Option<String>,
    /// What it is, with its version.
    pub version: Option<String>,
    /// Its clock.
    pub clock: Option<Timestamp>,
    /// How it makes room, as it calls that itself.
    pub eviction: Option<String>,
    /// Whether it makes room by removing the entries with the shortest TTL first, which are the fences that keep
    /// outdated sessions out.
    pub evicts_fences_first: bool,
    /// Whether it is a replica: it takes no writes, and lags behind.
    pub is_replica: bool,
    /// The memory that it uses, in bytes.
    pub used_bytes: Option<u64>,
    /// The memory that it may use, in bytes.
    pub max_bytes: Option<u64>,
    /// How many entries it has removed to make room since it was started.
    pub evicted: Option<u64>,
}
