use std::sync::Arc;

use foldhash::fast::RandomState;
use moka::policy::EvictionPolicy;

use super::clock::Clock;
use super::pending::Pending;
use super::{MokaCache, weight};
use crate::ConnectError;
use crate::url::{self, Url};

/// Describes a [`MokaCache`].
#[derive(Clone, Debug)]
#[must_use]
pub struct MokaCacheBuilder {
    max_bytes: u64,
}

impl MokaCacheBuilder {
    pub(super) const fn new() -> Self {
        Self { max_bytes: 64 << 20 }
    }

    /// How much memory the values may take, in bytes, everything around them included. Default 64 MiB.
    ///
    /// A session with a payload of 1 KB takes about 1.7 KB. One whose payload is no JSON (sealed, compressed, a Django site's)
    /// is kept decoded beside it once it was read, which does not count here. A value that alone is larger than this is not
    /// kept.
    pub const fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// What a URL says, `moka://?max_bytes=…`.
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

    /// The cache, empty.
    #[must_use]
    pub fn build(self) -> MokaCache {
        self.build_on(Clock::System)
    }

    pub(super) fn build_on(self, clock: Clock) -> MokaCache {
        // Seeded anew for every cache. Nobody outside can choose keys that collide: a value's key is the hash of a
        // session key that the database knows, and the seed is not to be learned from answers over a network.
        let hasher = RandomState::default();
        // LRU rather than moka's default, TinyLFU: that may refuse a value that is new, and a session that was just
        // written is about to be read. Nor could a scan wash out what is used: unknown keys bring no values.
        //
        // Nothing here expires by moka's own clock: it would cost a sixth of every hit. A value that has expired is
        // dropped when it is asked for, and one that nobody asks for leaves as the least recently used.
        let values = moka::sync::Cache::builder()
            .max_capacity(self.max_bytes)
            .weigher(|_, held| weight::of(held))
            .eviction_policy(EvictionPolicy::lru())
            .build_with_hasher(hasher.clone());
        MokaCache { values, pending: Arc::new(Pending::new(hasher)), clock, max_bytes: self.max_bytes }
    }
}
