//! Memory alone over Postgres, which tells each node of the others' writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cache_backends::moka::MokaCache;
use cache_backends::near::{NotifiedCache, notified};
use conformance_tests::proxy::{Mode, Proxy};
use db_backends::connect;
use db_backends::postgres::PostgresPersistence;
use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use db_backends::sqlx::{Connection as _, Row as _, raw_sql};
use session_cached_db::{BuildError, CachedDb};
use session_core::bytes::Bytes;
use session_core::{Outcome, Persistence as _, Record, RecordWrite, StoredKey, Timestamp};
use tokio::time::sleep;

use crate::near::{BOUND, Ignored, REST, ends_of_watched_sessions_are_told, login, open, read, warm, write};
use crate::pair::{Kind, Pair, UNCHECKED};
use crate::pgbouncer::{self, PgBouncer};
use crate::{Link, Links, address};

type Store = CachedDb<NotifiedCache, PostgresPersistence>;

/// Two nodes of one application. The second one listens through a proxy, and reads and writes around it.
struct Nodes {
    here: Store,
    there: Store,
    proxy: Proxy,
}

impl Nodes {
    async fn before(link: &Link) -> Self {
        let here = node(PostgresPersistence::connect(&link.direct).await.unwrap()).await;
        let pool = pool_beside_the_proxy(link).await;
        let there = PostgresPersistence::builder().behind_pooler(false).on_pool(pool).unwrap();
        Self { here, there: node(there).await, proxy: link.proxy.clone() }
    }
}

/// Opens all connections of a pool directly. Any other that is opened with its options goes through the proxy.
async fn pool_beside_the_proxy(link: &Link) -> PgPool {
    let direct: PgConnectOptions = link.direct.parse().unwrap();
    let count = 3;
    let options = PgPoolOptions::new().min_connections(count).max_connections(count);
    let pool = options.idle_timeout(None).max_lifetime(None).connect_with(direct).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(pool.acquire().await.unwrap());
    }
    drop(open);
    pool.set_connect_options(link.url.parse().unwrap());
    pool
}

async fn node(db: PostgresPersistence) -> Store {
    let cache = notified(MokaCache::builder().build()).with_freshness_bound(BOUND);
    CachedDb::builder(cache, db).reaper(None).build().await.unwrap()
}

pub async fn memory_told_by_postgres_answers_without_a_read(links: &Links) {
    let nodes = Nodes::before(links.only()).await;
    let cookie = login(&nodes.here).await;
    warm(&nodes.there, &cookie, 0).await;
    let (before, hits) = (nodes.there.stats(), 20);
    for _ in 0..hits {
        assert_eq!(read(&nodes.there, &cookie).await, Some(0));
    }
    let after = nodes.there.stats();
    assert!(after.near_hits - before.near_hits >= hits - 2, "{before:?} {after:?}");
    // A node keeps its own writes.
    warm(&nodes.here, &cookie, 0).await;
    for n in 1..=20 {
        write(&nodes.here, &cookie, n).await;
        assert_eq!(read(&nodes.here, &cookie).await, Some(n));
    }
    let stats = nodes.here.stats();
    assert!(stats.near_hits >= 30, "a node forgets its own writes: {stats:?}");
}

pub async fn writes_are_seen_at_once_here_and_within_the_bound_elsewhere(links: &Links) {
    let nodes = Nodes::before(links.only()).await;
    let cookie = login(&nodes.here).await;
    for n in (2..=40).step_by(2) {
        warm(&nodes.here, &cookie, n - 2).await;
        warm(&nodes.there, &cookie, n - 2).await;
        // The two take turns.
        let (writer, reader) =
            if n % 4 == 0 { (&nodes.there, &nodes.here) } else { (&nodes.here, &nodes.there) };
        write(writer, &cookie, n - 1).await;
        assert_eq!(read(writer, &cookie).await, Some(n - 1), "a node does not see its own write");
        sleep(BOUND).await;
        assert_eq!(read(reader, &cookie).await, Some(n - 1), "another node is behind by more than the bound");
        let mut session = open(writer, &cookie).await;
        session.insert("n", n).unwrap();
        session.save_strict().await.unwrap();
        assert_eq!(read(reader, &cookie).await, Some(n), "a strict save is final");
    }
}

