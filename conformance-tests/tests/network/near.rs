//! Near caches on real servers: two nodes, each with memory and a connection of its own for reports.

mod channels;
mod cluster;

use std::time::{Duration, Instant};

use cache_backends::moka::MokaCache;
use cache_backends::near::{NearCache, near};
use cache_backends::redis::RedisCache;
use cache_backends::redis::driver::Client;
use conformance_tests::proxy::{Mode, Proxy};
use db_backends::sqlite::SqlitePersistence;
use session_cached_db::{BuildError, CachedDb, Session, SessionEnd};
use session_core::bytes::Bytes;
use session_core::{Cache, NoticeListener, Persistence, Record, StoredKey, Timestamp};
use tempfile::TempDir;

use crate::failover::until;
use crate::{Link, Links};

pub use self::channels::{
    closed_store_has_no_channel, failover_by_sentinels_is_another_channel,
    flushed_server_leaves_nothing_in_memory, forbidden_tracking_costs_memory_and_no_session,
    memory_is_forgotten_with_its_channel, server_that_is_made_a_replica_is_a_lost_channel,
    server_that_is_replaced_is_told_apart, server_that_speaks_resp2_only_costs_memory_and_no_session,
};
pub use self::cluster::{
    dead_master_of_a_cluster_costs_memory_and_no_session, memory_over_a_cluster_answers_without_a_round_trip,
    slot_that_moves_is_a_lost_channel, writes_are_seen_in_time_by_nodes_with_near_caches_on_a_cluster,
};

type Store = CachedDb<NearCache<RedisCache>, SqlitePersistence>;

/// The freshness bound: long enough that a busy machine does not make memory stale between two steps of a test.
pub const BOUND: Duration = Duration::from_millis(400);

/// The time that a final operation may take beyond the bound, on a busy machine.
pub const REST: Duration = Duration::from_secs(3);

/// Two nodes of one application. The second one reaches the cache through a proxy.
struct Nodes {
    here: Store,
    there: Store,
    proxy: Proxy,
    files: TempDir,
}

impl Nodes {
    async fn before(link: &Link) -> Self {
        let files = tempfile::tempdir().unwrap();
        let proxy = link.proxy.clone();
        let here = node(&link.direct, &database(&files)).await;
        let there = node(&link.url, &database(&files)).await;
        Self { here, there, proxy, files }
    }
}

fn database(files: &TempDir) -> String {
    format!("sqlite://{}", files.path().join("sessions.db").display())
}

async fn node(cache_url: &str, database: &str) -> Store {
    let redis = RedisCache::builder().url(cache_url).build().unwrap();
    let cache = near(MokaCache::builder().build(), redis).with_freshness_bound(BOUND);
    let db = SqlitePersistence::connect(database).await.unwrap();
    CachedDb::builder(cache, db).reaper(None).cache_timeout(Duration::from_millis(500)).build().await.unwrap()
}

/// Returns a node with a grace after a rotation, whose near cache reaches the server at `cache_url`.
async fn node_with_grace(cache_url: &str, database: &str) -> Store {
    let redis = RedisCache::builder().url(cache_url).build().unwrap();
    let cache = near(MokaCache::builder().build(), redis).with_freshness_bound(BOUND);
    let db = SqlitePersistence::connect(database).await.unwrap();
    let builder = CachedDb::builder(cache, db).reaper(None).cache_timeout(Duration::from_millis(500));
    builder.rotation_grace(Duration::from_secs(60)).build().await.unwrap()
}

pub async fn login<C: Cache, P: Persistence>(store: &CachedDb<C, P>) -> String {
    let mut session = store.new_session();
    session.insert("n", 0).unwrap();
    session.save().await.unwrap();
    session.key().unwrap().expose().to_owned()
}

pub async fn open<C: Cache, P: Persistence>(store: &CachedDb<C, P>, cookie: &str) -> Session {
    store.open(cookie).await.expect("no request fails")
}

pub async fn read<C: Cache, P: Persistence>(store: &CachedDb<C, P>, cookie: &str) -> Option<u32> {
    open(store, cookie).await.get("n").unwrap()
}

