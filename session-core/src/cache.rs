use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::{CacheError, Entry, Near, Stamp, StoredKey};

/// A register per key with compare-and-exchange. That is all a cache has to be.
///
/// A backend has no part in the coherence protocol, which is the same for all of them and written over these
/// methods. A backend only keeps [`Entry`]s, and may lose any of them at any time.
///
/// # Behavior
///
/// - What was stored is found under the same key, with the same stamp, until its TTL has passed.
/// - A TTL of zero stores nothing: the exchange is made as if `new` were `None`.
/// - Keys are compared byte for byte.
/// - An entry that cannot be read, because another program has written it or because it is damaged, counts as
///   nothing there, in every method.
/// - An entry of another version of the format is there, in every method: [`Entry::decode`] returns it as a
///   lease, or as a fence.
/// - An entry of another key is never returned: [`CacheError::WrongKey`].
/// - An entry may disappear before its TTL. An older one never comes back in its place.
/// - A value that is too large to be stored leaves nothing behind under its key that was there before, or
///   fails and leaves everything as it was; never a truncated one.
/// - No method repeats a write of its own accord when its outcome is unknown.
///
/// # Cancel safety
///
/// The call of a future that is dropped may have been applied, or may be applied later, like a call that
/// timed out.
///
/// # Example
///
/// A map in memory. A cache outside of the process keeps [encoded](Entry::encode) entries: the folder
/// `conformance-tests/third-party` of the repository has one, with a test that runs the contract against it.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Mutex, PoisonError};
/// use std::time::{Duration, Instant};
///
/// use session_core::{Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, StoredKey};
///
/// /// Every entry, and the end of its TTL.
/// #[derive(Debug, Default)]
/// struct MapCache(Mutex<HashMap<StoredKey, (Entry, Instant)>>);
///
/// impl Cache for MapCache {
///     async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
///         let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         Ok(map.get(key).filter(|(_, end)| Instant::now() < *end).map(|(entry, _)| entry.clone()))
///     }
///
///     async fn compare_exchange(
///         &self,
///         key: &StoredKey,
///         expected: Expected,
///         new: Option<Entry>,
///         ttl: Duration,
///     ) -> Result<Exchange, CacheError> {
///         let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         map.retain(|_, (_, end)| Instant::now() < *end);
///         let found = map.get(key).map(|(entry, _)| entry);
///         let is_expected = match expected {
///             Expected::Vacant => found.is_none(),
///             Expected::Stamp(stamp) => found.is_some_and(|entry| entry.stamp == stamp),
///         };
///         if !is_expected {
///             return Ok(Exchange::Lost(found.cloned()));
///         }
///         match new.filter(|_| !ttl.is_zero()) {
///             Some(entry) => map.insert(*key, (entry, Instant::now() + ttl)),
///             None => map.remove(key),
///         };
///         Ok(Exchange::Stored)
///     }
///
///     fn properties(&self) -> CacheProperties {
///         CacheProperties::new(Scope::Process)
///     }
/// }
/// ```
pub trait Cache: Send + Sync + fmt::Debug + 'static {
    /// Returns the entry under `key`, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// Returns [`CacheError`] if the call failed. No variant of it means that the key is vacant.
    fn get(&self, key: &StoredKey) -> impl Future<Output = Result<Option<Entry>, CacheError>> + Send;

    /// Replaces the entry under `key` by `new`, kept for at most `ttl`, or removes it if `new` is `None`.
    /// Does so only if the key is still as `expected`.
    ///
    /// # Behavior
    ///
    /// - Atomic against every other exchange on the key, of any process: of two exchanges that expect the
    ///   same, at most one is [`Exchange::Stored`].
    /// - [`Exchange::Lost`] changes nothing, and returns the entry that was there, read not before the call
    ///   began.
    /// - The stamp of `new` becomes the stamp of what is there.
    ///
    /// # Errors
    ///
    /// Returns [`CacheError`] if the call failed. Its [`outcome`](CacheError::outcome) says whether the
    /// exchange may have happened.
    fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> impl Future<Output = Result<Exchange, CacheError>> + Send;

    /// Returns the entry under `key`, or places `lease` there for `ttl` if there is none.
    ///
    /// Defaults to a `get`, then a `compare_exchange`. A backend that can do it in one round trip overrides
    /// it.
    ///
    /// # Behavior
    ///
    /// - [`Acquired::Placed`] only if nothing was there: as an exchange that expects [`Expected::Vacant`].
    /// - [`Acquired::Found`] changes nothing.
    ///
    /// # Errors
    ///
    /// Returns [`CacheError`] if the call failed. Its [`outcome`](CacheError::outcome) says whether the lease
    /// may have been placed.
    fn acquire(
        &self,
        key: &StoredKey,
        lease: Entry,
        ttl: Duration,
    ) -> impl Future<Output = Result<Acquired, CacheError>> + Send {
        async move {
            if let Some(found) = self.get(key).await? {
                return Ok(Acquired::Found(found));
            }
            match self.compare_exchange(key, Expected::Vacant, Some(lease), ttl).await? {
                Exchange::Stored => Ok(Acquired::Placed),
                Exchange::Lost(Some(found)) => Ok(Acquired::Found(found)),
                Exchange::Lost(None) => {
                    Err(CacheError::Refused("the key was taken and freed again meanwhile".into()))
                }
            }
        }
    }

    /// Returns the number of the server that has `key`, below [`CacheProperties::servers`].
    ///
    /// Defaults to 0, for a cache that is one server. A cache of several servers overrides it, so that the
    /// keys of the others stay cached while one of them is down.
    ///
    /// # Behavior
    ///
    /// - The same key has the same number as long as the cache's set of servers does not change.
    /// - Keys with the same number are reachable, or not, together. Makes no call.
    fn server(&self, key: &StoredKey) -> usize {
        let _ = key;
        0
    }

    /// Returns the properties of this cache. They are the same at every call.
    fn properties(&self) -> CacheProperties;

    /// Returns the memory of this process in front of the cache, if it is a near cache. Defaults to `None`.
    fn near(&self) -> Option<&dyn Near> {
        None
    }
}

