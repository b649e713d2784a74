use std::time::Duration;

use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, StoredKey,
};

/// A cache that keeps nothing: every load reads the database, and sees all that any program committed before
/// it began.
///
/// For a table that other programs write to, such as Django's, where a session that another program has ended
/// must not be shown for up to [`max_cache_age`](crate::Builder::max_cache_age) more. Loads of one session at
/// the same time still share a read, if it is new enough for all of them.
///
/// It drops each entry at once, which a cache may do at any time.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(feature = "sqlite")] {
/// use session_cached_db::{CachedDb, NoCache, SqlitePersistence};
///
/// let store = CachedDb::builder(NoCache, SqlitePersistence::connect("sqlite::memory:").await?).build().await?;
/// # }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoCache;

impl Cache for NoCache {
    async fn get(&self, _key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        Ok(None)
    }

    async fn compare_exchange(
        &self,
        _key: &StoredKey,
        expected: Expected,
        _new: Option<Entry>,
        _ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        Ok(match expected {
            Expected::Vacant => Exchange::Stored,
            Expected::Stamp(_) => Exchange::Lost(None),
        })
    }

    async fn acquire(&self, _key: &StoredKey, _lease: Entry, _ttl: Duration) -> Result<Acquired, CacheError> {
        Ok(Acquired::Placed)
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Process).with_name("none")
    }
}
