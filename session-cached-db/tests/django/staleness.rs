//! Writes of Django, which pass by the cache.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::json;
use session_cached_db::session_core::{BoxFuture, Runtime, Timestamp};
use session_cached_db::{CachedDb, Error, MokaCache, TokioRuntime};

use crate::site::{Db, SECRET_KEY, Site, key_of};

/// Tokio's runtime, with a clock that can be advanced.
#[derive(Debug)]
struct MovedClock {
    tokio: TokioRuntime,
    ahead: Arc<AtomicI64>,
}

impl Runtime for MovedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.tokio.now().as_micros() + self.ahead.load(Ordering::SeqCst))
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        self.tokio.sleep(duration)
    }
    fn spawn(&self, task: BoxFuture<()>) {
        self.tokio.spawn(task);
    }
    fn random_u64(&self) -> NonZeroU64 {
        self.tokio.random_u64()
    }
}

/// Returns a store with moka in front, and how far its clock is ahead, in microseconds.
async fn cached(site: &Site) -> (CachedDb<MokaCache, Db>, Arc<AtomicI64>) {
    let ahead = Arc::new(AtomicI64::new(0));
    let runtime = MovedClock { tokio: TokioRuntime::current().unwrap(), ahead: Arc::clone(&ahead) };
    let cache = MokaCache::builder().max_bytes(1 << 20).build();
    let builder = site.builder(cache, &[SECRET_KEY]).await.runtime(runtime);
    (builder.build().await.unwrap(), ahead)
}

pub async fn without_a_cache_djangos_writes_are_seen_at_once(site: &Site) {
    let store = site.store().await;
    let key = site.create("{\"a\":0}");
    for round in 1..10 {
        site.django("save", json!({"key": key, "set": format!("{{\"a\":{round}}}")}));
        assert_eq!(store.open(&key).await.unwrap().get::<u32>("a").unwrap(), Some(round));
    }
    site.django("flush", json!({"key": key}));
    assert!(store.open(&key).await.unwrap().key().is_none());
}

pub async fn with_a_cache_djangos_writes_are_seen_after_max_cache_age(site: &Site) {
    let (store, ahead) = cached(site).await;
    let (changed, ended) = (site.create("{\"a\":0}"), site.create("{\"a\":0}"));
    let found = async |key: &str| store.open(key).await.unwrap().get::<u32>("a").unwrap();
    assert_eq!((found(&changed).await, found(&ended).await), (Some(0), Some(0)));
    site.django("save", json!({"key": changed, "set": "{\"a\":1}"}));
    site.django("flush", json!({"key": ended}));
    assert_eq!(
        (found(&changed).await, found(&ended).await),
        (Some(0), Some(0)),
        "both should be from the cache"
    );
    // The default `max_cache_age` is 5 s here.
    ahead.store(6_000_000, Ordering::SeqCst);
    assert_eq!((found(&changed).await, found(&ended).await), (Some(1), None));
}

pub async fn stale_session_is_merged_or_refused_but_never_brought_back(site: &Site) {
    let (store, _) = cached(site).await;
    let key = site.create("{\"a\":0,\"b\":0}");
    store.open(&key).await.unwrap();
    site.django("save", json!({"key": key, "set": "{\"b\":1}"}));
    let mut stale = store.open(&key).await.unwrap();
    assert_eq!(stale.get::<u32>("b").unwrap(), Some(0), "the session should be from the cache");
    stale.insert("a", 1).unwrap();
    stale.save().await.unwrap();
    assert_eq!(site.load(&key).as_deref(), Some("{\"a\":1,\"b\":1}"));
    // The merged session is the cached one now.
    assert_eq!(store.open(&key).await.unwrap().get::<u32>("b").unwrap(), Some(1));

    site.django("flush", json!({"key": key}));
    let mut stale = store.open(&key).await.unwrap();
    assert!(stale.key().is_some(), "the session should be from the cache");
    stale.insert("a", 2).unwrap();
    assert!(matches!(stale.save().await, Err(Error::SessionGone)));
    assert_eq!(site.row(&key), None);
    assert!(
        store.open(&key).await.unwrap().key().is_none(),
        "after the write, the session must not be cached any more"
    );
}

/// Django's own `cached_db` does not see writes of this side until its cache drops the session.
pub async fn djangos_cached_db_shows_a_session_ended_here(site: &Site) {
    let store = site.store().await;
    let mut session = store.new_session();
    session.insert("a", 1).unwrap();
    session.save().await.unwrap();
    let load = |key: &str| site.django("load", json!({"key": key, "engine": "cached_db"}))["data"].clone();
    let key = key_of(&session);
    assert_eq!(load(&key), "{\"a\":1}");
    session.flush().await.unwrap();
    assert_eq!(load(&key), "{\"a\":1}", "Django's cache should still show the session that was ended here");
    assert_eq!(site.load(&key), None);
}
