//! Misses and saves, against the bare statement and its two cache calls, each measured alone.

use std::hint::black_box;
use std::str::FromStr as _;
use std::time::{Duration, SystemTime};

use db_backends::sqlx;
use db_backends::sqlx::mysql::MySqlPoolOptions;
use db_backends::sqlx::postgres::PgPoolOptions;
use db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use session_cached_db::session_core::{
    Acquired, Cache as _, Codec as _, Entry, Exchange, Expected, Fence, Holder, JsonCodec, Persistence,
    Record, Stamp, StoreId, StoredKey, Timestamp, Token, Value, Version,
};
use session_cached_db::{
    CachedDb, Coherence, MokaCache, MySqlPersistence, PostgresPersistence, SqlitePersistence,
};

use crate::Effort;
use crate::figure::{Aim, Report, Times, crowd};
use crate::raw::{Pools, Raw};
use crate::sessions::{SESSIONS, Stored, create, data, moka};

const TABLE: &str = "bench_sessions";
const DROP: &str = "DROP TABLE IF EXISTS bench_sessions, bench_sessions_schema";

/// A function that connects another database on the same table.
type Connect<P> = Box<dyn Fn() -> BoxFuture<'static, P> + Send + Sync>;

/// Number of connections on each side: the store's own default.
const CONNECTIONS: u32 = 10;
const SQLITE_READERS: u32 = 4;

pub(crate) async fn measure(name: &'static str, effort: Effort, report: &mut Report) {
    if name == "sqlite" {
        return sqlite(effort, report).await;
    }
    let variable = format!("CONFORMANCE_{}_URL", name.to_uppercase());
    let Ok(url) = std::env::var(&variable) else {
        return report.skip(&format!("miss.{name}, save.{name}"), &format!("{variable} is not set"));
    };
    if name == "postgres" {
        postgres(&url, effort, report).await;
    } else {
        mysql(name, &url, effort, report).await;
    }
}

async fn sqlite(effort: Effort, report: &mut Report) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/bench.db", dir.path().display());
    let path = url.clone();
    let db = move || {
        let url = path.clone();
        async move { SqlitePersistence::builder().table(TABLE).connect(&url).await.unwrap() }.boxed()
    };
    let first = db().await;
    // Use the durability of the store's own connections.
    let options = SqliteConnectOptions::from_str(&url).unwrap().synchronous(SqliteSynchronous::Normal);
    let pool = |connections| {
        let pool = SqlitePoolOptions::new().test_before_acquire(false).max_connections(connections);
        pool.connect_lazy_with(options.clone())
    };
    let raw = Pools { reading: pool(SQLITE_READERS), writing: pool(1) };
    World::new("sqlite", first, raw).await.measure(Box::new(db), effort, report).await;
}

async fn postgres(url: &str, effort: Effort, report: &mut Report) {
    let server = url.to_owned();
    let db = move || {
        let url = server.clone();
        async move { PostgresPersistence::builder().table(TABLE).connect(&url).await.unwrap() }.boxed()
    };
    let pool = PgPoolOptions::new().test_before_acquire(false).max_connections(CONNECTIONS);
    let pool = pool.connect(url).await.unwrap();
    sqlx::query(DROP).execute(&pool).await.unwrap();
    let raw = Pools { reading: pool.clone(), writing: pool.clone() };
    World::new("postgres", db().await, raw).await.measure(Box::new(db), effort, report).await;
    sqlx::query(DROP).execute(&pool).await.unwrap();
}

async fn mysql(name: &'static str, url: &str, effort: Effort, report: &mut Report) {
    let server = url.to_owned();
    let db = move || {
        let url = server.clone();
        async move { MySqlPersistence::builder().table(TABLE).connect(&url).await.unwrap() }.boxed()
    };
    let pool = MySqlPoolOptions::new().test_before_acquire(false).max_connections(CONNECTIONS);
    let pool = pool.connect(url).await.unwrap();
    sqlx::query(DROP).execute(&pool).await.unwrap();
    let raw = Pools { reading: pool.clone(), writing: pool.clone() };
    World::new(name, db().await, raw).await.measure(Box::new(db), effort, report).await;
    sqlx::query(DROP).execute(&pool).await.unwrap();
}

struct World<P, R> {
    name: String,
    store: CachedDb<MokaCache, P>,
    raw: R,
    sessions: Vec<Stored>,
}

