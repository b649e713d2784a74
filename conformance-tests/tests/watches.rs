//! Watches of sessions on nodes that are told of changes: the interval is an hour, so that only a report can be the reason for
//! which an end is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use cache_backends::moka::MokaCache;
use cache_backends::near::{NearCache, near};
use conformance_tests::reference::MemoryCache;
use db_backends::sqlite::SqlitePersistence;
use session_cached_db::{CachedDb, Session, SessionEnd, SessionWatch};
use session_core::{
    Cache, CacheError, CacheProperties, Entry, Exchange, Expected, NoticeListener, NoticeSource, Scope,
    Stamp, State, StoredKey,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

type Store = CachedDb<NearCache<SharedCache>, SqlitePersistence>;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// The time within which a test on a busy machine has done what is a matter of milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cache in memory that two nodes share.
#[derive(Clone, Debug, Default)]
struct SharedCache(MemoryCache);

impl Cache for SharedCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        self.0.get(key).await
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        self.0.compare_exchange(key, expected, new, ttl).await
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Shared)
    }
}

impl NoticeSource for SharedCache {
    type Channel = <MemoryCache as NoticeSource>::Channel;

    async fn open_channel(&self, listener: Arc<dyn NoticeListener>) -> Result<Self::Channel, CacheError> {
        self.0.open_channel(listener).await
    }
}

/// Two nodes of one application.
struct Nodes {
    cache: SharedCache,
    here: Store,
    there: Store,
    _files: TempDir,
}

impl Nodes {
    async fn new() -> Self {
        let (cache, files) = (SharedCache::default(), tempfile::tempdir().unwrap());
        let url = format!("sqlite://{}", files.path().join("sessions.db").display());
        let (here, there) = (node(&cache, &url).await, node(&cache, &url).await);
        Self { cache, here, there, _files: files }
    }

    /// Returns a session, and a watch of it on the other node that has looked at it.
    async fn watched(&self) -> (Session, JoinHandle<SessionEnd>) {
        let mut session = self.here.new_session();
        session.insert("cart", 1).unwrap();
        session.save().await.unwrap();
        let there = self.there.open(session.key().unwrap().expose()).await.unwrap();
        let waiting = wait_on(there.watch(HOUR).unwrap());
        self.looked().await;
        assert!(!waiting.is_finished(), "the session is there");
        (session, waiting)
    }

    /// Waits until no more looks come.
    async fn looked(&self) {
        let mut looks = 0;
        while looks != self.there.stats().watch_looks || looks == 0 {
            looks = self.there.stats().watch_looks;
            sleep(Duration::from_millis(300)).await;
        }
    }
}

async fn node(cache: &SharedCache, url: &str) -> Store {
    let cache = near(MokaCache::builder().build(), cache.clone());
    let db = SqlitePersistence::connect(url).await.unwrap();
    let store = CachedDb::builder(cache, db).reaper(None).rotation_grace(Duration::from_secs(60));
    store.build().await.unwrap()
}

fn wait_on(mut watch: SessionWatch) -> JoinHandle<SessionEnd> {
    tokio::spawn(async move { watch.ended().await })
}

async fn end_of(waiting: JoinHandle<SessionEnd>) -> SessionEnd {
    timeout(PATIENCE, waiting).await.expect("the end is told without the interval").unwrap()
}

#[tokio::test]
async fn logout_on_another_node_is_told_by_its_report() {
    let nodes = Nodes::new().await;
    let (mut session, waiting) = nodes.watched().await;
    session.insert("cart", 2).unwrap();
    session.save().await.unwrap();
    nodes.looked().await;
    assert!(!waiting.is_finished(), "a save ends nothing");
    session.log_out().await.unwrap();
    assert_eq!(end_of(waiting).await, SessionEnd::Gone);
}

#[tokio::test]
async fn session_that_is_in_no_cache_is_told_by_its_report() {
    let nodes = Nodes::new().await;
    let (mut session, waiting) = nodes.watched().await;
    // The entry is lost, so nothing is there that the logout could change. Its fence is a change, too.
    let key = *session.stored_key().unwrap();
    for _ in 0..2 {
        if let Some(entry) = nodes.cache.get(&key).await.unwrap() {
            let expected = Expected::Stamp(entry.stamp);
            nodes.cache.compare_exchange(&key, expected, None, HOUR).await.unwrap();
        }
        nodes.looked().await;
    }
    session.log_out().await.unwrap();
    assert_eq!(end_of(waiting).await, SessionEnd::Gone);
}

