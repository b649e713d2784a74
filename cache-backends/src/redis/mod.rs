//! A cache in Redis or Valkey: standalone, the master that Redis Sentinel names, or a cluster.
//!
//! # What the server must be
//!
//! - Redis 7.0 or newer, or Valkey. `EVALSHA`, `EVAL`, `GET`, `SET` and `DEL` are used, on one key each.
//! - A master. Replicas lag behind, and an asynchronous failover may lose a fence: what is read then may be as old as
//!   the store's `max_cache_age`. How that is with Sentinel: [below](#sentinel).
//! - A `maxmemory-policy` other than `volatile-ttl`, which evicts the shortest TTLs first, and these are the fences'.
//!   `allkeys-lru` is a good one. A warning event tells when it is `volatile-ttl`.
//! - In a cluster, configured with `cluster-require-full-coverage no`, so that masters go on when another one is dead.
//! - Not shared by two applications with the same [key prefix](RedisCacheBuilder::key_prefix): whoever holds a session
//!   of the one would be let into the other.
//!
//! # Sentinel
//!
//! With a `redis+sentinel://` [URL](RedisCacheBuilder::url), the sentinels are asked for the master before each
//! connection is made, all at once: what more than half of the listed ones name is taken without waiting for the others,
//! else what most of those name that answer. A server is only used if it calls itself a master (`ROLE`, which an ACL must
//! allow, as `SENTINEL GET-MASTER-ADDR-BY-NAME` must be allowed at the sentinels). A connection is given up when it
//! breaks, when the server answers `READONLY`, and when the sentinels name another master, of which they are asked every
//! second as long as the connection is there; so a master that hangs, or that is cut off from the sentinels only, is left,
//! too. All callers share one search. While there is no master, calls fail with [`CacheError::Unavailable`], and the store
//! asks the database. What the sentinels name must be reachable from here: let them announce addresses (or host names,
//! which TLS checks certificates against) that are.
//!
//! ```
//! use cache_backends::redis::RedisCache;
//!
//! let cache = RedisCache::builder()
//!     .url("redis+sentinel://:password@10.0.0.1,10.0.0.2,10.0.0.3/mymaster")
//!     .sentinel_password("another password")
//!     .build()?;
//! # Ok::<(), cache_backends::ConnectError>(())
//! ```
//!
//! Replication is asynchronous, so a new master may lack what the old one has acknowledged last, fences among it. Nothing
//! is served that is older than the store's `max_cache_age`, but within that, a session may be as it was before its last
//! save, or one that has been ended since. `docs/backends.md` in the repository says what to set.

mod builder;
#[cfg(feature = "redis-cluster")]
mod cluster;
mod dial;
mod error;
mod eviction;
mod inspect;
mod link;
mod script;
mod sentinel;
mod servers;
#[cfg(feature = "redis-tls")]
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use session_core::bytes::Bytes;
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, EnvelopeError, Exchange, Expected, Scope, StoredKey,
};

pub use self::builder::RedisCacheBuilder;
use self::error::Failure;
use self::script::{CompareExchange, Found};
pub use self::sentinel::SentinelError;
use self::servers::Servers;
pub use ::redis as driver;

/// The largest value that Redis takes, unless it was configured otherwise: `proto-max-bulk-len`.
const MAX_ENTRY_BYTES: usize = 512 << 20;

/// Redis refuses TTLs that end after the year 292 million.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How often an exchange begins anew because entries that cannot be read come and go under its key.
const ATTEMPTS: usize = 4;

/// A cache in Redis or Valkey. Cloning it gives another handle to the same cache.
///
/// ```
/// use cache_backends::redis::RedisCache;
///
/// # fn main() -> Result<(), cache_backends::ConnectError> {
/// let cache = RedisCache::builder().url("redis://127.0.0.1/").key_prefix("shop:").build()?;
/// # Ok(())
/// # }
/// ```
///
/// # Behavior
///
/// - Nothing is connected before the first call. A connection that broke is made again by the next call. Calls are made within
///   a tokio runtime.
/// - One connection serves all calls at the same time; in a cluster, one for each master. With Sentinel there is one more to
///   each sentinel.
/// - A connection on which nothing is answered for a [`response_timeout`](RedisCacheBuilder::response_timeout) is replaced.
/// - [`Cache::server`] counts 64 groups of neighbouring slots in a cluster, and otherwise one server.
/// - `get`, `acquire` and `compare_exchange` take one round trip each; one more when the server forgot the script, or
///   when it refuses writes and `acquire` falls back to reading.
/// - While the server refuses writes (memory full, read-only, cannot save, replicas missing), `acquire` finds what is
///   there all the same.
/// - What is under a key but is no entry, of whatever type, counts as nothing there, and is replaced.
#[derive(Clone)]
pub struct RedisCache(Arc<Inner>);

struct Inner {
    servers: Servers,
    compare_exchange: CompareExchange,
    key_prefix: String,
}

impl RedisCache {
    /// Starts to describe a cache.
    pub fn builder() -> RedisCacheBuilder {
        RedisCacheBuilder::new()
    }

