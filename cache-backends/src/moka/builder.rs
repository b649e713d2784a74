use std::sync::Arc;

use foldhash::fast::RandomState;
use moka::policy::EvictionPolicy;

use super::MokaCache;
use super::clock::Clock;
use super::held::Held;
use super::pending::Pending;
use crate::ConnectError;
use crate::url::{self, Url};

/// A builder of a [`MokaCache`].
#[derive(Clone, Debug)]
#[must_use]
pub struct MokaCacheBuilder {
    max_bytes: u64,
}

impl MokaCacheBuilder {
    pub(super) const fn new() -> Self {
        Self { max_bytes: 64 << 20 }
    }

    /// Sets the memory that the values may take, in bytes, with everything around them. Defaults to 64 MiB.
    ///
    /// A session with a payload of 1 KB takes about 1.7 KB. A payload that is not JSON (sealed, compressed,
    /// or a Django site's) is kept decoded as well once it was read, and that copy does not count here. A
    /// single value that is larger than this is not kept.
    pub const fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Reads the options from a URL, `moka://?max_bytes=…`.
    pub(crate) fn read(mut self, url: Url<'_>) -> Result<Self, ConnectError> {
        if url.credentials.is_some() || !url.hosts.is_empty() || !matches!(url.path, "" | "/") {
            return Err(ConnectError::Config("a moka:// URL has parameters only: there is no server".into()));
        }
        for (name, value) in url.parameters() {
            match name {
                "max_bytes" => self.max_bytes = url::number(name, value)?,
                _ => return Err(url.unknown_parameter("max_bytes")),
            }
        }
        Ok(self)
    }

    /// Creates the cache, which is empty.
    #[must_use]
    pub fn build(self) -> MokaCache {
        self.build_on(Clock::System)
    }

    /// Creates the cache on a clock that the simulator advances, in nanoseconds.
    #[cfg(feature = "__simulation")]
    #[doc(hidden)]
    #[must_use]
    pub fn __build_on(self, nanos: Arc<std::sync::atomic::AtomicU64>) -> MokaCache {
        self.build_on(Clock::Manual(nanos))
    }

    pub(super) fn build_on(self, clock: Clock) -> MokaCache {
        // The fast hasher is safe here, although it is no protection against chosen keys: every cache has its
        // own seed, which answers over a network do not reveal, and a value's key is the hash of a session
        // key that the database knows.
        let hasher = RandomState::default();
        // LRU instead of moka's default, TinyLFU, which may refuse a new value: a session that was just
        // written is about to be read. A scan cannot evict the values in use, because unknown keys have no
        // values.
        //
        // No entry expires by moka's own clock, which would cost a sixth of every hit. An expired value is
        // dropped when it is looked up. One that is not looked up any more is evicted as the least recently
        // used.
        let values = moka::sync::Cache::builder()
            .max_capacity(self.max_bytes)
            .weigher(|_, held: &Held| held.weight())
            .eviction_policy(EvictionPolicy::lru())
            .build_with_hasher(hasher.clone());
        MokaCache {
            values,
            pending: Arc::new(Pending::new(hasher)),
            generation: Arc::default(),
            clock,
            max_bytes: self.max_bytes,
        }
    }
}
