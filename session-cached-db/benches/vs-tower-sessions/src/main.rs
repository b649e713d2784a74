//! Hits of tower-sessions' cached store, as its examples set it up, against hits of this store on the same
//! cache. Run by `cargo xtask bench`.
//!
//! The database behind their store is SQLite, and behind this one a map in memory, because the two cannot be
//! linked to one SQLite. A hit reads neither.

#[path = "../../ratios/figure.rs"]
mod figure;

use std::hint::black_box;
use std::sync::Arc;

use conformance_tests::reference::MemoryPersistence;
use figure::{Aim, Report, Times, crowd, timed};
use serde_json::{Value, json};
use session_cached_db::session_core::{Cache, StoredKey};
use session_cached_db::{CachedDb, MokaCache, RedisCache};
use time::OffsetDateTime;
use tower_sessions::session::{Id, Record};
use tower_sessions::{CachingSessionStore, SessionStore};
use tower_sessions_moka_store::MokaStore;
use tower_sessions_redis_store::RedisStore;
use tower_sessions_redis_store::fred::prelude::{ClientLike as _, Config, Pool};
use tower_sessions_sqlx_store::SqliteStore;
use tower_sessions_sqlx_store::sqlx::SqlitePool;

const SESSIONS: usize = 10_000;

/// Number of loads of a round that are made one at a time, where each takes a round trip.
const ALONE: usize = 1_000;

#[tokio::main]
async fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let rounds = if quick { 3 } else { 15 };
    // Run in a worker of the runtime, as the handlers of a web server do.
    println!("{}", tokio::spawn(measure(rounds)).await.unwrap().json());
}

async fn measure(rounds: usize) -> Report {
    // In one function, because it is a list of measurements, one after another.
    let mut report = Report::default();

    let theirs_in_moka = async |values| Theirs::new(MokaStore::new(Some(2 * SESSIONS as u64)), values).await;
    let ours_in_moka =
        async |values| Ours::new(MokaCache::builder().max_bytes(256 << 20).build(), values).await;
    let (theirs, ours) = (theirs_in_moka(texts).await, ours_in_moka(texts).await);
    let bare = Bare::new(&theirs.ids);
    let (mut one, mut many, mut most) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let theirs_time = timed(theirs.load_all()).await;
        one.push(theirs_time / timed(ours.load_all()).await);
        most.push(theirs_time / timed(async { bare.get_all() }).await);
        many.push(theirs.crowd().await / ours.crowd().await);
    }
    let what = "tower-sessions' CachingSessionStore<MokaStore, _>::load, against load, both hits";
    report.add("moka_hit_vs_tower_sessions", Aim::AtLeast(5.0), what, one);
    report.add("moka_hit_vs_tower_sessions_64", Aim::AtLeast(5.0), what, many);
    let what = "the same against a bare moka get of an Arc, with short keys and a fast hash: the fastest there can be";
    report.add("moka_get_vs_tower_sessions", Aim::None, what, most);
    ours.check();
    drop((theirs, ours, bare));

    let (theirs, ours) = (theirs_in_moka(objects).await, ours_in_moka(objects).await);
    let mut one = Vec::new();
    for _ in 0..rounds {
        let theirs_time = timed(theirs.load_all()).await;
        one.push(theirs_time / timed(ours.load_all()).await);
    }
    let what = "the same, load against load, of a session of the same size with an object of five fields under each key";
    report.add("moka_hit_vs_tower_sessions_objects", Aim::None, what, one);
    ours.check();
    drop((theirs, ours));

    let Ok(url) = std::env::var("CONFORMANCE_REDIS_URL") else {
        report.skip("redis_hit_vs_tower_sessions", "CONFORMANCE_REDIS_URL is not set");
        return report;
    };
    // The store's own example has six connections.
    let pool = Pool::new(Config::from_url(&url).unwrap(), None, None, None, 6).unwrap();
    let connections = pool.connect();
    pool.wait_for_connect().await.unwrap();
    let theirs = Theirs::new(RedisStore::new(pool), texts).await;
    let cache = RedisCache::builder().url(&url).key_prefix("bench-vs:").build().unwrap();
    let ours = Ours::new(cache, texts).await;
    let what = "tower-sessions' CachingSessionStore<RedisStore, _>::load, against load, both hits";
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let start = round * ALONE % SESSIONS;
        let (mut theirs_time, mut ours_time) = (Times::default(), Times::default());
        for number in start..start + ALONE {
            theirs_time.time(theirs.load(&theirs.ids[number])).await;
            ours_time.time(ours.load(&ours.keys[number])).await;
        }
        one.push(theirs_time.median() / ours_time.median());
        many.push(theirs.crowd().await / ours.crowd().await);
    }
    report.add("redis_hit_vs_tower_sessions", Aim::None, what, one);
    report.add("redis_hit_vs_tower_sessions_64", Aim::None, what, many);
    ours.check();
    connections.abort();
    report
}