impl<P: Persistence, R: Raw> World<P, R> {
    async fn new(name: &str, db: P, raw: R) -> Self {
        eprintln!("{name}: making {SESSIONS} sessions");
        let store = store(db).await;
        let sessions = create(&store, SESSIONS).await;
        Self { name: name.to_owned(), store, raw, sessions }
    }

    async fn measure(self, db: Connect<P>, effort: Effort, report: &mut Report) {
        self.misses(db, effort, report).await;
        self.saves(effort, report).await;
        self.store.close().await;
    }

    async fn misses(&self, db: Connect<P>, effort: Effort, report: &mut Report) {
        let (mut one, mut many) = (Vec::new(), Vec::new());
        let keys: Vec<_> = self.sessions.iter().map(|session| session.key).collect();
        for round in 0..effort.rounds {
            // The cache of a new store is empty. Its connections are made before the measurement.
            let cold = store(db().await).await;
            let warm: Vec<_> = keys.iter().rev().take(128).copied().collect();
            crowd(&warm, |keys| loading(cold.clone(), keys)).await;
            crowd(&warm, |keys| selecting(self.raw.clone(), keys)).await;

            let start = round * 500 % (keys.len() - 1_000);
            let (alone, together) = keys[start..start + 1_000].split_at(360);
            let (mut raw, mut cache, mut miss) = (Times::default(), Times::default(), Times::default());
            let aside = Aside::new();
            let mut connection = self.raw.reading().await;
            for key in alone {
                black_box(raw.time(R::select(&mut connection, key)).await);
                cache.time(aside.fill(key)).await;
                miss.time(cold.load(key)).await.unwrap().unwrap();
            }
            drop(connection);
            one.push(miss.median() / (raw.median() + cache.median()));

            let raw = crowd(together, |keys| selecting(self.raw.clone(), keys)).await;
            let cache = crowd(together, |keys| {
                let aside = aside.clone();
                async move {
                    for key in keys {
                        aside.fill(&key).await;
                    }
                }
            });
            let cache = cache.await;
            let miss = crowd(together, |keys| loading(cold.clone(), keys)).await;
            many.push(miss / (raw + cache));
            let misses = cold.stats().misses as usize;
            assert_eq!(misses, warm.len() + alone.len() + together.len(), "not all were misses");
            cold.close().await;
        }
        let what = "load of a cold key, against the raw SELECT plus the two cache calls";
        report.add(format!("miss.{}", self.name), Aim::AtMost(1.2), what, one);
        report.add(format!("miss.{}_64", self.name), Aim::AtMost(1.2), what, many);
    }

    async fn saves(&self, effort: Effort, report: &mut Report) {
        let (mut one, mut many) = (Vec::new(), Vec::new());
        let chunk = 2 * (60 + 256);
        for round in 0..effort.rounds {
            // Both sides write the same number of bytes, because an update that keeps the size costs a
            // database less.
            let payload = changed_payload(round);
            let start = round * chunk % (self.sessions.len() - chunk);
            let (alone, together) = self.sessions[start..start + chunk].split_at(2 * 60);
            // Change every second session past the store, and the others through it, in turn, so that a
            // checkpoint or a flush hits both alike. They never change the same one, because the store would
            // have to merge it.
            let (mut raw, mut cache, mut save) = (Times::default(), Times::default(), Times::default());
            let aside = Aside::new();
            let mut connection = self.raw.writing().await;
            for pair in alone.chunks(2) {
                let [past, through] = pair else { unreachable!() };
                raw.time(R::update(&mut connection, &past.key, &payload)).await;
                let present = aside.put(&through.key).await;
                cache.time(aside.replace(&through.key, present)).await;
                let mut session = self.store.open(&through.cookie).await.unwrap();
                session.insert(CHANGED, round).unwrap();
                assert_eq!(save.time(session.save()).await.unwrap(), Coherence::Coherent);
            }
            drop(connection);
            one.push(save.median() / (raw.median() + cache.median()));

            let (past, through) = together.split_at(together.len() / 2);
            let raw = crowd(past, |sessions| {
                let (raw, payload) = (self.raw.clone(), payload.clone());
                async move {
                    for session in sessions {
                        R::update(&mut raw.writing().await, &session.key, &payload).await;
                    }
                }
            });
            let raw = raw.await;
            let mut present = Vec::new();
            for session in through {
                present.push((session.key, aside.put(&session.key).await));
            }
            let cache = crowd(&present, |present| {
                let aside = aside.clone();
                async move {
                    for (key, stamp) in present {
                        aside.replace(&key, stamp).await;
                    }
                }
            });
            let cache = cache.await;
            let mut changed = Vec::new();
            for stored in through {
                let mut session = self.store.open(&stored.cookie).await.unwrap();
                session.insert(CHANGED, round).unwrap();
                changed.push(std::sync::Arc::new(tokio::sync::Mutex::new(session)));
            }
            let save = crowd(&changed, |sessions| async move {
                for session in sessions {
                    let saved = session.try_lock().unwrap().save().await;
                    assert_eq!(saved.unwrap(), Coherence::Coherent);
                }
            });
            many.push(save.await / (raw + cache));
        }
        assert_eq!(self.store.stats().merges, 0, "another writer changed a session");
        let what = "save of one changed key, against the raw UPDATE plus the two cache calls";
        report.add(format!("save.{}", self.name), Aim::AtMost(1.2), what, one);
        report.add(format!("save.{}_64", self.name), Aim::AtMost(1.2), what, many);
    }
}

