//! A cache in Redis or Valkey: standalone, the master that Redis Sentinel names, or a cluster.
//!
//! # What the server must be
//!
//! - Redis 7.0 or newer, or Valkey. The cache uses `EVALSHA`, `EVAL`, `GET`, `SET` and `DEL`, on one key
//!   each, and an ACL must allow them. It asks each new connection for version and role by `HELLO`, or else by
//!   `ROLE`; a server that refuses both is used all the same.
//! - A master. Replicas lag behind, and an asynchronous failover may lose a fence: values that are read then
//!   may be as old as the store's `max_cache_age`. A server that has become a replica is not read: the
//!   connection is replaced when it answers `READONLY`, and its name is looked up again. For Sentinel, see
//!   [below](#sentinel).
//! - A `maxmemory-policy` other than `volatile-ttl`, which evicts the shortest TTLs first, and these are the
//!   fences'. `allkeys-lru` is a good one. A warning event is emitted if it is `volatile-ttl`.
//! - In a cluster, configured with `cluster-require-full-coverage no`, so that masters go on when another one
//!   is dead.
//! - Not shared by two applications with the same [key prefix](RedisCacheBuilder::key_prefix): a session of
//!   the one would be accepted by the other.
//!
//! - For a [near cache](crate::near): a server that speaks RESP3 and allows `CLIENT TRACKING` and `PING`. Each node has
//!   one more connection for that, and the server remembers which keys were read on it
//!   (`tracking-table-max-keys`).
//!
//! # Sentinel
//!
//! With a `redis+sentinel://` [URL](RedisCacheBuilder::url), the cache asks all sentinels at once for the
//! master before it connects. It takes the server that more than half of the listed sentinels name, without
//! waiting for the others, or else the one that most of the answering sentinels name. The server must call
//! itself a master: an ACL must allow `ROLE` there, and `SENTINEL GET-MASTER-ADDR-BY-NAME` at the sentinels.
//!
//! The connection is replaced when it breaks, when the server answers `READONLY`, and when the sentinels name
//! another master. The cache asks them every second as long as it is connected, and so leaves a master that
//! hangs, or that is cut off from the sentinels only. All callers share one search. While there is no master,
//! calls fail with [`CacheError::Unavailable`], and the store reads the database.
//!
//! The addresses that the sentinels name must be reachable from here: let them announce such addresses, or
//! host names, which TLS checks certificates against.
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
//! Replication is asynchronous, so a new master may lack the last writes that the old one has acknowledged,
//! including fences. The store serves nothing that is older than its `max_cache_age`. Within that time, it
//! may serve a session as it was before its last save, or one that has ended. `docs/backends.md` in the
//! repository lists the settings to choose.

mod builder;
mod commands;
mod connect;
mod credentials;
mod error;
mod inspect;
mod notices;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use session_core::bytes::Bytes;
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, StoredKey,
};

pub use self::builder::RedisCacheBuilder;
use self::commands::{CompareExchange, Found};
use self::connect::Servers;
pub use self::credentials::RedisCredentials;
use self::error::Failure;
pub use self::error::SentinelError;
use self::notices::Channels;
pub use self::notices::RedisChannel;
pub use ::redis as driver;

/// The name in metrics.
const NAME: &str = "redis";

/// The number of attempts of an exchange while the unreadable value under its key keeps changing.
const ATTEMPTS: usize = 4;

