//! A node of a deployment, in a process of its own: a store that follows orders, one a line, and answers each by a line.
//!
//! `cargo xtask soak --beside REVISION` builds this file with an older revision as well, as a test target of its own. So it
//! uses only what both have: when an older revision lacks something, leave it out here, or say in the test that it is not
//! beside that revision.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a part of a test")]

use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use session_cached_db::{CachedDb, Error, Reaper, Session};
use session_core::{DynCache, DynDatabase, Expiry};

/// The variable in the environment of a process that is a node.
pub const ROLE: &str = "MIXED_NODE";

/// The beginning of each answer. Other lines are the test harness's of an older revision.
pub const ANSWER: &str = "answer: ";

type Store = CachedDb<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

/// The node, as a test target of its own. Does nothing without orders.
#[test]
fn node() {
    if std::env::var_os(ROLE).is_some() {
        serve();
    }
}

/// Follows orders until the input ends: first the URLs of the cache and the database, and the grace in seconds.
pub fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut store = None;
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let words: Vec<&str> = line.split(' ').collect();
        let answer = runtime.block_on(async {
            let Some(store) = &store else {
                let built = build(&words).await;
                return built.map(|built| {
                    store = Some(built);
                    "built".to_owned()
                });
            };
            follow(store, &words).await.map_err(|error| error.to_string())
        });
        let answer = answer.unwrap_or_else(|error| format!("error: {error}"));
        println!("\n{ANSWER}{answer}");
        std::io::stdout().flush().unwrap();
    }
}

async fn build(words: &[&str]) -> Result<Store, String> {
    let &[cache, database, grace] = words else { panic!("no node is built by {words:?}") };
    let cache = cache_backends::connect(cache).map_err(|error| error.to_string())?;
    let database = db_backends::connect(database).await.map_err(|error| error.to_string())?;
    let mut builder = CachedDb::builder(cache, database)
        .reaper(None::<Reaper>)
        .clock_slack(Duration::from_secs(1))
        .cache_timeout(Duration::from_secs(2));
    let grace = Duration::from_secs(grace.parse().unwrap());
    if !grace.is_zero() {
        builder = builder.rotation_grace(grace);
    }
    builder.build().await.map_err(|error| error.to_string())
}

/// Returns the key of a session, or `none`.
fn key(session: &Session) -> String {
    session.key().map_or_else(|| "none".to_owned(), |key| key.expose().to_owned())
}

async fn follow(store: &Store, words: &[&str]) -> Result<String, Error> {
    match *words {
        // Returns the key.
        ["create", n, seconds] => {
            let mut session = store.new_session();
            session.set_expiry(Expiry::After(Duration::from_secs(seconds.parse().unwrap())));
            session.insert("n", n.parse::<u64>().unwrap())?;
            session.save().await?;
            Ok(key(&session))
        }
        // Returns the key that the client gets, the value, and the subject.
        ["read", cookie] => {
            let session = store.open(cookie).await?;
            let n: Option<u64> = session.get("n")?;
            let n = n.map_or_else(|| "-".to_owned(), |n| n.to_string());
            Ok(format!("{} {n} {}", key(&session), session.subject().unwrap_or("-")))
        }
        ["add", cookie] => {
            let mut session = store.open(cookie).await?;
            session.modify("n", |n: &mut u64| *n += 1)?;
            session.save().await?;
            Ok("added".to_owned())
        }
        ["write", cookie, n] => {
            let mut session = store.open(cookie).await?;
            session.insert("n", n.parse::<u64>().unwrap())?;
            Ok(format!("{:?}", session.save_strict().await?))
        }
        ["login", cookie, subject] => {
            let mut session = store.open(cookie).await?;
            session.log_in(subject).await?;
            Ok(key(&session))
        }
        ["renew", cookie] => {
            let mut session = store.open(cookie).await?;
            session.renew_key().await?;
            Ok(key(&session))
        }
        ["cycle", cookie] => {
            let mut session = store.open(cookie).await?;
            session.cycle_key().await?;
            Ok(key(&session))
        }
        ["logout", cookie] => {
            store.open(cookie).await?.flush().await?;
            Ok("ended".to_owned())
        }
        ["touch", cookie] => {
            store.open(cookie).await?.touch().await?;
            Ok("touched".to_owned())
        }
        ["expire", cookie, seconds] => {
            let mut session = store.open(cookie).await?;
            if session.key().is_none() {
                return Ok("none".to_owned());
            }
            session.set_expiry(Expiry::After(Duration::from_secs(seconds.parse().unwrap())));
            session.save().await?;
            Ok("set".to_owned())
        }
        ["revoke", subject] => Ok(store.revoke_subject(subject).await?.value.to_string()),
        ["list", subject] => Ok(store.list_by_subject(subject).await?.len().to_string()),
        ["reap"] => Ok(store.clear_expired().await?.to_string()),
        ["memory"] => Ok(store.stats().near_hits.to_string()),
        ["close"] => {
            store.close().await;
            Ok("closed".to_owned())
        }
        _ => panic!("there is no order {words:?}"),
    }
}
