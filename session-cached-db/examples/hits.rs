//! So many hits in moka and nothing else, for a profiler that counts instructions:
//!
//! ```sh
//! cargo build --release --package session-cached-db --example hits --features moka,sqlite
//! valgrind --tool=callgrind target/release/examples/hits 100000
//! ```
//!
//! What the preparations take is what `hits 0` takes.

#![allow(clippy::print_stdout, reason = "it says what it has done")]

use std::hint::black_box;

use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};

/// Few, so that all are in the processor's cache.
const SESSIONS: usize = 1_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hits: usize = std::env::args().nth(1).ok_or("say how many hits")?.parse()?;
    let db = SqlitePersistence::connect("sqlite::memory:").await?;
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
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
    for key in keys.iter().cycle().take(hits) {
        black_box(store.load(key).await?);
    }
    let stats = store.stats();
    println!("{} hits, {} misses", stats.hits, stats.misses);
    Ok(())
}