    fn new(servers: Servers, key_prefix: String) -> Self {
        Self(Arc::new(Inner { servers, compare_exchange: CompareExchange::new(), key_prefix }))
    }

    /// The key in Redis.
    fn name(&self, key: &StoredKey) -> Vec<u8> {
        [self.0.key_prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// As [`compare_exchange`](Cache::compare_exchange), where `present` is known to be what `expected` means.
    async fn exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        mut present: Found,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let name = self.name(key);
        let new = match new.filter(|_| !ttl.is_zero()) {
            Some(entry) => encode(&entry, key)?,
            None => Bytes::new(),
        };
        for _ in 0..ATTEMPTS {
            let script = &self.0.compare_exchange;
            let Some(found) = script.run(&self.0.servers, &name, &present, &new, millis(ttl)).await? else {
                return Ok(Exchange::Stored);
            };
            let entry = match &found {
                Found::Raw(bytes) => readable(key, bytes.clone())?,
                Found::Nothing | Found::Stamped(_) => None,
            };
            if entry.is_some() || expected != Expected::Vacant {
                return Ok(Exchange::Lost(entry));
            }
            // Something that cannot be read, which counts as nothing: expect just that. Or it went in between.
            present = found;
        }
        Err(CacheError::Refused("something that is no cache entry keeps changing under the key".into()))
    }
}

impl Cache for RedisCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let name = self.name(key);
        let mut cmd = Cmd::with_capacity(2, name.len() + 8);
        cmd.arg("GET").arg(&name);
        match self.0.servers.call(&name, &cmd).await {
            Ok(Value::Nil) => Ok(None),
            Ok(Value::BulkString(bytes)) => readable(key, bytes.into()),
            Ok(_) => Err(Failure::unexpected("GET").into()),
            Err(failure) if failure.is_wrong_type() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let present = match expected {
            Expected::Vacant => Found::Nothing,
            Expected::Stamp(stamp) => Found::Stamped(script::beginning(stamp, key)),
        };
        self.exchange(key, expected, present, new, ttl).await
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        if ttl.is_zero() {
            return Ok(self.get(key).await?.map_or(Acquired::Placed, Acquired::Found));
        }
        let (name, lease_bytes) = (self.name(key), encode(&lease, key)?);
        // With room for all of it: every hit is one.
        let mut cmd = Cmd::with_capacity(7, name.len() + lease_bytes.len() + 32);
        cmd.arg("SET").arg(&name).arg(&*lease_bytes).arg("NX").arg("GET").arg("PX").arg(millis(ttl));
        // What is there and cannot be read.
        let present = match self.0.servers.call(&name, &cmd).await {
            Ok(Value::Nil) => return Ok(Acquired::Placed),
            Ok(Value::BulkString(bytes)) => {
                let bytes = Bytes::from(bytes);
                match readable(key, bytes.clone())? {
                    Some(entry) => return Ok(Acquired::Found(entry)),
                    None => Found::Raw(bytes),
                }
            }
            Ok(_) => return Err(Failure::unexpected("SET").into()),
            Err(failure) if failure.is_wrong_type() => Found::Nothing,
            // The command counts as a write even where it only reads.
            Err(failure) if failure.refuses_writes() => {
                return match self.get(key).await {
                    Ok(Some(entry)) => Ok(Acquired::Found(entry)),
                    Ok(None) | Err(_) => Err(failure.into()),
                };
            }
            Err(failure) => return Err(failure.into()),
        };
        match self.exchange(key, Expected::Vacant, present, Some(lease), ttl).await? {
            Exchange::Stored => Ok(Acquired::Placed),
            Exchange::Lost(Some(entry)) => Ok(Acquired::Found(entry)),
            Exchange::Lost(None) => Err(Failure::unexpected("the script").into()),
        }
    }

    fn server(&self, key: &StoredKey) -> usize {
        self.0.servers.number_of(|| self.name(key))
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Shared)
            .with_name("redis")
            .with_servers(self.0.servers.len())
            .with_max_entry_bytes(MAX_ENTRY_BYTES)
            .with_ttl_granularity(Duration::from_millis(1))
    }
}

impl fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache").field("key_prefix", &self.0.key_prefix).finish_non_exhaustive()
    }
}

fn encode(entry: &Entry, key: &StoredKey) -> Result<Bytes, CacheError> {
    let bytes = entry.encode(key);
    if bytes.len() > MAX_ENTRY_BYTES {
        let text = format!("the entry has {} bytes, but Redis takes at most {MAX_ENTRY_BYTES}", bytes.len());
        return Err(CacheError::Refused(text.into()));
    }
    Ok(bytes)
}

/// The entry in `bytes`, if it is one.
fn readable(key: &StoredKey, bytes: Bytes) -> Result<Option<Entry>, CacheError> {
    match Entry::decode(key, bytes) {
        Ok(entry) => Ok(Some(entry)),
        Err(EnvelopeError::WrongKey) => Err(CacheError::WrongKey),
        Err(_) => Ok(None),
    }
}

/// A TTL in milliseconds, rounded up.
fn millis(ttl: Duration) -> u64 {
    let ttl = ttl.min(MAX_TTL);
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