/// A cache in Redis or Valkey. Cloning it creates another handle to the same cache.
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
/// - Nothing is connected before the first call. If a connection breaks, the next call connects again. Calls
///   need a tokio runtime.
/// - One connection serves all calls at the same time; in a cluster, one for each master. With Sentinel there
///   is one more to each sentinel.
/// - A connection without any reply for a [`response_timeout`](RedisCacheBuilder::response_timeout) is
///   replaced.
/// - [`Cache::server`] numbers 64 groups of neighbouring slots in a cluster, and otherwise one server.
/// - `get`, `acquire` and `compare_exchange` take one round trip each. They take one more if the server
///   forgot the script, or if it refuses writes and `acquire` falls back to reading.
/// - While the server refuses writes (memory full, cannot save, replicas missing), `acquire` still finds the
///   entry that is there.
/// - What every call would be refused for (a login, a missing right, a forbidden command, an old version) is
///   [`CacheError::Unusable`], and says what to do.
/// - A key whose value is no entry, of whatever type, counts as vacant, and the value is replaced.
#[derive(Clone)]
pub struct RedisCache(Arc<Inner>);

struct Inner {
    servers: Servers,
    channels: Channels,
    compare_exchange: CompareExchange,
    key_prefix: String,
}

impl RedisCache {
    /// Returns a builder with the default options.
    pub fn builder() -> RedisCacheBuilder {
        RedisCacheBuilder::new()
    }

    fn new(servers: Servers, channels: Channels, key_prefix: String) -> Self {
        Self(Arc::new(Inner { servers, channels, compare_exchange: CompareExchange::new(), key_prefix }))
    }

    /// Returns the key in Redis.
    fn cache_key(&self, key: &StoredKey) -> Vec<u8> {
        [self.0.key_prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// Does a [`compare_exchange`](Cache::compare_exchange), where `present` is the value that `expected`
    /// allows.
    async fn exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        mut present: Found,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let cache_key = self.cache_key(key);
        let new = match new.filter(|_| !ttl.is_zero()) {
            Some(entry) => commands::encode(&entry, key)?,
            None => Bytes::new(),
        };
        for _ in 0..ATTEMPTS {
            let script = &self.0.compare_exchange;
            let Some(found) = script.run(&self.0.servers, &cache_key, &present, &new, ttl).await? else {
                return Ok(Exchange::Stored);
            };
            let entry = match &found {
                Found::Raw(bytes) => commands::decode(key, bytes.clone())?,
                Found::Nothing | Found::Stamped(_) => None,
            };
            if entry.is_some() || expected != Expected::Vacant {
                return Ok(Exchange::Lost(entry));
            }
            // The key counts as vacant: try again with the unreadable value that is there now, or with none.
            present = found;
        }
        Err(CacheError::Refused("something that is no cache entry keeps changing under the key".into()))
    }
}

impl Cache for RedisCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let cache_key = self.cache_key(key);
        commands::read(key, self.0.servers.call(&cache_key, &commands::get(&cache_key)).await)
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
            Expected::Stamp(stamp) => Found::stamped(stamp),
        };
        self.exchange(key, expected, present, new, ttl).await
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        if ttl.is_zero() {
            return Ok(self.get(key).await?.map_or(Acquired::Placed, Acquired::Found));
        }
        let cache_key = self.cache_key(key);
        let cmd = commands::set_if_vacant(&cache_key, &commands::encode(&lease, key)?, ttl);
        // The unreadable value under the key.
        let present = match self.0.servers.call(&cache_key, &cmd).await {
            Ok(Value::Nil) => return Ok(Acquired::Placed),
            Ok(Value::BulkString(bytes)) => {
                let bytes = Bytes::from(bytes);
                match commands::decode(key, bytes.clone())? {
                    Some(entry) => return Ok(Acquired::Found(entry)),
                    None => Found::Raw(bytes),
                }
            }
            Ok(_) => return Err(Failure::unexpected("SET").into()),
            Err(failure) if failure.is_wrong_type() => Found::Nothing,
            // Read instead: to the server, the command is a write even if it only reads.
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
        self.0.servers.number_of(|| self.cache_key(key))
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Shared)
            .with_name(NAME)
            .with_servers(self.0.servers.len())
            .with_max_entry_bytes(commands::MAX_ENTRY_BYTES)
            .with_ttl_granularity(Duration::from_millis(1))
    }
}

impl fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache").field("key_prefix", &self.0.key_prefix).finish_non_exhaustive()
    }
}
