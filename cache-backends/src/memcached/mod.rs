//! A cache in memcached, on one server or spread over several.
//!
//! # What the servers must be
//!
//! - memcached 1.6.27 or newer: the stamps are set as CAS values by the client, so that a server that restarts, and counts
//!   from the beginning again, fools nobody.
//! - Not run with `-M`, which makes a server with full memory drop what is under a key that it cannot write to. Without
//!   it, the least recently used entries make room, and fences are hardly ever among them.
//! - Reached by TCP, in a network that is trusted: no TLS, no password.
//! - Given in the same way on every node, because the addresses as they are written decide which server has a key. A server
//!   that is down is not replaced by another: its keys are not cached until it is back.
//! - Not shared by two applications with the same [key prefix](MemcachedCacheBuilder::key_prefix): whoever holds a session
//!   of the one would be let into the other.

mod builder;
mod error;
mod inspect;
mod server;

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use memcache::exp::{Delete, Get, GetResult, Meta, MutationStatus, Set, Ttl};
use session_core::bytes::BytesMut;
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, EnvelopeError, Exchange, Expected, Scope, Stamp,
    State, StoredKey,
};

pub use self::builder::MemcachedCacheBuilder;
use self::server::{Server, Servers};

/// A server's clock ticks once a second.
const TICK: Duration = Duration::from_secs(1);

/// Long enough, and before the year 2106, when a server's 32 bits for an instant end.
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How often an exchange begins anew because what is under its key comes and goes.
const ATTEMPTS: usize = 4;

/// A cache in memcached. Cloning it gives another handle to the same cache.
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
/// - Nothing is connected before the first call. A connection that broke is made again by the next call. Calls are made within
///   a tokio runtime.
/// - `get`, `acquire` and `compare_exchange` take one round trip each. An exchange that is lost takes one more, to tell
///   what is there.
/// - TTLs are whole seconds, rounded up, and a second more.
/// - [`Cache::server`] numbers the servers in the order in which they were given. A server that is down delays no call to
///   another one.
/// - An entry that is larger than [`max_entry_bytes`](MemcachedCacheBuilder::max_entry_bytes) is refused, and what it was
///   to replace is removed.
/// - What is under a key but is no entry counts as nothing there, and is replaced.
#[derive(Clone)]
pub struct MemcachedCache(Arc<Inner>);

struct Inner {
    servers: Servers,
    key_prefix: String,
    max_entry_bytes: usize,
}

/// What was found under a key.
enum Found {
    Nothing,
    /// Something that cannot be read, with this CAS value. It counts as nothing.
    Unreadable(u64),
    Entry(Entry),
}

impl Found {
    fn entry(self) -> Option<Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Nothing | Self::Unreadable(_) => None,
        }
    }
}

impl MemcachedCache {
    /// Starts to describe a cache.
    pub fn builder() -> MemcachedCacheBuilder {
        MemcachedCacheBuilder::new()
    }

    fn new(servers: Servers, key_prefix: String, max_entry_bytes: usize) -> Self {
        Self(Arc::new(Inner { servers, key_prefix, max_entry_bytes }))
    }

