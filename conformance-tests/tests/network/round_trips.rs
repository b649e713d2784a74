//! The number of round trips of each method, counted on the wire. `docs/backends.md` has the same figures.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use conformance_tests::proxy::Proxy;
use session_cached_db::CachedDb;
use session_core::{
    Cache as _, Entry, Expected, KeyForm, KeyPrefix, Persistence as _, Record, RecordWrite, Rotations as _,
    SessionKey, Stamp, StoreId, StoredKey, Subject, SubjectIndex as _, Timestamp, Value,
};

use crate::{Link, Links};

const MINUTE: Duration = Duration::from_secs(60);

fn key() -> StoredKey {
    StoredKey::derive(&SessionKey::generate().unwrap(), KeyForm::Hashed, &KeyPrefix::NONE).unwrap()
}

fn stamp() -> Stamp {
    Stamp(NonZeroU64::new(fastrand::u64(1..)).unwrap())
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

fn record() -> Record {
    Record::new(Bytes::from_static(b"1{\"n\":1}"), now(), now() + 10 * MINUTE)
        .with_subject(Some(Subject::parse("user-42").unwrap()))
}

/// Returns the round trips that `work` takes.
async fn taken<T>(proxy: &Proxy, work: impl Future<Output = T>) -> (T, u64) {
    let before = proxy.round_trips();
    let done = work.await;
    (done, proxy.round_trips() - before)
}

/// The checks of a database's connection: the first call after a second makes one, which takes a round trip.
struct Checks {
    /// The last check was made after this.
    last: Instant,
    /// The call that is noted next began after this.
    called_at: Instant,
}

impl Checks {
    /// Begins when the connection is opened.
    fn begin() -> Self {
        Self { last: Instant::now(), called_at: Instant::now() }
    }

    /// Returns the round trips of a call that has just ended, without that of a check that was due.
    fn without_one_that_was_due(&mut self, taken: u64, expected: u64) -> u64 {
        const INTERVAL: Duration = Duration::from_secs(1);
        let called_at = std::mem::replace(&mut self.called_at, Instant::now());
        if taken != expected + 1 || self.last.elapsed() < INTERVAL {
            return taken;
        }
        self.last = called_at;
        expected
    }
}

/// The round trips of each method, and the expected number.
#[derive(Default)]
struct Figures(Vec<(&'static str, u64, u64)>);

impl Figures {
    fn add(&mut self, method: &'static str, taken: u64, expected: u64) {
        self.0.push((method, taken, expected));
    }

    fn check(self) {
        let wrong: Vec<_> = self.0.iter().filter(|(_, taken, expected)| taken != expected).collect();
        assert!(wrong.is_empty(), "(method, taken, expected): {wrong:?}");
    }
}

/// Counts the round trips of each method of the cache, once it is connected.
struct CacheFigures {
    get: u64,
    acquire_a_vacant_key: u64,
    acquire_what_is_there: u64,
    exchange: u64,
    exchange_that_is_lost: u64,
}

async fn cache(link: &Link, expected: &CacheFigures) {
    let cache = cache_backends::connect(&link.url).unwrap();
    let entry =
        || Entry::value(stamp(), Value { record: Arc::new(record()), made_at: now(), store: StoreId(1) });
    // The second time, the connections are made and the scripts are loaded.
    for is_warm in [false, true] {
        let (here, key, mut figures) = (&link.proxy, key(), Figures::default());
        let (found, trips) = taken(here, cache.get(&key)).await;
        assert_eq!(found.unwrap(), None);
        figures.add("get of nothing", trips, expected.get);
        let lease = Entry::lease(stamp());
        let (_, trips) = taken(here, cache.acquire(&key, lease.clone(), MINUTE)).await;
        figures.add("acquire of a vacant key", trips, expected.acquire_a_vacant_key);
        let replaced = cache.compare_exchange(&key, Expected::Stamp(lease.stamp), Some(entry()), MINUTE);
        let (_, trips) = taken(here, replaced).await;
        figures.add("compare_exchange", trips, expected.exchange);
        let (found, trips) = taken(here, cache.get(&key)).await;
        assert!(found.unwrap().is_some());
        figures.add("get", trips, expected.get);
        let (_, trips) = taken(here, cache.acquire(&key, Entry::lease(stamp()), MINUTE)).await;
        figures.add("acquire of what is there", trips, expected.acquire_what_is_there);
        let lost = cache.compare_exchange(&key, Expected::Vacant, Some(entry()), MINUTE);
        let (_, trips) = taken(here, lost).await;
        figures.add("compare_exchange that is lost", trips, expected.exchange_that_is_lost);
        if is_warm {
            figures.check();
        }
    }
}

const REDIS: CacheFigures = CacheFigures {
    get: 1,
    acquire_a_vacant_key: 1,
    acquire_what_is_there: 1,
    exchange: 1,
    exchange_that_is_lost: 1,
};

pub async fn redis(links: &Links) {
    cache(links.only(), &REDIS).await;
}

pub async fn valkey(links: &Links) {
    cache(links.only(), &REDIS).await;
}

pub async fn memcached(links: &Links) {
    // The server reports that an exchange is lost, but not to which entry.
    cache(links.only(), &CacheFigures { exchange_that_is_lost: 2, ..REDIS }).await;
}

/// Counts the round trips of each method of the database, once it is connected and its statements are
/// prepared.
struct DatabaseFigures {
    update: u64,
    rename: u64,
    delete_all: u64,
    /// The round trips when nothing has expired.
    delete_expired: u64,
    /// The same where there is no table of notes, which is looked for once in a round.
    delete_expired_without_notes: u64,
    /// A later batch of such a round, which deletes a session.
    next_batch_without_notes: u64,
}

async fn database(link: &Link, expected: &DatabaseFigures) {
    let db = db_backends::connect(&format!("{}?max_connections=1", link.url)).await.unwrap();
    let mut checks = Checks::begin();
    db.migrate().await.unwrap();
    for is_warm in [false, true] {
        let (here, key, other, mut figures) = (&link.proxy, key(), key(), Figures::default());
        let mut add = |method: &'static str, taken: u64, expected: u64| {
            figures.add(method, checks.without_one_that_was_due(taken, expected), expected);
        };
        let (version, trips) = taken(here, db.insert(&key, &record())).await;
        add("insert", trips, 1);
        let (_, trips) = taken(here, db.load(&key, now())).await;
        add("load", trips, 1);
        let changed = record();
        let update = db.update(&key, RecordWrite::new(&changed).with_expected(version.unwrap()), now());
        let (version, trips) = taken(here, update).await;
        add("update", trips, expected.update);
        let (touched, trips) = taken(here, db.touch(&key, now() + 20 * MINUTE, Timestamp::MAX, now())).await;
        assert!(touched.unwrap());
        add("touch", trips, 1);
        let not_due = db.touch(&key, now() + 20 * MINUTE, Timestamp::from_secs(0), now());
        let (touched, trips) = taken(here, not_due).await;
        assert!(!touched.unwrap());
        add("touch that is not due", trips, 2);
        let rename =
            db.rename(&key, &other, RecordWrite::new(&changed).with_expected(version.unwrap()), now());
        let (renamed, trips) = taken(here, rename).await;
        renamed.unwrap();
        add("rename", trips, expected.rename);
        let subject = Subject::parse("user-42").unwrap();
        let (listed, trips) = taken(here, db.list_by_subject(&subject, now(), None, 10)).await;
        assert_eq!(listed.unwrap().len(), 1);
        add("list_by_subject", trips, 1);
        let (clock, trips) = taken(here, db.now()).await;
        clock.unwrap();
        add("now", trips, 1);
        let (deleted, trips) = taken(here, db.delete(&other)).await;
        assert!(deleted.unwrap());
        add("delete", trips, 1);
        for key in [key, other] {
            db.insert(&key, &record()).await.unwrap();
        }
        let (deleted, trips) = taken(here, db.delete_all(&[key, other])).await;
        assert_eq!(deleted.unwrap().len(), 2);
        add("delete_all", trips, expected.delete_all);
        let (_, trips) = taken(here, db.delete_expired(now(), 100)).await;
        add("delete_expired without notes", trips, expected.delete_expired_without_notes);
        for key in [key, other] {
            db.insert(&key, &record().with_expires_at(now())).await.unwrap();
        }
        let first = db.delete_expired(now(), 1).await.unwrap();
        assert!(first.is_unfinished(1));
        let (_, trips) = taken(here, db.delete_expired(now(), 1)).await;
        add("the next batch without notes", trips, expected.next_batch_without_notes);
        assert!(!db.delete_expired(now(), 1).await.unwrap().is_unfinished(1), "the round has ended");
        if is_warm {
            figures.check();
        }
    }
    db.migrate_rotations().await.unwrap();
    for is_warm in [false, true] {
        let mut figures = Figures::default();
        let (_, trips) = taken(&link.proxy, db.delete_expired(now(), 100)).await;
        let trips = checks.without_one_that_was_due(trips, expected.delete_expired);
        figures.add("delete_expired", trips, expected.delete_expired);
        if is_warm {
            figures.check();
        }
    }
}

const POSTGRES: DatabaseFigures = DatabaseFigures {
    update: 1,
    rename: 1,
    delete_all: 1,
    delete_expired: 2,
    delete_expired_without_notes: 5,
    next_batch_without_notes: 1,
};

const MYSQL: DatabaseFigures = DatabaseFigures {
    update: 1,
    rename: 1,
    // The rows are looked for and locked, because MySQL does not return what it deletes.
    delete_all: 4,
    delete_expired: 4,
    delete_expired_without_notes: 6,
    next_batch_without_notes: 4,
};

pub async fn postgres(links: &Links) {
    database(links.only(), &POSTGRES).await;
}

pub async fn mysql(links: &Links) {
    database(links.only(), &MYSQL).await;
}

pub async fn mariadb(links: &Links) {
    database(links.only(), &MYSQL).await;
}

/// Round trips to the cache, and to the database.
type Both = (u64, u64);

/// Counts the round trips of each operation of a store, once it is warm. `save_unseen` is a save when the
/// cache holds another entry than the writer has seen.
async fn store(cache: &Link, database: &Link, save_unseen: Both) {
    let (hit, miss, create, save, rename) = ((1, 0), (2, 1), (2, 1), (2, 1), (4, 1));
    let db = db_backends::connect(&format!("{}?max_connections=1", database.url)).await.unwrap();
    let store = CachedDb::builder(cache_backends::connect(&cache.url).unwrap(), db)
        .reaper(None)
        // A late answer is no outage here.
        .cache_timeout(Duration::from_secs(5))
        .touch_interval(Duration::ZERO)
        .build()
        .await
        .unwrap();
    let mut checks = Checks::begin();
    for is_warm in [false, true] {
        let mut last = (cache.proxy.round_trips(), database.proxy.round_trips());
        let mut figures = Vec::new();
        let mut note = |what: &'static str, expected: Both| {
            let now = (cache.proxy.round_trips(), database.proxy.round_trips());
            let of_database = checks.without_one_that_was_due(now.1 - last.1, expected.1);
            figures.push((what, (now.0 - last.0, of_database), expected));
            last = now;
        };
        let mut session = store.new_session();
        session.insert("n", 1).unwrap();
        session.save().await.unwrap();
        note("create", create);
        session.insert("n", 2).unwrap();
        session.save().await.unwrap();
        note("save", save);
        session.cycle_key().await.unwrap();
        note("rename", rename);
        let cookie = session.key().unwrap().expose().to_owned();
        let mut found = store.open(&cookie).await.unwrap();
        assert_eq!(found.get::<i32>("n").unwrap(), Some(2));
        note("load, a hit", hit);
        found.touch().await.unwrap();
        note("touch", save);
        assert_eq!(store.open(&cookie).await.unwrap().get::<i32>("n").unwrap(), Some(2));
        note("load, a miss", miss);
        // Another request has replaced the entry since.
        session.insert("n", 3).unwrap();
        session.save().await.unwrap();
        note("save of what was touched elsewhere", save_unseen);
        session.flush().await.unwrap();
        note("delete", save);
        let wrong: Vec<_> = figures.iter().filter(|(_, taken, expected)| taken != expected).collect();
        assert!(!is_warm || wrong.is_empty(), "(operation, (cache, database) taken, expected): {wrong:?}");
    }
}

pub async fn round_trips_of_a_store_on_redis_and_postgres(links: &Links) {
    store(links.get("redis"), links.get("postgres"), (3, 1)).await;
}

pub async fn round_trips_of_a_store_on_memcached_and_mysql(links: &Links) {
    // A lost exchange takes two round trips.
    store(links.get("memcached"), links.get("mysql"), (4, 1)).await;
}