/// A function that returns the value under a key of a session.
type Values = fn(usize) -> Value;

/// Number of keys of a session, which has about 1 KB.
const KEYS: usize = 10;

fn texts(number: usize) -> Value {
    format!("{number:08}{}", "x".repeat(80)).into()
}

fn objects(number: usize) -> Value {
    json!({ "id": number, "name": format!("item number {number}"), "tags": ["one", "two"], "price": 12.5, "sold": false })
}

fn fields() -> impl Iterator<Item = String> {
    (0..KEYS).map(|field| format!("field-{field}"))
}

struct Theirs<C: SessionStore> {
    store: Arc<CachingSessionStore<C, SqliteStore>>,
    ids: Vec<Id>,
}

impl<C: SessionStore> Theirs<C> {
    async fn new(cache: C, values: Values) -> Self {
        let pool = SqlitePool::connect(":memory:").await.unwrap();
        let sqlite = SqliteStore::new(pool);
        sqlite.migrate().await.unwrap();
        let store = Arc::new(CachingSessionStore::new(cache, sqlite));
        let mut ids = Vec::new();
        for number in 0..SESSIONS {
            let mut record = Record {
                id: Id::default(),
                data: fields().map(|key| (key, values(number))).collect(),
                expiry_date: OffsetDateTime::now_utc() + time::Duration::days(14),
            };
            store.create(&mut record).await.unwrap();
            ids.push(record.id);
        }
        fastrand::Rng::with_seed(7).shuffle(&mut ids);
        Self { store, ids }
    }

    async fn load(&self, id: &Id) {
        black_box(self.store.load(id).await.unwrap().unwrap());
    }

    async fn load_all(&self) {
        for id in &self.ids {
            self.load(id).await;
        }
    }

    async fn crowd(&self) -> f64 {
        crowd(&self.ids, |ids| {
            let store = self.store.clone();
            async move {
                for id in ids {
                    black_box(store.load(&id).await.unwrap().unwrap());
                }
            }
        })
        .await
    }
}

/// A bare moka, for the fastest possible hits.
struct Bare {
    cache: moka::sync::Cache<i128, Arc<str>, foldhash::fast::RandomState>,
    ids: Vec<i128>,
}

impl Bare {
    fn new(ids: &[Id]) -> Self {
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        let builder = moka::sync::Cache::builder().max_capacity(2 * SESSIONS as u64);
        let cache = builder.build_with_hasher(foldhash::fast::RandomState::default());
        for id in &ids {
            let payload: String = fields().map(|key| format!("{key}{}", texts(0))).collect();
            cache.insert(*id, payload.into());
        }
        Self { cache, ids }
    }

    fn get_all(&self) {
        for id in &self.ids {
            black_box(self.cache.get(id).unwrap());
        }
    }
}

struct Ours<C: Cache> {
    store: CachedDb<C, MemoryPersistence>,
    keys: Vec<StoredKey>,
}

impl<C: Cache> Ours<C> {
    async fn new(cache: C, values: Values) -> Self {
        let db = MemoryPersistence::default();
        let store = CachedDb::builder(cache, db).sole_process().reaper(None).build().await.unwrap();
        let mut keys = Vec::new();
        for number in 0..SESSIONS {
            let mut session = store.new_session();
            session.update(fields().map(|key| (key, values(number)))).unwrap();
            let _ = session.save().await.unwrap();
            keys.push(*session.stored_key().unwrap());
        }
        fastrand::Rng::with_seed(7).shuffle(&mut keys);
        Self { store, keys }
    }

    async fn load(&self, key: &StoredKey) {
        black_box(self.store.load(key).await.unwrap().unwrap());
    }

    async fn load_all(&self) {
        for key in &self.keys {
            self.load(key).await;
        }
    }

    async fn crowd(&self) -> f64 {
        crowd(&self.keys, |keys| {
            let store = self.store.clone();
            async move {
                for key in keys {
                    black_box(store.load(&key).await.unwrap().unwrap());
                }
            }
        })
        .await
    }

    fn check(&self) {
        let stats = self.store.stats();
        assert_eq!(stats.misses + stats.bypasses, 0, "not all were hits");
    }
}