pub async fn logout_is_final_whatever_the_listening_connection_does(links: &Links) {
    let nodes = Nodes::before(links.only()).await;
    for mode in [Mode::Pass, Mode::Hold, Mode::Deaf, Mode::BlackHole, Mode::Reset, Mode::Delay(BOUND * 2)] {
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
            let shown = read(&nodes.there, &cookie).await;
            assert_eq!(shown, None, "a session that was ended is shown, with {mode:?}");
        }
        nodes.proxy.set(Mode::Pass);
    }
}

pub async fn end_of_a_watched_session_is_told_by_postgres(links: &Links) {
    let nodes = Nodes::before(links.only()).await;
    ends_of_watched_sessions_are_told(&nodes.here, &nodes.there, &nodes.proxy).await;
}

/// Each listening connection is ended by the server, and a change is made before the next one is open.
pub async fn memory_is_forgotten_with_its_listening_connection(links: &Links) {
    let link = links.only();
    let nodes = Nodes::before(link).await;
    let cookie = login(&nodes.here).await;
    let mut admin = PgConnection::connect(&link.direct).await.unwrap();
    for n in 1..=5 {
        warm(&nodes.here, &cookie, n - 1).await;
        warm(&nodes.there, &cookie, n - 1).await;
        let forgotten = nodes.there.stats().near_forgotten;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE query LIKE 'SELECT pg\\_backend\\_pid(), %' AND pid <> pg_backend_pid()";
        let ended: i64 = raw_sql(end).fetch_one(&mut admin).await.unwrap().get(0);
        assert_eq!(ended, 2, "each node listens on one connection");
        write(&nodes.here, &cookie, n).await;
        sleep(BOUND).await;
        assert_eq!(read(&nodes.there, &cookie).await, Some(n), "memory has outlived its channel");
        warm(&nodes.there, &cookie, n).await;
        assert!(nodes.there.stats().near_forgotten > forgotten);
    }
}

/// The standby is promoted, and the address leads to it. What is then committed by one node is seen by the other.
pub async fn first_commit_after_a_failover_is_shown_within_the_bound(links: &Links) {
    let pair = Pair::new(Kind::Postgres, &links.only().direct).await;
    let here = node(PostgresPersistence::connect(&pair.url).await.unwrap()).await;
    let there = node(PostgresPersistence::connect(&pair.url).await.unwrap()).await;
    let cookie = login(&here).await;
    warm(&there, &cookie, 0).await;
    pair.depose().await;
    sleep(UNCHECKED).await;
    pair.catch_up().await;
    pair.promote().await;
    pair.switch();
    let begun = Instant::now();
    while !try_to_write(&here, &cookie, 1).await {
        assert!(begun.elapsed() < Duration::from_secs(30), "writes still fail");
        sleep(Duration::from_millis(20)).await;
    }
    sleep(BOUND).await;
    let begun = Instant::now();
    let shown = loop {
        if let Ok(session) = there.open(&cookie).await {
            break session.get::<u32>("n").unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "reads still fail");
    };
    assert_eq!(shown, Some(1), "what the new primary has committed is not shown");
    warm(&there, &cookie, 1).await;
}

async fn try_to_write(store: &Store, cookie: &str, n: u32) -> bool {
    let Ok(mut session) = store.open(cookie).await else { return false };
    session.insert("n", n).unwrap();
    session.save().await.is_ok()
}

/// Databases that report nothing, and bounds that mean nothing, are refused when the store is built.
pub async fn memory_that_no_database_tells_is_refused_at_build(links: &Links) {
    let url = &links.only().direct;
    let memory = || notified(MokaCache::builder().build());
    let refusal = |refused: BuildError| match refused {
        BuildError::Invalid(reason) => reason,
        other => panic!("{other}"),
    };
    let sqlite = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    let refused = refusal(CachedDb::builder(memory(), sqlite).build().await.unwrap_err());
    assert!(refused.contains("SQLite") && refused.contains("as Postgres can"), "{refused}");
    for bound in [Duration::ZERO, Duration::from_millis(19), Duration::from_secs(301)] {
        let db = PostgresPersistence::connect(url).await.unwrap();
        let cache = memory().with_freshness_bound(bound);
        let refused = refusal(CachedDb::builder(cache, db).build().await.unwrap_err());
        assert!(refused.contains("freshness bound"), "{refused}");
    }
    // A commit may wait for others that notify for as long as for any lock.
    let waits =
        PostgresPersistence::builder().lock_timeout(Duration::from_secs(15)).connect(url).await.unwrap();
    let refused = refusal(CachedDb::builder(memory(), waits).build().await.unwrap_err());
    assert!(refused.contains("fence_ttl"), "{refused}");
    let shared = memory();
    let first = PostgresPersistence::connect(url).await.unwrap();
    let _first = CachedDb::builder(shared.clone(), first).build().await.unwrap();
    let second = PostgresPersistence::connect(url).await.unwrap();
    let refused = refusal(CachedDb::builder(shared, second).build().await.unwrap_err());
    assert!(refused.contains("another store's"), "{refused}");
    let by_url =
        cache_backends::connect("notified+moka://?freshness_bound_ms=400&max_bytes=1000000").unwrap();
    let db = connect(url).await.unwrap();
    let store = CachedDb::builder(by_url, db).build().await.unwrap();
    let cookie = login(&store).await;
    warm(&store, &cookie, 0).await;
}

