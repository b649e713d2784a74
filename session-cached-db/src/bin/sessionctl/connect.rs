//! Connects to the database and the cache that URLs name, and builds a store from them.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use session_cached_db::cache_backends::ChannelInspection;
use session_cached_db::session_core::{
    Acquired, CacheError, Codec, CompressCodec, DynCache, DynDatabase, Entry, Expected, JsonCodec, KeyPrefix,
    NearSource, Persistence as _, SealCodec, SealingKeys, Stamp, StoredKey,
};
use session_cached_db::{
    CachedDb, DEFAULT_WRITE_TIMEOUT, NoCache, OutagePolicy, Reaper, Schema, WriteOperation, cache_backends,
    db_backends,
};

use crate::args::{Application, Caching, Connection, Format};
use crate::clock::{self, now};
use crate::exit::Failure;

/// Maximum time to wait for a cache's answer. An operator has more patience than a web page.
const CACHE_PATIENCE: Duration = Duration::from_secs(3);

/// The time for which a trial may leave something in a cache.
const PROBE_TTL: Duration = Duration::from_secs(1);

const SEALING_KEYS: &str = "SESSIONCTL_SEALING_KEYS";

pub(crate) type Database = Arc<dyn db_backends::Inspect>;
pub(crate) type Cache = Arc<dyn cache_backends::Inspect>;
pub(crate) type Store = CachedDb<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

/// The access that a command needs to the database. An SQLite file is opened accordingly: one that is
/// missing, or belongs to another program, is left as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Make,
}

/// Returns the database, in any state of its table.
pub(crate) async fn any_database(at: &Connection, access: Access) -> Result<Database, Failure> {
    let url = at.database_url.as_ref().map(|url| url.0.as_str()).filter(|url| !url.is_empty());
    let url = url.ok_or_else(|| {
        Failure::Usage("no database; set SESSIONCTL_DATABASE_URL, or pass --database-url".into())
    })?;
    Ok(db_backends::connect_to_inspect(&with_access(url, access)).await?)
}

/// Returns the database, after checking that its table is as this version needs it. Access to write also
/// requires that the clocks agree.
pub(crate) async fn database(at: &Connection, access: Access) -> Result<Database, Failure> {
    let database = any_database(at, Access::Read).await?;
    database.check_schema_dyn().await?;
    if access == Access::Read {
        return Ok(database);
    }
    clock::check(&database).await?;
    any_database(at, access).await
}

fn with_access(url: &str, access: Access) -> String {
    let mode = match access {
        Access::Read => "mode=ro",
        Access::Write => "mode=rw",
        Access::Make => return url.to_owned(),
    };
    let is_file = url.starts_with("sqlite:") && !url.contains(":memory:") && !url.contains("mode=");
    match (is_file, url.contains('?')) {
        (false, _) => url.to_owned(),
        (true, false) => format!("{url}?{mode}"),
        (true, true) => format!("{url}&{mode}"),
    }
}

/// Returns the cache, if a URL names one. It connects on its first call.
pub(crate) fn cache(at: &Connection) -> Result<Option<Cache>, Failure> {
    let Some(url) = at.cache_url.as_ref().map(|url| url.0.as_str()).filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    if url.starts_with("moka:") {
        return Err(Failure::Usage(
            "moka is a cache in the application's own process, out of reach for other programs; leave out the cache's \
             URL, and pass --no-cache to commands that ask for it"
                .into(),
        ));
    }
    Ok(Some(cache_backends::connect_to_inspect(url)?))
}

/// Returns `true` if `cache` is memory of the application's processes that the database tells of changes. Then there is
/// nothing in it here.
pub(crate) fn is_told_by_database(cache: &dyn cache_backends::Inspect) -> bool {
    cache.near_dyn().is_some_and(|near| near.source() == NearSource::Database)
}

/// Listens to the reports of `database`, as the nodes of a store with the memory `cache` do.
pub(crate) async fn inspect_channel(
    cache: &dyn cache_backends::Inspect,
    database: &Database,
) -> Result<ChannelInspection, CacheError> {
    let notices = database.notify_dyn().map_err(|reason| {
        CacheError::Unusable(format!("{}: {reason}", database.properties_dyn().name).into())
    })?;
    let inspected = cache.inspect_channel(Some(notices)).await;
    inspected.unwrap_or_else(|| Err(CacheError::Unusable("the cache is told of no changes".into())))
}

/// Tries the commands of a store on `cache`, under a key that no session has: those that read, and those that remove
/// what is not there.
pub(crate) async fn try_reading(cache: &dyn cache_backends::Inspect) -> Result<(), CacheError> {
    cache.get_dyn(&StoredKey::PROBE).await?;
    cache.compare_exchange_dyn(&StoredKey::PROBE, Expected::Vacant, None, PROBE_TTL).await.map(drop)
}

