//! A number of hits of a cache, or of misses, or of saves, for a profiler that counts instructions:
//!
//! ```sh
//! cargo build --release --package session-cached-db --example hits --features moka,sqlite
//! valgrind --tool=callgrind target/release/examples/hits 100000
//! valgrind --tool=callgrind target/release/examples/hits 4000 misses
//! valgrind --tool=callgrind target/release/examples/hits 4000 saves
//! valgrind --tool=callgrind target/release/examples/hits 4000 updates
//! ```
//!
//! To measure the preparations alone, run it with 0. A miss reads SQLite and fills moka; a save opens a
//! session that is in moka, changes one key, and updates SQLite. An update is the bare statement of such a save; `indexed` makes
//! it write an index of `expires_at`, too, as the first version of the table had one.
//!
//! With the feature `redis` or `memcached`, and a URL after the number, it measures hits of that cache: `hits
//! 10000 redis://127.0.0.1/`.

#![allow(clippy::print_stdout, reason = "it prints its counts")]

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;

use session_cached_db::db_backends::sqlx::{
    AssertSqlSafe, Connection as _, SqliteConnection, query, raw_sql,
};
use session_cached_db::session_core::{Cache, Persistence as _, StoredKey};
use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};

type Database = Arc<SqlitePersistence>;

/// Number of sessions, few enough for the processor's cache.
const SESSIONS: usize = 1_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let count: usize =
        args.next().ok_or("usage: hits COUNT [misses | saves | updates | indexed | URL]")?.parse()?;
    match args.next() {
        None => hits(moka(), count).await,
        Some(what) if what == "misses" => misses(count).await,
        Some(what) if what == "saves" => saves(count).await,
        Some(what) if what == "updates" => updates(count, "SELECT 1").await,
        Some(what) if what == "indexed" => {
            updates(count, "CREATE INDEX sessions_expires_at ON sessions (expires_at)").await
        }
        #[cfg(feature = "redis")]
        Some(url) if url.starts_with("redis") => {
            hits(session_cached_db::RedisCache::builder().url(&url).key_prefix("hits:").build()?, count).await
        }
        #[cfg(feature = "memcached")]
        Some(url) if url.starts_with("memcache") => {
            let cache = session_cached_db::MemcachedCache::builder().url(&url).key_prefix("hits:").build()?;
            hits(cache, count).await
        }
        Some(_) => Err(
            "the second argument must be misses, saves, updates, indexed, or the URL of a cache for which this was built with the feature"
                .into(),
        ),
    }
}

async fn hits(cache: impl Cache, count: usize) -> Result<(), Box<dyn Error>> {
    let store = store(cache, &database().await?).await?;
    let keys = fill(&store).await?;
    for (key, _) in keys.iter().cycle().take(count) {
        black_box(store.load(key).await?);
    }
    print_counts(&store)
}

async fn misses(count: usize) -> Result<(), Box<dyn Error>> {
    let db = database().await?;
    let keys = fill(&store(moka(), &db).await?).await?;
    // Every key is cold once in each store. The same number of stores is built for 0 misses, so that they can
    // be subtracted.
    let cold = [
        store(moka(), &db).await?,
        store(moka(), &db).await?,
        store(moka(), &db).await?,
        store(moka(), &db).await?,
    ];
    if count > cold.len() * keys.len() {
        return Err("at most 4000 misses".into());
    }
    let loads = cold.iter().flat_map(|store| keys.iter().map(move |(key, _)| (store, key)));
    for (store, key) in loads.take(count) {
        black_box(store.load(key).await?);
    }
    cold.iter().try_for_each(print_counts)
}

async fn saves(count: usize) -> Result<(), Box<dyn Error>> {
    let store = store(moka(), &database().await?).await?;
    let keys = fill(&store).await?;
    for (number, (_, cookie)) in keys.iter().cycle().take(count).enumerate() {
        let mut session = store.open(cookie).await?;
        session.insert("field-3", format!("{number:08}"))?;
        session.save().await?;
    }
    print_counts(&store)
}

/// Makes the statement of a save through the driver alone.
async fn updates(count: usize, first: &'static str) -> Result<(), Box<dyn Error>> {
    const UPDATE: &str =
        "UPDATE sessions SET payload = ?, last_seen_at = ?, version = ?, expires_at = max(expires_at, ?)
                          WHERE key = ? AND expires_at > ?";
    let schema = SqlitePersistence::connect("sqlite::memory:").await?.schema_sql();
    let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
    raw_sql(AssertSqlSafe(schema)).execute(&mut connection).await?;
    raw_sql(first).execute(&mut connection).await?;
    let payload = vec![b'x'; 1_050];
    let now = 1_800_000_000_000_000_i64;
    let key = |number: usize| format!("{number:043}");
    for number in 0..SESSIONS {
        let insert = "INSERT INTO sessions (key, payload, created_at, expires_at, last_seen_at, version)
                      VALUES (?, ?, 0, ?, 0, 0)";
        let insert = query(insert).bind(key(number)).bind(&payload).bind(now + 1);
        insert.execute(&mut connection).await?;
    }
    for number in 0..count {
        // The version is as random as a save's, in the number of its bytes.
        let later = now + 1 + i64::try_from(number)?;
        let update = query(UPDATE).bind(&payload).bind(later).bind(i64::MAX - later).bind(later + 1);
        update.bind(key(number % SESSIONS)).bind(now).execute(&mut connection).await?;
    }
    println!("{count} updates");
    Ok(())
}

fn moka() -> MokaCache {
    MokaCache::builder().max_bytes(64 << 20).build()
}

async fn database() -> Result<Database, Box<dyn Error>> {
    Ok(Arc::new(SqlitePersistence::connect("sqlite::memory:").await?))
}

async fn store<C: Cache>(cache: C, db: &Database) -> Result<CachedDb<C, Database>, Box<dyn Error>> {
    Ok(CachedDb::builder(cache, Arc::clone(db)).sole_process().reaper(None).build().await?)
}

/// Saves the sessions, and returns their keys and cookies.
async fn fill<C: Cache>(store: &CachedDb<C, Database>) -> Result<Vec<(StoredKey, String)>, Box<dyn Error>> {
    let mut keys = Vec::new();
    for number in 0..SESSIONS {
        let mut session = store.new_session();
        for field in 0..10 {
            session.insert(&format!("field-{field}"), format!("{number:08}{}", "x".repeat(80)))?;
        }
        session.save().await?;
        let cookie = session.key().map(|key| key.expose().to_owned());
        keys.extend(session.stored_key().copied().zip(cookie));
    }
    Ok(keys)
}

fn print_counts<C: Cache>(store: &CachedDb<C, Database>) -> Result<(), Box<dyn Error>> {
    let stats = store.stats();
    println!("{} hits, {} misses, {} writes", stats.hits, stats.misses, stats.fenced_writes);
    Ok(())
}
