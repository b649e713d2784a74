//! So many hits of a cache and nothing else, for a profiler that counts instructions:
//!
//! ```sh
//! cargo build --release --package session-cached-db --example hits --features moka,sqlite
//! valgrind --tool=callgrind target/release/examples/hits 100000
//! ```
//!
//! What the preparations take is what `hits 0` takes. With the feature `redis` or `memcached` as well, and a URL behind the
//! number, it is the hits of that cache: `hits 10000 redis://127.0.0.1/`.

#![allow(clippy::print_stdout, reason = "it says what it has done")]

use std::error::Error;
use std::hint::black_box;

use session_cached_db::core::Cache;
use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};

/// Few, so that all are in the processor's cache.
const SESSIONS: usize = 1_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let count: usize = args.next().ok_or("say how many hits")?.parse()?;
    match args.next() {
        None => hits(MokaCache::builder().max_bytes(64 << 20).build(), count).await,
        #[cfg(feature = "redis")]
        Some(url) if url.starts_with("redis") => {
            hits(session_cached_db::RedisCache::builder().url(&url).key_prefix("hits:").build()?, count).await
        }
        #[cfg(feature = "memcached")]
        Some(url) if url.starts_with("memcache") => {
            let cache = session_cached_db::MemcachedCache::builder().url(&url).key_prefix("hits:").build()?;
            hits(cache, count).await
        }
        Some(_) => Err("the URL of a Redis or a memcached, if it was built with the feature for that".into()),
    }
}

async fn hits(cache: impl Cache, count: usize) -> Result<(), Box<dyn Error>> {
    let db = SqlitePersistence::connect("sqlite::memory:").await?;
    let store = CachedDb::builder(cache, db).sole_process().reaper(None).build().await?;
    let mut keys = Vec::new();
    for number in 0..SESSIONS {
        let mut session = store.new_session();
        for field in 0..10 {
            session.insert(&format!("field-{field}"), format!("{number:08}{}", "x".repeat(80)))?;
        }
        session.save().await?;
        keys.extend(session.stored_key().copied());
    }
    for key in keys.iter().cycle().take(count) {
        black_box(store.load(key).await?);
    }
    let stats = store.stats();
    println!("{} hits, {} misses", stats.hits, stats.misses);
    Ok(())
}
