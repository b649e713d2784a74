use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::{CacheError, Entry, Stamp, StoredKey};

/// A register per key with compare-and-exchange. That is all a cache has to be.
///
/// The coherence protocol is not a backend's business: it is the same for all of them, and written over these methods.
/// A backend only keeps [`Entry`]s, and may lose any of them at any time.
///
/// # Behavior
///
/// - What was stored is found under the same key, with the same stamp, until its TTL has passed.
/// - A TTL of zero stores nothing: the exchange is made as if `new` were `None`.
/// - Keys are compared byte for byte.
/// - An entry that cannot be read (another program's, a newer version's) counts as nothing there, in every method.
/// - An entry of another key is never returned: [`CacheError::WrongKey`].
/// - An entry may disappear before its TTL. An older one never comes back in its place.
/// - A value that is too large to be stored leaves nothing behind under its key that was there before, or fails and
///   leaves everything as it was; never a truncated one.
/// - No method repeats a write of its own accord when its outcome is unknown.
///
/// # Cancel safety
///
/// A future that is dropped may have had its effect, or may have it later, like a call that timed out.
pub trait Cache: Send + Sync + fmt::Debug + 'static {
    /// What is under `key`.
    ///
    /// # Errors
    ///
    /// [`CacheError`]; none of its variants means that nothing is there.
    fn get(&self, key: &StoredKey) -> impl Future<Output = Result<Option<Entry>, CacheError>> + Send;

    /// Replaces what is under `key` by `new` (or by nothing), kept for at most `ttl`, only if it is still as
    /// `expected`.
    ///
    /// # Behavior
    ///
    /// - Atomic against every other exchange on the key, of any process: of two exchanges that expect the same, at most
    ///   one is [`Exchange::Stored`].
    /// - [`Exchange::Lost`] changes nothing, and tells what was there, read not before the call began.
    /// - The stamp of `new` becomes the stamp of what is there.
    ///
    /// # Errors
    ///
    /// [`CacheError`], whose [`outcome`](CacheError::outcome) tells whether the exchange may have happened.
    fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> impl Future<Output = Result<Exchange, CacheError>> + Send;

    /// Gets what is there, or places `lease` for `ttl` if nothing is.
    ///
    /// Provided: a `get`, then a `compare_exchange`. A backend that can do it in one round trip overrides it.
    ///
    /// # Behavior
    ///
    /// - [`Acquired::Placed`] only if nothing was there: as an exchange that expects [`Expected::Vacant`].
    /// - [`Acquired::Found`] changes nothing.
    ///
    /// # Errors
    ///
    /// [`CacheError`], whose [`outcome`](CacheError::outcome) tells whether the lease may have been placed.
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
    /// Provided: 0, for a cache that is one server. A cache of several servers overrides it, so that one of them being
    /// down does not keep the keys of the others out of use.
    ///
    /// # Behavior
    ///
    /// - The same key has the same number as long as the cache's set of servers does not change.
    /// - Keys with the same number are reachable, or not, together. Makes no call.
    fn server(&self, key: &StoredKey) -> usize {
        let _ = key;
        0
    }

    /// What this cache is and can do. The same at every call.
    fn properties(&self) -> CacheProperties;
}

/// What must be under a key for an exchange to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Vacant,
    /// The entry with this stamp.
    Stamp(Stamp),
}

/// What became of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// It happened.
    Stored,
    /// It did not: this is there instead.
    Lost(Option<Entry>),
}

/// What became of an [`acquire`](Cache::acquire).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// This was there.
    Found(Entry),
    /// Nothing was there; the lease is placed.
    Placed,
}

/// What a cache is and can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheProperties {
    /// Who shares it.
    pub scope: Scope,
    /// The largest encoded entry that it takes, in bytes.
    pub max_entry_bytes: usize,
    /// TTLs are rounded up to multiples of this. Never rounded down, and zero stays zero.
    pub ttl_granularity: Duration,
    /// What it is called in metrics: `redis`, for instance. By default `cache`.
    pub name: &'static str,
    /// The number of servers, or groups of keys, that can fail independently: see [`Cache::server`]. Defaults to 1.
    pub servers: usize,
}

impl CacheProperties {
    /// No limit on entries, TTLs of any length.
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

    /// The same with a limit on encoded entries, in bytes.
    #[must_use]
    pub const fn with_max_entry_bytes(mut self, max_entry_bytes: usize) -> Self {
        self.max_entry_bytes = max_entry_bytes;
        self
    }

    /// The same under another name.
    #[must_use]
    pub const fn with_name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Sets the number of servers that can fail independently. At least 1.
    #[must_use]
    pub const fn with_servers(mut self, servers: usize) -> Self {
        self.servers = if servers == 0 { 1 } else { servers };
        self
    }

    /// The same with another granularity of TTLs.
    #[must_use]
    pub const fn with_ttl_granularity(mut self, ttl_granularity: Duration) -> Self {
        self.ttl_granularity = ttl_granularity;
        self
    }
}

/// Who shares a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// This process alone. Its calls return at once, without I/O, and never fail for being out of reach. Other
    /// processes that write to the same database go unnoticed until a value's age ends.
    Process,
    /// Every process that reaches it.
    Shared,
}