#[tokio::test]
async fn renewal_and_login_on_another_node_are_told_apart_by_their_reports() {
    let nodes = Nodes::new().await;
    let (mut session, waiting) = nodes.watched().await;
    session.renew_key().await.unwrap();
    nodes.looked().await;
    assert!(!waiting.is_finished(), "a renewal is no end");
    session.log_in("user-42").await.unwrap();
    assert_eq!(end_of(waiting).await, SessionEnd::NewRights);
    let waiting = wait_on(nodes.there.watch(session.stored_key().unwrap(), HOUR));
    nodes.looked().await;
    nodes.here.revoke_subject("user-42").await.unwrap();
    assert_eq!(end_of(waiting).await, SessionEnd::Gone);
}

#[tokio::test]
async fn end_that_a_lost_channel_misses_is_told_when_another_is_open() {
    for is_cut_before in [true, false] {
        let nodes = Nodes::new().await;
        let (mut session, waiting) = nodes.watched().await;
        if is_cut_before {
            nodes.cache.0.cut_channels();
        }
        let (ended, ()) = tokio::join!(session.log_out(), async {
            if !is_cut_before {
                nodes.cache.0.cut_channels();
            }
        });
        ended.unwrap();
        assert_eq!(end_of(waiting).await, SessionEnd::Gone);
        assert!(nodes.there.stats().near_forgotten > 0, "the channel was lost");
    }
}

#[tokio::test]
async fn channel_that_is_lost_makes_every_watched_session_be_looked_at() {
    let nodes = Nodes::new().await;
    let mut watches = Vec::new();
    for _ in 0..50 {
        let mut session = nodes.here.new_session();
        session.insert("cart", 1).unwrap();
        session.save().await.unwrap();
        watches.push((wait_on(nodes.there.watch(session.stored_key().unwrap(), HOUR)), session));
    }
    nodes.looked().await;
    let before = nodes.there.stats().watch_looks;
    nodes.cache.0.cut_channels();
    let looks_again = async {
        while nodes.there.stats().watch_looks < before + 50 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, looks_again).await.expect("each is looked at");
    nodes.looked().await;
    for (waiting, mut session) in watches {
        assert!(!waiting.is_finished());
        session.flush().await.unwrap();
        assert_eq!(end_of(waiting).await, SessionEnd::Gone);
    }
}

#[tokio::test]
async fn entry_that_comes_and_goes_causes_fewer_and_fewer_looks() {
    let nodes = Nodes::new().await;
    let (mut session, waiting) = nodes.watched().await;
    let (key, before) = (*session.stored_key().unwrap(), nodes.there.stats().watch_looks);
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let Some(entry) = nodes.cache.get(&key).await.unwrap() else { break };
        let State::Value(value) = entry.state else { break };
        let same = Entry::value(Stamp(NonZeroU64::new(fastrand::u64(1..)).unwrap()), value);
        nodes.cache.compare_exchange(&key, Expected::Stamp(entry.stamp), Some(same), HOUR).await.unwrap();
        sleep(Duration::from_millis(5)).await;
    }
    let looks = nodes.there.stats().watch_looks - before;
    assert!((2..15).contains(&looks), "{looks} looks in 3 s");
    session.log_out().await.unwrap();
    assert_eq!(end_of(waiting).await, SessionEnd::Gone);
}

#[tokio::test]
async fn store_is_told_after_the_first_over_its_near_cache_has_closed() {
    let (cache, files) = (SharedCache::default(), tempfile::tempdir().unwrap());
    let url = format!("sqlite://{}", files.path().join("sessions.db").display());
    let here = node(&cache, &url).await;
    let memory = near(MokaCache::builder().build(), cache.clone());
    let mut stores = Vec::new();
    for _ in 0..2 {
        let db = SqlitePersistence::connect(&url).await.unwrap();
        stores.push(CachedDb::builder(memory.clone(), db).reaper(None).build().await.unwrap());
    }
    let (first, second) = (&stores[0], &stores[1]);
    for store in [first, second] {
        let mut session = here.new_session();
        session.insert("cart", 1).unwrap();
        session.save().await.unwrap();
        let waiting = wait_on(store.watch(session.stored_key().unwrap(), HOUR));
        while store.stats().watch_looks == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(300)).await;
        session.log_out().await.unwrap();
        assert_eq!(end_of(waiting).await, SessionEnd::Gone);
        first.close().await;
    }
}