/// Both builds have looked at the memory before one of them takes it.
pub async fn memory_that_two_builds_want_at_once_is_one_stores(links: &Links) {
    let url = &links.only().direct;
    let memory = notified(MokaCache::builder().build()).with_freshness_bound(BOUND);
    let builder = async || {
        let db = PostgresPersistence::connect(url).await.unwrap();
        CachedDb::builder(memory.clone(), db)
    };
    let (one, other) = (builder().await, builder().await);
    let built = tokio::join!(one.build(), other.build());
    let (store, refused) = match built {
        (Ok(store), Err(refused)) | (Err(refused), Ok(store)) => (store, refused),
        (first, second) => panic!("built: {}, {}", first.is_ok(), second.is_ok()),
    };
    assert!(
        matches!(&refused, BuildError::Invalid(reason) if reason.contains("another store's")),
        "{refused}"
    );
    let cookie = login(&store).await;
    warm(&store, &cookie, 0).await;
    // The store that was refused has left nothing behind that keeps the memory in use.
    store.close().await;
    let db = PostgresPersistence::connect(url).await.unwrap();
    let next = CachedDb::builder(memory, db).build().await.unwrap();
    warm(&next, &cookie, 0).await;
}

/// The pooler accepts `LISTEN`, and passes nothing on. What the node behind it writes is reported all the same.
pub async fn pooler_that_swallows_listen_costs_memory_and_no_session(links: &Links) {
    let direct = &links.get("postgres").direct;
    let pooler = PgBouncer::before(direct, pgbouncer::Mode::Transaction, 4, &[]).await;
    let through = direct.replace(&address(direct).to_string(), &pooler.address);
    let here = node(PostgresPersistence::connect(&through).await.unwrap()).await;
    let there = node(PostgresPersistence::connect(direct).await.unwrap()).await;
    let cookie = login(&here).await;
    warm(&there, &cookie, 0).await;
    for _ in 0..10 {
        assert_eq!(read(&here, &cookie).await, Some(0));
    }
    let stats = here.stats();
    assert!(stats.near_hits == 0 && stats.bypasses >= 10, "{stats:?}");
    write(&here, &cookie, 1).await;
    sleep(BOUND).await;
    assert_eq!(read(&there, &cookie).await, Some(1));
    open(&here, &cookie).await.flush().await.unwrap();
    assert_eq!(read(&there, &cookie).await, None);
}

/// Every role that may connect to the database can notify.
pub async fn notifications_of_strangers_are_counted_and_forget_nothing(links: &Links) {
    let nodes = Nodes::before(links.only()).await;
    let cookie = login(&nodes.here).await;
    warm(&nodes.there, &cookie, 0).await;
    let mut stranger = PgConnection::connect(&links.only().direct).await.unwrap();
    let before = nodes.there.stats();
    for _ in 0..100 {
        raw_sql("NOTIFY notices_sessions, 'a strange thing: ü'").execute(&mut stranger).await.unwrap();
    }
    let begun = Instant::now();
    while nodes.there.stats().near_ignored < before.near_ignored + 100 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", nodes.there.stats());
        sleep(Duration::from_millis(20)).await;
    }
    warm(&nodes.there, &cookie, 0).await;
    assert_eq!(nodes.there.stats().near_forgotten, before.near_forgotten);
    write(&nodes.here, &cookie, 1).await;
    sleep(BOUND).await;
    assert_eq!(read(&nodes.there, &cookie).await, Some(1));
}

/// Returns the number of connections that listen.
async fn listening(admin: &mut PgConnection) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity
                 WHERE query LIKE 'SELECT pg\\_backend\\_pid(), %' AND pid <> pg_backend_pid()";
    raw_sql(count).fetch_one(admin).await.unwrap().get(0)
}

