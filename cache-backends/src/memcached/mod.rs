//! A cache in memcached, on one server or spread over several.
//!
//! # What the servers must be
//!
//! - memcached 1.6.27 or newer: the client sets the stamps as CAS values, so that the CAS values of a server
//!   that restarted, and counts from the beginning again, never match an old stamp.
//! - Not run with `-M`: with it, a server with full memory drops the entry under a key that it cannot write
//!   to. Without it, the least recently used entries make room, and fences are hardly ever among them.
//! - Reached by TCP in a trusted network: there is neither TLS nor a password.
//! - Configured in the same way on every node, because the addresses as they are written decide which server
//!   has a key. No other server replaces one that is down: its keys are not cached until it is back.
//! - Not shared by two applications with the same [key prefix](MemcachedCacheBuilder::key_prefix): a session
//!   of the one would be accepted by the other.

mod builder;
mod commands;
mod connect;
mod error;
mod inspect;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use memcache::exp::{Delete, MutationStatus, Set};
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, StoredKey,
};

pub use self::builder::MemcachedCacheBuilder;
use self::commands::Found;
use self::connect::{Server, Servers};

/// The name in metrics.
const NAME: &str = "memcached";

/// The number of attempts of an exchange while the item under its key keeps changing.
const ATTEMPTS: usize = 4;

/// A cache in memcached. Cloning it creates another handle to the same cache.
///
/// ```
/// use cache_backends::memcached::MemcachedCache;
///
/// # fn main() -> Result<(), cache_backends::ConnectError> {
/// let cache = MemcachedCache::builder().servers(["10.0.0.1:11211", "10.0.0.2:11211"]).key_prefix("shop:").build()?;
/// # Ok(())
/// # }
/// ```
///
/// # Behavior
///
/// - Nothing is connected before the first call. If a connection breaks, the next call connects again. Calls
///   need a tokio runtime.
/// - `get`, `acquire` and `compare_exchange` take one round trip each. An exchange that is lost takes one
///   more, to return the entry that is there.
/// - TTLs are whole seconds, rounded up, and one second more.
/// - [`Cache::server`] numbers the servers in the order of the configuration. A server that is down delays no
///   call to another one.
/// - An entry that is larger than [`max_entry_bytes`](MemcachedCacheBuilder::max_entry_bytes) is refused, and
///   the entry that it was to replace is removed.
/// - A key whose item is no entry counts as vacant, and the item is replaced.
#[derive(Clone)]
pub struct MemcachedCache(Arc<Inner>);

struct Inner {
    servers: Servers,
    key_prefix: String,
    max_entry_bytes: usize,
}

impl MemcachedCache {
    /// Returns a builder with the default options.
    pub fn builder() -> MemcachedCacheBuilder {
        MemcachedCacheBuilder::new()
    }

    fn new(servers: Servers, key_prefix: String, max_entry_bytes: usize) -> Self {
        Self(Arc::new(Inner { servers, key_prefix, max_entry_bytes }))
    }