/// Tries all commands of a store on `cache`, under a key that no session has. Leaves nothing there.
pub(crate) async fn try_all(cache: &dyn cache_backends::Inspect) -> Result<(), CacheError> {
    try_reading(cache).await?;
    let micros = u64::try_from(now().as_micros()).unwrap_or_default();
    let stamp = Stamp(NonZeroU64::MIN.saturating_add(micros));
    if let Acquired::Placed = cache.acquire_dyn(&StoredKey::PROBE, Entry::lease(stamp), PROBE_TTL).await? {
        let expected = Expected::Stamp(stamp);
        cache.compare_exchange_dyn(&StoredKey::PROBE, expected, None, PROBE_TTL).await?;
    }
    Ok(())
}

/// Returns the prefix of the stored keys of the application's sessions.
pub(crate) fn prefix(application: &Application) -> Result<KeyPrefix, Failure> {
    application
        .prefix()
        .map_err(|_| Failure::Usage("--key-prefix has at most 21 characters of [A-Za-z0-9_.:-]".into()))
}

/// Returns a store to write through. It fences the cache as the application does; if it cannot, nothing is
/// written.
pub(crate) async fn store(
    at: &Connection,
    caching: Caching,
    codec: Arc<dyn Codec>,
    key_prefix: &str,
) -> Result<Store, Failure> {
    let cache: Arc<dyn DynCache> = match (cache(at)?, caching.no_cache) {
        (_, true) => Arc::new(NoCache),
        (Some(cache), false) => cache,
        (None, false) => {
            return Err(Failure::Usage(
                "no cache; set SESSIONCTL_CACHE_URL, or pass --cache-url: a cache that is not fenced may show sessions as \
                 they were, ended ones too, for as long as the applications' max_cache_age (5 minutes by default). Pass \
                 --no-cache if there is no cache, or if that does not matter"
                    .into(),
            ));
        }
    };
    let database: Arc<dyn DynDatabase> = database(at, Access::Write).await?;
    let max_payload_bytes = database.properties().max_payload_bytes;
    let freshness_bound = cache.near_dyn().map(|near| near.freshness_bound()).unwrap_or_default();
    let store = CachedDb::builder(cache, database)
        .codec(codec)
        .key_prefix(key_prefix)
        // Entries that are published here bear another store's identity than the application's, so they are
        // of no use to it.
        .max_cache_age(freshness_bound.max(Duration::from_secs(1)))
        .write_timeout(DEFAULT_WRITE_TIMEOUT.max(2 * freshness_bound))
        .schema(Schema::Check)
        .reaper(None::<Reaper>)
        .max_payload_bytes(max_payload_bytes)
        .cache_timeout(CACHE_PATIENCE)
        // A write that could not be fenced would need a repair later, and this process will have ended by
        // then.
        .outage_policy(WriteOperation::Delete, OutagePolicy::FailClosed)
        .outage_policy(WriteOperation::Save, OutagePolicy::FailClosed)
        .outage_policy(WriteOperation::Rename, OutagePolicy::FailClosed)
        .build()
        .await?;
    Ok(store)
}

/// Returns the codec with which the application writes payloads. It compresses payloads of `compress_from`
/// bytes or more.
pub(crate) fn codec(format: &Format, compress_from: Option<usize>) -> Result<Arc<dyn Codec>, Failure> {
    let plain = CompressCodec::new(JsonCodec::default()).with_threshold(compress_from.unwrap_or(usize::MAX));
    Ok(match (sealing_keys(format)?, format.accept_unsealed) {
        (None, _) => Arc::new(plain),
        (Some(keys), false) => Arc::new(SealCodec::new(plain, keys)),
        (Some(keys), true) => Arc::new(SealCodec::new(plain, keys).accepting_unsealed()),
    })
}

/// Returns the ring of sealing keys, if there is one.
pub(crate) fn sealing_keys(format: &Format) -> Result<Option<SealingKeys>, Failure> {
    let is_set = std::env::var_os(SEALING_KEYS).is_some_and(|keys| !keys.is_empty());
    let keys = match &format.sealing_keys_file {
        Some(file) => SealingKeys::from_file(file),
        None if is_set => SealingKeys::from_env(SEALING_KEYS),
        None => return Ok(None),
    };
    keys.map(Some).map_err(|error| Failure::Usage(format!("the sealing keys cannot be used: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_file_is_made_only_with_the_access_to_make_it() {
        assert_eq!(with_access("sqlite://a.db", Access::Read), "sqlite://a.db?mode=ro");
        assert_eq!(with_access("sqlite://a.db?table=t", Access::Write), "sqlite://a.db?table=t&mode=rw");
        assert_eq!(with_access("sqlite://a.db?mode=rwc", Access::Write), "sqlite://a.db?mode=rwc");
        assert_eq!(with_access("sqlite://a.db", Access::Make), "sqlite://a.db");
        assert_eq!(with_access("postgres://h/d", Access::Read), "postgres://h/d");
    }
}
