//! The main job, embedded: sessions in an SQLite file, with moka in front.
//!
//! Run it twice: the second run finds the session of the first one.
//!
//! ```sh
//! cargo run --example quickstart
//! ```

#![allow(clippy::print_stdout, reason = "it explains itself to its user")]

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use session_cached_db::StoredKey;
use session_cached_db::{CachedDb, MokaCache, Session, SqlitePersistence};

const DATABASE: &str = "sqlite://quickstart.db";
/// Stands in for the browser, which keeps the cookie between two visits.
const BROWSER: &str = "quickstart.cookie";

type Store = CachedDb<MokaCache, SqlitePersistence>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
    let db = SqlitePersistence::connect(DATABASE).await?;
    let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
    let store = CachedDb::builder(cache, db).sole_process().idle_timeout(days(14)).build().await?;
    println!("Opened {DATABASE}: it is the truth, and moka is in front of it.\n");

    visit(&store).await?;
    log_in(&store).await?;
    read_from_the_cache(&store).await?;
    log_out(&store).await?;

    store.close().await;
    println!(
        "\nRun it again: the session of this visit is still there. Delete {BROWSER} to be a new visitor."
    );
    Ok(())
}

/// Handles a request of a browser that may have been here before.
async fn visit(store: &Store) -> Result<(), Box<dyn Error>> {
    let mut session = store.open(&cookie()).await?;
    match session.key() {
        None => {
            println!("1. A visitor without a session. Nothing is stored until there is something to keep.");
        }
        Some(_) => println!("1. A visitor whose session is from an earlier run."),
    }
    let visits = session.modify("visits", |visits: &mut u32| {
        *visits += 1;
        *visits
    })?;
    session.save().await?;
    println!("   Visit number {visits}, saved in one statement.");
    keep_cookie(&session)
}

/// Logs a user in. The session gets a new key, so that a key that was planted before is worth nothing.
async fn log_in(store: &Store) -> Result<(), Box<dyn Error>> {
    let before = cookie();
    let mut session = store.open(&before).await?;
    session.insert("name", "Ada")?;
    session.log_in("user-42").await?;
    keep_cookie(&session)?;

    let old = store.open(&before).await?;
    println!("2. Ada logs in: new key, data and user written in one statement.");
    println!("   The key from before opens {}.", what_it_opens(&old)?);
    println!("   The new key opens {}.", what_it_opens(&store.open(&cookie()).await?)?);
    Ok(())
}

/// Opens the session many times. After one load or save, it is served from memory until it
/// is changed.
async fn read_from_the_cache(store: &Store) -> Result<(), Box<dyn Error>> {
    let before = store.stats();
    for _ in 0..1_000 {
        store.open(&cookie()).await?;
    }
    let now = store.stats();
    println!(
        "3. Opened it 1,000 times more: {} cache hits, {} database reads.",
        now.hits - before.hits,
        (now.misses + now.bypasses) - (before.misses + before.bypasses),
    );
    Ok(())
}

/// Logs Ada out on a second device. That session is gone, everywhere and for good; the other one is not.
async fn log_out(store: &Store) -> Result<(), Box<dyn Error>> {
    let mut phone = store.new_session();
    phone.insert("name", "Ada")?;
    phone.insert("visits", 1)?;
    phone.log_in("user-42").await?;
    let phones_cookie = phone.key().ok_or("a saved session has a key")?.expose().to_owned();
    println!("4. Ada logs in on her phone as well: {} sessions.", sessions(store).await?.len());

    let mut slow_request = store.open(&phones_cookie).await?;
    phone.log_out().await?;
    println!("   She logs out there: {} session left.", sessions(store).await?.len());
    println!("   The phone's key opens {}.", what_it_opens(&store.open(&phones_cookie).await?)?);

    slow_request.insert("cart", ["a book"])?;
    match slow_request.save().await {
        Ok(_) => println!("   A request that was still running has brought the session back!"),
        Err(error) => println!("   A request that was still running cannot bring it back: {error}."),
    }
    Ok(())
}

async fn sessions(store: &Store) -> Result<Vec<StoredKey>, Box<dyn Error>> {
    Ok(store.list_by_subject("user-42").await?.into_iter().map(|session| session.key).collect())
}

fn what_it_opens(session: &Session) -> Result<String, Box<dyn Error>> {
    Ok(match session.get::<String>("name")? {
        Some(name) => format!("{name}'s session, visits: {}", session.get::<u32>("visits")?.unwrap_or(0)),
        None => "nothing: a new, empty session".to_owned(),
    })
}

fn cookie() -> String {
    std::fs::read_to_string(BROWSER).unwrap_or_default()
}

fn keep_cookie(session: &Session) -> Result<(), Box<dyn Error>> {
    let key = session.key().ok_or("a saved session has a key")?;
    Ok(std::fs::write(Path::new(BROWSER), key.expose())?)
}