/// The key whose value a save changes.
const CHANGED: &str = "field-3";

/// Returns the payload that a save writes in a round.
fn changed_payload(round: usize) -> Vec<u8> {
    let mut data = data(0);
    data.insert(CHANGED, round.to_string()).unwrap();
    JsonCodec::default().encode(&StoredKey::PROBE, &data).unwrap().to_vec()
}

async fn store<P: Persistence>(db: P) -> CachedDb<MokaCache, P> {
    CachedDb::builder(moka(), db).sole_process().reaper(None).build().await.unwrap()
}

async fn loading<P: Persistence>(store: CachedDb<MokaCache, P>, keys: Vec<StoredKey>) {
    for key in keys {
        black_box(store.load(&key).await.unwrap().unwrap());
    }
}

async fn selecting<R: Raw>(raw: R, keys: Vec<StoredKey>) {
    for key in keys {
        black_box(R::select(&mut raw.reading().await, &key).await);
    }
}

/// A cache beside the store's, to measure the cache calls alone.
#[derive(Clone)]
struct Aside {
    cache: MokaCache,
    record: std::sync::Arc<Record>,
}

const TTL: Duration = Duration::from_secs(60);

impl Aside {
    fn new() -> Self {
        let payload = format!("1{{{}}}", " ".repeat(1_000)).into();
        let record = Record::new(payload, Timestamp::from_micros(0), Timestamp::MAX)
            .with_version(Version::from_u64(1));
        Self { cache: moka(), record: std::sync::Arc::new(record) }
    }

    fn value(&self) -> Value {
        Value { record: self.record.clone(), made_at: SystemTime::now().into(), store: StoreId(1) }
    }

    /// Makes the two cache calls of a miss.
    async fn fill(&self, key: &StoredKey) {
        let (lease, stamp) = (stamp(), stamp());
        assert_eq!(self.cache.acquire(key, Entry::lease(lease), TTL).await.unwrap(), Acquired::Placed);
        self.exchange(key, lease, Entry::value(stamp, self.value())).await;
    }

    async fn put(&self, key: &StoredKey) -> Stamp {
        let stamp = stamp();
        let entry = Entry::value(stamp, self.value());
        let stored = self.cache.compare_exchange(key, Expected::Vacant, Some(entry), TTL).await;
        assert_eq!(stored.unwrap(), Exchange::Stored);
        stamp
    }

    /// Makes the two cache calls of a save.
    async fn replace(&self, key: &StoredKey, present: Stamp) {
        let (placed, published) = (stamp(), stamp());
        let deadline = Timestamp::from(SystemTime::now()) + TTL;
        let fence = Fence { holders: vec![Holder { token: Token(placed.0), deadline }], dirty: false };
        self.exchange(key, present, Entry::fence(placed, fence)).await;
        self.exchange(key, placed, Entry::value(published, self.value())).await;
    }

    async fn exchange(&self, key: &StoredKey, expected: Stamp, new: Entry) {
        let stored = self.cache.compare_exchange(key, Expected::Stamp(expected), Some(new), TTL).await;
        assert_eq!(stored.unwrap(), Exchange::Stored);
    }
}

fn stamp() -> Stamp {
    Stamp(std::num::NonZeroU64::new(fastrand::u64(1..)).unwrap())
}