/// Another store can be built over the same handle at once, while handles to the closed ones are still there.
pub async fn closed_store_listens_no_more_and_its_handle_is_free(links: &Links) {
    let url = &links.only().direct;
    let (db, mut closed) = (connect(url).await.unwrap(), Vec::new());
    let mut admin = PgConnection::connect(url).await.unwrap();
    let cache = notified(MokaCache::builder().build()).with_freshness_bound(BOUND);
    for round in 0..3 {
        // The same memory, too, but for the last one.
        let cache = if round < 2 {
            cache.clone()
        } else {
            notified(MokaCache::builder().build()).with_freshness_bound(BOUND)
        };
        let store = CachedDb::builder(cache, Arc::clone(&db)).reaper(None).build().await.unwrap();
        let cookie = login(&store).await;
        warm(&store, &cookie, 0).await;
        // The server may still list that of the store before.
        let begun = Instant::now();
        while listening(&mut admin).await != 1 {
            assert!(begun.elapsed() < Duration::from_secs(10), "one connection listens");
            sleep(Duration::from_millis(20)).await;
        }
        store.close().await;
        let hits = store.stats().near_hits;
        assert_eq!(read(&store, &cookie).await, Some(0), "a closed store still reads");
        assert_eq!(store.stats().near_hits, hits, "memory answers that is told nothing");
        closed.push(store);
    }
    let begun = Instant::now();
    while listening(&mut admin).await > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "a closed store listens");
        sleep(Duration::from_millis(20)).await;
    }
}

fn record() -> Record {
    Record::new(Bytes::from_static(b"1{}"), Timestamp::from_secs(1), Timestamp::MAX)
}

/// `statement_timeout` does not hold at a commit. What ends its wait for the lock of NOTIFY is `lock_timeout`.
pub async fn commit_that_waits_for_others_to_notify_ends_within_its_bound(links: &Links) {
    let pair = Pair::new(Kind::Postgres, &links.only().direct).await;
    let builder = PostgresPersistence::builder().statement_timeout(Duration::from_secs(1));
    let db = builder.lock_timeout(Duration::from_secs(8)).connect(&pair.admin_url(0)).await.unwrap();
    db.migrate().await.unwrap();
    drop(db.notify().unwrap());
    let key = StoredKey::parse("a").unwrap();
    db.insert(&key, &record()).await.unwrap();
    pair.be_synchronous().await;
    pair.fall_behind().await;
    // A commit that waits for the standby holds the lock meanwhile.
    let mut blocker = PgConnection::connect(&pair.admin_url(0)).await.unwrap();
    let holding = "CREATE TABLE notifies (); NOTIFY anything";
    let holding = tokio::spawn(async move { raw_sql(holding).execute(&mut blocker).await.map(drop) });
    let waits = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    while pair.ask(0, waits).await != "1" {
        sleep(Duration::from_millis(20)).await;
    }
    let begun = Instant::now();
    let refused = db.update(&key, RecordWrite::new(&record()), Timestamp::from_secs(2)).await.unwrap_err();
    let took = begun.elapsed();
    assert_eq!(refused.outcome(), Outcome::NotApplied, "{refused}");
    assert!(took > Duration::from_secs(7), "it did not wait for the lock: {took:?}, {refused}");
    let bound = db.properties().statement_bound;
    assert!(took < bound, "it took {took:?}, and the bound is {bound:?}");
    holding.abort();
}

/// The former primary goes on: it answers pings, and hears of nothing that the new one commits.
pub async fn pool_that_leads_to_another_server_ends_the_channel(links: &Links) {
    let pair = Pair::new(Kind::Postgres, &links.only().direct).await;
    let options: PgConnectOptions = pair.url.parse().unwrap();
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let db = PostgresPersistence::builder().behind_pooler(false).on_pool(pool.clone()).unwrap();
    db.migrate().await.unwrap();
    let channel = db.notify().unwrap().open_channel(Arc::new(Ignored)).await.unwrap();
    channel.ping().await.unwrap();
    pair.catch_up().await;
    pair.promote().await;
    pair.switch();
    channel.ping().await.expect("the former primary answers");
    pool.acquire().await.unwrap().close().await.unwrap();
    let begun = Instant::now();
    while let Err(error) = db.load(&StoredKey::parse("a").unwrap(), Timestamp::from_secs(2)).await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
        sleep(Duration::from_millis(20)).await;
    }
    let lost = channel.ping().await.expect_err("the channel leads to the former primary").to_string();
    assert!(lost.contains("another server"), "{lost}");
}