/// The state of a key that an exchange requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The key has no entry.
    Vacant,
    /// The key has the entry with this stamp.
    Stamp(Stamp),
}

/// The result of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// The exchange happened.
    Stored,
    /// The exchange did not happen: the key has this entry instead, or none.
    Lost(Option<Entry>),
}

/// The result of an [`acquire`](Cache::acquire).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The key has this entry.
    Found(Entry),
    /// The key was vacant; the lease is placed.
    Placed,
}

/// The kind, the limits and the name of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheProperties {
    /// The processes that share the cache.
    pub scope: Scope,
    /// The largest encoded entry that the cache accepts, in bytes.
    pub max_entry_bytes: usize,
    /// The granularity of TTLs: they are rounded up to multiples of it. Never rounded down, and zero stays
    /// zero.
    pub ttl_granularity: Duration,
    /// The name of the cache in metrics: `redis`, for instance. Defaults to `cache`.
    pub name: &'static str,
    /// The number of servers, or groups of keys, that can fail independently: see [`Cache::server`]. Defaults
    /// to 1.
    pub servers: usize,
}

impl CacheProperties {
    /// Creates properties without a limit on entries, and with TTLs of any length.
    #[must_use]
    pub const fn new(scope: Scope) -> Self {
        Self {
            scope,
            max_entry_bytes: usize::MAX,
            ttl_granularity: Duration::ZERO,
            name: "cache",
            servers: 1,
        }
    }

    /// Sets the largest encoded entry, in bytes. Defaults to no limit.
    #[must_use]
    pub const fn with_max_entry_bytes(mut self, max_entry_bytes: usize) -> Self {
        self.max_entry_bytes = max_entry_bytes;
        self
    }

    // Stands in `PersistenceProperties`, too: two structs with a name have a setter each.
    /// Sets the name in metrics. Defaults to `cache`.
    #[must_use]
    pub const fn with_name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Sets the number of servers that can fail independently, at least 1. Defaults to 1.
    #[must_use]
    pub const fn with_servers(mut self, servers: usize) -> Self {
        self.servers = if servers == 0 { 1 } else { servers };
        self
    }

    /// Sets the granularity of TTLs. Defaults to zero: TTLs of any length.
    #[must_use]
    pub const fn with_ttl_granularity(mut self, ttl_granularity: Duration) -> Self {
        self.ttl_granularity = ttl_granularity;
        self
    }
}

/// The processes that share a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// This process alone. Calls return at once, without I/O, and never fail because the cache is out of
    /// reach. Writes of other processes to the same database stay unnoticed until a value reaches its maximum
    /// age.
    Process,
    /// Every process that reaches the cache.
    Shared,
}