pub async fn write<C: Cache, P: Persistence>(store: &CachedDb<C, P>, cookie: &str, n: u32) {
    let mut session = open(store, cookie).await;
    session.insert("n", n).unwrap();
    session.save().await.expect("no request fails");
}

/// Loads the session until memory answers.
pub async fn warm<C: Cache, P: Persistence>(store: &CachedDb<C, P>, cookie: &str, expected: u32) {
    let begun = Instant::now();
    loop {
        let before = store.stats().near_hits;
        assert_eq!(read(store, cookie).await, Some(expected), "an old session was served");
        if store.stats().near_hits > before {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "memory does not answer: {:?}", store.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn memory_answers_without_a_round_trip(link: &Link) {
    let nodes = Nodes::before(link).await;
    let cookie = login(&nodes.there).await;
    warm(&nodes.there, &cookie, 0).await;
    let (before, hits) = (nodes.there.stats(), 20);
    for _ in 0..hits {
        assert_eq!(read(&nodes.there, &cookie).await, Some(0));
    }
    let after = nodes.there.stats();
    assert!(after.near_hits - before.near_hits >= hits - 2, "{before:?} {after:?}");
    assert_eq!(after.misses + after.bypasses, before.misses + before.bypasses);
}

pub async fn memory_over_redis_answers_without_a_round_trip(links: &Links) {
    memory_answers_without_a_round_trip(links.only()).await;
}

pub async fn memory_over_valkey_answers_without_a_round_trip(links: &Links) {
    memory_answers_without_a_round_trip(links.only()).await;
}

async fn writes_are_seen(link: &Link) {
    let nodes = Nodes::before(link).await;
    let cookie = login(&nodes.here).await;
    for n in 1..=20 {
        warm(&nodes.here, &cookie, n - 1).await;
        warm(&nodes.there, &cookie, n - 1).await;
        write(&nodes.here, &cookie, n).await;
        assert_eq!(read(&nodes.here, &cookie).await, Some(n), "a node does not see its own write");
        tokio::time::sleep(BOUND).await;
        assert_eq!(
            read(&nodes.there, &cookie).await,
            Some(n),
            "another node is behind by more than the bound"
        );
        let mut session = open(&nodes.here, &cookie).await;
        session.insert("n", n).unwrap();
        session.save_strict().await.unwrap();
        assert_eq!(read(&nodes.there, &cookie).await, Some(n));
    }
    let mut session = open(&nodes.here, &cookie).await;
    session.insert("n", 99).unwrap();
    session.save_strict().await.unwrap();
    assert_eq!(read(&nodes.there, &cookie).await, Some(99), "a strict save is final");
}

pub async fn writes_are_seen_at_once_here_and_within_the_bound_elsewhere_on_redis(links: &Links) {
    writes_are_seen(links.only()).await;
}

pub async fn writes_are_seen_at_once_here_and_within_the_bound_elsewhere_on_valkey(links: &Links) {
    writes_are_seen(links.only()).await;
}

/// Ends sessions on one node in every way, while the other's channel is in this mode.
async fn logout_is_final(nodes: &Nodes, mode: Mode) {
    for round in 0..3 {
        let cookie = login(&nodes.here).await;
        nodes.proxy.set(Mode::Pass);
        warm(&nodes.there, &cookie, 0).await;
        nodes.proxy.set(mode);
        let begun = Instant::now();
        let mut session = open(&nodes.here, &cookie).await;
        if round == 0 {
            session.cycle_key().await.expect("no request fails");
        } else {
            session.flush().await.expect("no request fails");
        }
        let took = begun.elapsed();
        assert!(took >= BOUND && took < BOUND + REST, "a final operation took {took:?}");
        assert_eq!(
            read(&nodes.there, &cookie).await,
            None,
            "a session that was ended is shown, with {mode:?}"
        );
    }
    nodes.proxy.set(Mode::Pass);
}

async fn logout_is_final_whatever_the_channel_does(link: &Link) {
    let nodes = Nodes::before(link).await;
    for mode in [Mode::Pass, Mode::Hold, Mode::Deaf, Mode::BlackHole, Mode::Reset, Mode::Delay(BOUND * 2)] {
        logout_is_final(&nodes, mode).await;
    }
}

pub async fn logout_is_final_on_redis_whatever_the_channel_does(links: &Links) {
    logout_is_final_whatever_the_channel_does(links.only()).await;
}

pub async fn logout_is_final_on_valkey_whatever_the_channel_does(links: &Links) {
    logout_is_final_whatever_the_channel_does(links.only()).await;
}

/// A node that finds nothing to revoke, because another one has just ended the sessions, answers when no node shows them.
pub async fn second_revocation_of_a_subject_waits_for_all_nodes(links: &Links) {
    let link = links.only();
    let nodes = Nodes::before(link).await;
    let third = node(&link.direct, &database(&nodes.files)).await;
    for _ in 0..3 {
        let mut session = nodes.here.new_session();
        session.insert("n", 0).unwrap();
        session.log_in("ada").await.unwrap();
        let cookie = session.key().unwrap().expose().to_owned();
        nodes.proxy.set(Mode::Pass);
        warm(&nodes.there, &cookie, 0).await;
        // The node that has the session in memory hears nothing of what follows.
        nodes.proxy.set(Mode::Hold);
        let here = nodes.here.clone();
        let first = tokio::spawn(async move { here.revoke_subject("ada").await });
        until("the row is gone", async || third.list_by_subject("ada").await.unwrap().is_empty()).await;
        let second = third.revoke_subject("ada").await.unwrap();
        assert_eq!(second.value, 0, "the other node has ended it");
        assert_eq!(read(&nodes.there, &cookie).await, None, "a session that was ended is shown");
        assert_eq!(first.await.unwrap().unwrap().value, 1);
    }
}

/// Watches sessions there, for an hour at a time, and ends them here: only reports can tell.
pub async fn ends_of_watched_sessions_are_told<C: Cache, P: Persistence>(
    here: &CachedDb<C, P>,
    there: &CachedDb<C, P>,
    proxy: &Proxy,
) {
    for mode in [Mode::Pass, Mode::Hold, Mode::Deaf, Mode::BlackHole, Mode::Reset, Mode::Delay(BOUND * 2)] {
        proxy.set(Mode::Pass);
        let cookie = login(here).await;
        warm(there, &cookie, 0).await;
        let mut session = open(here, &cookie).await;
        let mut watch = there.watch(session.stored_key().unwrap(), Duration::from_secs(60 * 60));
        let looks = there.stats().watch_looks;
        let mut waiting = tokio::spawn(async move { watch.ended().await });
        while there.stats().watch_looks == looks {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        write(here, &cookie, 1).await;
        assert!(tokio::time::timeout(BOUND, &mut waiting).await.is_err(), "a save ends nothing");
        proxy.set(mode);
        session.flush().await.expect("no request fails");
        if mode != Mode::Pass {
            // What the channel has missed is found out when there is another one.
            tokio::time::sleep(BOUND).await;
            proxy.set(Mode::Pass);
        }
        let ended = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        let ended = ended.unwrap_or_else(|_| panic!("the end is not told, with {mode:?}")).unwrap();
        assert_eq!(ended, SessionEnd::Gone);
    }
}

pub async fn end_of_a_watched_session_is_told_on_the_other_node_of_redis(links: &Links) {
    let nodes = Nodes::before(links.only()).await;
    ends_of_watched_sessions_are_told(&nodes.here, &nodes.there, &nodes.proxy).await;
}

pub async fn end_of_a_watched_session_is_told_on_the_other_node_of_valkey(links: &Links) {
    let nodes = Nodes::before(links.only()).await;
    ends_of_watched_sessions_are_told(&nodes.here, &nodes.there, &nodes.proxy).await;
}

/// Settings and servers that cannot have a near cache are refused when the store is built.
pub async fn near_cache_that_cannot_be_told_is_refused_at_build(links: &Links) {
    let url = &links.only().direct;
    let db = || SqlitePersistence::connect("sqlite::memory:");
    let memory = || MokaCache::builder().build();
    let redis = || RedisCache::builder().url(url).build().unwrap();
    for bound in [Duration::ZERO, Duration::from_millis(19), Duration::from_secs(301)] {
        let cache = near(memory(), redis()).with_freshness_bound(bound);
        let refused = CachedDb::builder(cache, db().await.unwrap()).build().await.unwrap_err();
        assert!(
            matches!(&refused, BuildError::Invalid(reason) if reason.contains("freshness bound")),
            "{refused}"
        );
    }
    let client = Client::open(&**url).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let own = RedisCache::builder().connection(connection).build().unwrap();
    let refused = CachedDb::builder(near(memory(), own), db().await.unwrap()).build().await.unwrap_err();
    assert!(matches!(&refused, BuildError::Invalid(reason) if reason.contains("by a URL")), "{refused}");
    let by_url =
        cache_backends::connect(&format!("near+{url}?freshness_bound_ms=400&max_bytes=1000000")).unwrap();
    CachedDb::builder(by_url, db().await.unwrap()).build().await.unwrap();
}

/// A client that is led to the new key while another node renews it goes on to a node that has not heard of the rotation.
pub async fn old_key_shows_no_past_once_a_client_has_the_new_one(links: &Links) {
    let link = links.only();
    let files = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", files.path().join("sessions.db").display());
    let here = node_with_grace(&link.direct, &database).await;
    let between = node_with_grace(&link.direct, &database).await;
    let there = node_with_grace(&link.url, &database).await;
    let cookie = login(&here).await;
    warm(&there, &cookie, 0).await;
    let mut renewing = open(&here, &cookie).await;
    link.proxy.set(Mode::Hold);
    let renewal = tokio::spawn(async move { renewing.renew_key().await.map(|_| renewing) });
    let new = loop {
        let session = open(&between, &cookie).await;
        if session.key().unwrap().expose() != cookie {
            break session.key().unwrap().expose().to_owned();
        }
    };
    // From here on the client may do anything with the new key, on any node.
    let hits = there.stats().near_hits;
    let shown = open(&there, &cookie).await;
    assert_eq!(there.stats().near_hits, hits, "memory has shown the session under its old key");
    assert_eq!(shown.key().unwrap().expose(), new);
    link.proxy.set(Mode::Pass);
    let renewed = renewal.await.unwrap().unwrap();
    assert_eq!(renewed.key().unwrap().expose(), new);
}

pub async fn memory_over_tls_answers_without_a_round_trip(links: &Links) {
    memory_answers_without_a_round_trip(links.only()).await;
}

/// Loads the session several times, and checks that memory is not asked.
async fn memory_does_not_answer(store: &Store, cookie: &str, expected: Option<u32>) {
    let before = store.stats().near_hits;
    for _ in 0..10 {
        assert_eq!(read(store, cookie).await, expected, "an old session was served");
    }
    assert_eq!(store.stats().near_hits, before, "memory has answered");
}

/// A listener with nothing in memory.
#[derive(Debug)]
pub(crate) struct Ignored;

impl NoticeListener for Ignored {
    fn changed(&self, _: &StoredKey) {}

    fn all_changed(&self) {}
}

pub async fn sweep_waits_for_other_nodes_side_by_side(links: &Links) {
    let link = links.only();
    let files = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", files.path().join("sessions.db").display());
    let db = SqlitePersistence::connect(&database).await.unwrap();
    db.migrate().await.unwrap();
    let record = Record::new(Bytes::from_static(b"1{}"), Timestamp::from_secs(1), Timestamp::MAX);
    let count = 20_u32;
    for n in 0..count {
        db.insert(&StoredKey::parse(&format!("{n:a>32}")).unwrap(), &record).await.unwrap();
    }
    let redis = RedisCache::builder().url(&link.direct).build().unwrap();
    let cache = near(MokaCache::builder().build(), redis).with_freshness_bound(BOUND);
    let hashing = CachedDb::builder(cache, db).reaper(None).accept_plain_keys().build().await.unwrap();
    let begun = Instant::now();
    let page = hashing.hash_plain_keys(None, 500).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(page.written, u64::from(count), "{page:?}");
    assert!(took >= BOUND && took < BOUND * count / 2, "the sweep took {took:?}");
}