    /// Returns the key in memcached.
    fn cache_key(&self, key: &StoredKey) -> Vec<u8> {
        [self.0.key_prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// Returns the key in memcached, and the server that has it.
    fn locate(&self, key: &StoredKey) -> (Vec<u8>, &Server) {
        let cache_key = self.cache_key(key);
        let server = self.0.servers.of(&cache_key);
        (cache_key, server)
    }

    fn set(
        &self,
        key: &StoredKey,
        cache_key: &[u8],
        entry: &Entry,
        ttl: Duration,
    ) -> Result<Set, CacheError> {
        commands::set(key, cache_key, entry, ttl, self.0.max_entry_bytes)
    }

    /// Does a [`compare_exchange`](Cache::compare_exchange). `present` is the CAS value of the item that
    /// `expected` allows, or `None` if that is to be no item.
    async fn exchange(
        &self,
        key: &StoredKey,
        (cache_key, server): (&[u8], &Server),
        expected: Expected,
        mut present: Option<u64>,
        new: Option<Set>,
    ) -> Result<Exchange, CacheError> {
        for _ in 0..ATTEMPTS {
            let mutation = match (new.clone(), present) {
                (Some(set), None) => Some(set.add().into()),
                (Some(set), Some(cas)) => Some(set.compare_cas(cas).into()),
                (None, Some(cas)) => Some(Delete::new(cache_key).compare_cas(cas).into()),
                // There is nothing to write and nothing to remove.
                (None, None) => None,
            };
            let found = match mutation {
                None => match commands::fetch(key, cache_key, server).await? {
                    Found::Nothing | Found::Unreadable(_) => return Ok(Exchange::Stored),
                    found @ Found::Entry(_) => found,
                },
                Some(mutation) => match server.mutate(mutation).await? {
                    MutationStatus::Applied => return Ok(Exchange::Stored),
                    MutationStatus::NotFound => Found::Nothing,
                    _ => commands::fetch(key, cache_key, server).await?,
                },
            };
            present = match (found, expected) {
                (Found::Entry(entry), _) => return Ok(Exchange::Lost(Some(entry))),
                (_, Expected::Stamp(_)) => return Ok(Exchange::Lost(None)),
                // The key counts as vacant: try again with the item that is there now.
                (Found::Unreadable(cas), Expected::Vacant) => Some(cas),
                (Found::Nothing, Expected::Vacant) => None,
            };
        }
        // Others came first every time, and nothing is there now.
        Ok(Exchange::Lost(None))
    }
}

impl Cache for MemcachedCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let (cache_key, server) = self.locate(key);
        Ok(commands::fetch(key, &cache_key, server).await?.entry())
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let present = match expected {
            Expected::Vacant => None,
            Expected::Stamp(stamp) => Some(stamp.0.get()),
        };
        let (cache_key, server) = self.locate(key);
        let at = (&*cache_key, server);
        match new.filter(|_| !ttl.is_zero()).map(|entry| self.set(key, &cache_key, &entry, ttl)).transpose() {
            Ok(set) => self.exchange(key, at, expected, present, set).await,
            Err(too_large) if present.is_none() => Err(too_large),
            // Remove the entry that the new one was to replace, because it is outdated.
            Err(too_large) => match self.exchange(key, at, expected, present, None).await? {
                Exchange::Stored => Err(too_large),
                lost @ Exchange::Lost(_) => Ok(lost),
            },
        }
    }

    // Every hit is an `acquire`. The rare paths are boxed, because otherwise a hit's future would be as large
    // as theirs.
    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        if ttl.is_zero() {
            return Ok(Box::pin(self.get(key)).await?.map_or(Acquired::Placed, Acquired::Found));
        }
        let (cache_key, server) = self.locate(key);
        let add = self.set(key, &cache_key, &lease, ttl)?.add();
        // One round trip for both. The lease is added only if the key is vacant by then, whatever the `get`
        // found before.
        let (found, added) = server.run_both(commands::get(&cache_key), add).await?;
        if added == MutationStatus::Applied {
            return Ok(Acquired::Placed);
        }
        let present = match commands::read(key, found)? {
            Found::Entry(entry) => return Ok(Acquired::Found(entry)),
            Found::Unreadable(cas) => Some(cas),
            Found::Nothing => None,
        };
        let set = self.set(key, &cache_key, &lease, ttl)?;
        let exchange = self.exchange(key, (&cache_key, server), Expected::Vacant, present, Some(set));
        match Box::pin(exchange).await? {
            Exchange::Stored => Ok(Acquired::Placed),
            Exchange::Lost(Some(entry)) => Ok(Acquired::Found(entry)),
            Exchange::Lost(None) => Err(CacheError::Refused("the item under the key keeps changing".into())),
        }
    }

    fn server(&self, key: &StoredKey) -> usize {
        let servers = &self.0.servers;
        if servers.is_one() { 0 } else { servers.number_of(&self.cache_key(key)) }
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Shared)
            .with_name(NAME)
            .with_servers(self.0.servers.len())
            .with_max_entry_bytes(self.0.max_entry_bytes)
            .with_ttl_granularity(commands::TICK)
    }
}

impl fmt::Debug for MemcachedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedCache")
            .field("key_prefix", &self.0.key_prefix)
            .field("max_entry_bytes", &self.0.max_entry_bytes)
            .finish_non_exhaustive()
    }
}