    /// The key in memcached.
    fn name(&self, key: &StoredKey) -> Vec<u8> {
        [self.0.key_prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// The key in memcached, and the server that has it.
    fn locate(&self, key: &StoredKey) -> (Vec<u8>, &Server) {
        let name = self.name(key);
        let server = self.0.servers.of(&name);
        (name, server)
    }

    /// As [`compare_exchange`](Cache::compare_exchange). `present` is the CAS value of what is known to be what `expected`
    /// means, if that is not nothing.
    async fn exchange(
        &self,
        key: &StoredKey,
        (name, server): (&[u8], &Server),
        expected: Expected,
        mut present: Option<u64>,
        new: Option<Set>,
    ) -> Result<Exchange, CacheError> {
        for _ in 0..ATTEMPTS {
            let mutation = match (new.clone(), present) {
                (Some(set), None) => Some(set.add().into()),
                (Some(set), Some(cas)) => Some(set.compare_cas(cas).into()),
                (None, Some(cas)) => Some(Delete::new(name).compare_cas(cas).into()),
                // Nothing takes the place of nothing.
                (None, None) => None,
            };
            let found = match mutation {
                None => match look(key, name, server).await? {
                    Found::Nothing | Found::Unreadable(_) => return Ok(Exchange::Stored),
                    found @ Found::Entry(_) => found,
                },
                Some(mutation) => match server.mutate(mutation).await? {
                    MutationStatus::Applied => return Ok(Exchange::Stored),
                    MutationStatus::NotFound => Found::Nothing,
                    _ => look(key, name, server).await?,
                },
            };
            present = match (found, expected) {
                (Found::Entry(entry), _) => return Ok(Exchange::Lost(Some(entry))),
                (_, Expected::Stamp(_)) => return Ok(Exchange::Lost(None)),
                // It counts as nothing, or went in between.
                (Found::Unreadable(cas), Expected::Vacant) => Some(cas),
                (Found::Nothing, Expected::Vacant) => None,
            };
        }
        Err(CacheError::Refused("what is under the key keeps coming and going".into()))
    }

    /// The command that writes `entry` under `name`, whatever is there.
    fn set(&self, key: &StoredKey, name: &[u8], entry: &Entry, ttl: Duration) -> Result<Set, CacheError> {
        let mut value = BytesMut::with_capacity(entry.state.encoded_len(key));
        entry.state.encode(key, &mut value);
        let (actual, limit) = (value.len(), self.0.max_entry_bytes);
        if actual > limit {
            // Not sent, because a server that cannot keep it would drop what is there, and that may be somebody's fence.
            let text = format!("the entry has {actual} bytes, but at most {limit} are cached");
            return Err(CacheError::Refused(text.into()));
        }
        Ok(Set::new(name, value).ttl(seconds(ttl)).force_cas(entry.stamp.0.get()))
    }
}

impl Cache for MemcachedCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let (name, server) = self.locate(key);
        Ok(look(key, &name, server).await?.entry())
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
        let (name, server) = self.locate(key);
        let at = (&*name, server);
        match new.filter(|_| !ttl.is_zero()).map(|entry| self.set(key, &name, &entry, ttl)).transpose() {
            Ok(set) => self.exchange(key, at, expected, present, set).await,
            Err(too_large) if present.is_none() => Err(too_large),
            // What it was to replace is outdated.
            Err(too_large) => match self.exchange(key, at, expected, present, None).await? {
                Exchange::Stored => Err(too_large),
                lost @ Exchange::Lost(_) => Ok(lost),
            },
        }
    }

    // Every hit is one. What is rare is boxed, because otherwise a hit would carry its size.
    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        if ttl.is_zero() {
            return Ok(Box::pin(self.get(key)).await?.map_or(Acquired::Placed, Acquired::Found));
        }
        let (name, server) = self.locate(key);
        let add = self.set(key, &name, &lease, ttl)?.add();
        // Both in one round trip. The lease is added only if nothing is there by then, whatever was found before.
        let (found, added) = server.run_both(get(&name), add).await?;
        if added == MutationStatus::Applied {
            return Ok(Acquired::Placed);
        }
        let present = match read(key, found)? {
            Found::Entry(entry) => return Ok(Acquired::Found(entry)),
            Found::Unreadable(cas) => Some(cas),
            Found::Nothing => None,
        };
        let set = self.set(key, &name, &lease, ttl)?;
        let exchange = self.exchange(key, (&name, server), Expected::Vacant, present, Some(set));
        match Box::pin(exchange).await? {
            Exchange::Stored => Ok(Acquired::Placed),
            Exchange::Lost(Some(entry)) => Ok(Acquired::Found(entry)),
            Exchange::Lost(None) => {
                Err(CacheError::Refused("what is under the key keeps coming and going".into()))
            }
        }
    }

    fn server(&self, key: &StoredKey) -> usize {
        let servers = &self.0.servers;
        if servers.is_one() { 0 } else { servers.number_of(&self.name(key)) }
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Shared)
            .with_name("memcached")
            .with_servers(self.0.servers.len())
            .with_max_entry_bytes(self.0.max_entry_bytes)
            .with_ttl_granularity(TICK)
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

async fn look(key: &StoredKey, name: &[u8], server: &Server) -> Result<Found, CacheError> {
    read(key, server.run(get(name)).await?)
}

fn get(name: &[u8]) -> Get {
    Get::new(name).meta(Meta::NONE.cas())
}

/// What a server has answered to [`get`].
fn read(key: &StoredKey, answer: GetResult) -> Result<Found, CacheError> {
    let Some(cas) = answer.item.cas else { return Ok(Found::Nothing) };
    // Without a value it is a placeholder of another program's.
    let (Some(stamp), Some(value)) = (NonZeroU64::new(cas), answer.value) else {
        return Ok(Found::Unreadable(cas));
    };
    match State::decode(key, value.into()) {
        Ok(state) => Ok(Found::Entry(Entry { stamp: Stamp(stamp), state })),
        Err(EnvelopeError::WrongKey) => Err(CacheError::WrongKey),
        Err(_) => Ok(Found::Unreadable(cas)),
    }
}

/// A TTL as a server counts it, rounded up. One second more, because the first one may be over at any moment.
fn seconds(ttl: Duration) -> Ttl {
    Ttl::from(ttl.min(MAX_TTL) + TICK)
}
