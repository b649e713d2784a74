//! What the store costs on top of the parts it is made of, each figure the ratio of two things that were measured in turn
//! in one run: the median over several rounds. Run by `cargo xtask bench`, which passes `--json` on.
//!
//! Sessions have ten keys and about 1 KB; there are 10,000 of them.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a program that measures, and that may stop when it cannot"
)]

use std::hint::black_box;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};
use db_backends::sqlx::{self, SqlitePool};
use futures_util::FutureExt as _;
use session_cached_db::core::{Record, SessionKey, StoredKey, Timestamp};
use session_cached_db::{CachedDb, Coherence, MokaCache, SqlitePersistence};

const SESSIONS: usize = 10_000;
const ROUNDS: usize = 15;
const IN_FLIGHT: usize = 64;

type Store = CachedDb<MokaCache, SqlitePersistence>;

/// One line of the report.
struct Figure {
    name: String,
    value: f64,
    /// What it is to be at most.
    aim: Option<f64>,
    what: &'static str,
}

fn main() {
    let json = std::env::args().any(|arg| arg == "--json");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // In a worker, as the handlers of a web server are: outside of one, every spawned task would wake a thread.
    let figures = runtime.block_on(async { tokio::spawn(measure()).await.unwrap() });
    if json {
        let object: serde_json::Map<_, _> =
            figures.iter().map(|figure| (figure.name.clone(), serde_json::json!(figure.value))).collect();
        println!("{}", serde_json::Value::Object(object));
    } else {
        println!("{:<28} {:>8}  {:>8}  what", "figure", "measured", "aim");
        for Figure { name, value, aim, what } in &figures {
            let aim = aim.map_or(String::new(), |aim| format!("<= {aim}"));
            println!("{name:<28} {value:>8.2}  {aim:>8}  {what}");
        }
    }
}

async fn measure() -> Vec<Figure> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bench.db");
    let url = format!("sqlite://{}", path.display());
    let world = World::new(&url).await;
    let mut figures = Vec::new();
    world.hits(&mut figures).await;
    world.misses(&mut figures).await;
    world.saves(&mut figures).await;
    world.burst(&mut figures).await;
    figures
}

struct World {
    store: Store,
    pool: SqlitePool,
    keys: Vec<StoredKey>,
    cookies: Vec<String>,
    /// What `hits` is measured against. Filled together with the store, so that neither has the better memory layout.
    raw: moka::sync::Cache<StoredKey, Arc<Record>>,
}

impl World {
    async fn new(url: &str) -> Self {
        let db = SqlitePersistence::connect(url).await.unwrap();
        // The raw statements' own, on the same settings.
        let options = SqliteConnectOptions::from_str(url).unwrap().synchronous(SqliteSynchronous::Normal);
        let pool = SqlitePoolOptions::new().test_before_acquire(false).connect_with(options).await.unwrap();
        let store = store(db).await;
        let raw = moka::sync::Cache::new(1 << 20);
        let mut keys = Vec::with_capacity(SESSIONS);
        let mut cookies = Vec::with_capacity(SESSIONS);
        for n in 0..SESSIONS {
            let mut session = store.new_session();
            for field in 0..10 {
                session.insert(&format!("field-{field}"), format!("{n:08}{}", "x".repeat(80))).unwrap();
            }
            let _ = session.save().await.unwrap();
            let key = *session.stored_key().unwrap();
            raw.insert(key, store.load(&key).await.unwrap().unwrap());
            keys.push(key);
            cookies.push(session.key().unwrap().expose().to_owned());
        }
        // In an order that no cache line and no B-tree page foresees.
        let mut random = fastrand::Rng::with_seed(7);
        let mut order: Vec<_> = (0..SESSIONS).collect();
        random.shuffle(&mut order);
        let keys = order.iter().map(|n| keys[*n]).collect();
        let cookies = order.iter().map(|n| cookies[*n].clone()).collect();
        Self { store, pool, keys, cookies, raw }
    }

    async fn hits(&self, figures: &mut Vec<Figure>) {
        let raw = &self.raw;
        let before = self.store.stats();

        let (mut hit, mut open) = (Vec::new(), Vec::new());
        let (mut hit_64, mut open_64) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let raw_time = timed(async || {
                for key in &self.keys {
                    black_box(raw.get(key));
                }
            })
            .await;
            let hit_time = timed(async || {
                for key in &self.keys {
                    black_box(self.store.load(key).await.unwrap());
                }
            })
            .await;
            let open_time = timed(async || {
                for cookie in &self.cookies {
                    black_box(self.store.open(cookie).await.unwrap());
                }
            })
            .await;
            hit.push(ratio(hit_time, raw_time));
            open.push(ratio(open_time, raw_time));

            let raw_time = self.in_flight(|keys, _| {
                let raw = raw.clone();
                async move {
                    for key in keys {
                        black_box(raw.get(&key));
                    }
                }
            });
            let raw_time = raw_time.await;
            let hit_time = self.in_flight(|keys, _| {
                let store = self.store.clone();
                async move {
                    for key in keys {
                        black_box(store.load(&key).await.unwrap());
                    }
                }
            });
            hit_64.push(ratio(hit_time.await, raw_time));
            let open_time = self.in_flight(|_, cookies| {
                let store = self.store.clone();
                async move {
                    for cookie in cookies {
                        black_box(store.open(&cookie).await.unwrap());
                    }
                }
            });
            open_64.push(ratio(open_time.await, raw_time));
        }
        let after = self.store.stats();
        assert_eq!(after.misses + after.bypasses, before.misses + before.bypasses, "not all were hits");

        let what = "load, hit, against a raw moka get of an Arc";
        figures.push(Figure { name: "moka_hit".into(), value: median(hit), aim: Some(1.5), what });
        figures.push(Figure {
            name: "moka_hit_64".into(),
            value: median(hit_64),
            aim: None,
            what: "the same with 64 tasks in flight",
        });
        let what = "open from the cookie's text, against the same raw get";
        figures.push(Figure { name: "moka_open".into(), value: median(open), aim: Some(1.9), what });
        figures.push(Figure {
            name: "moka_open_64".into(),
            value: median(open_64),
            aim: None,
            what: "the same with 64 tasks in flight",
        });

        let key = &self.keys[0];
        // A hit never waits, so its one poll is all there is.
        let counted = allocation_counter::measure(|| {
            for _ in 0..1_000 {
                black_box(self.store.load(key).now_or_never().unwrap().unwrap());
            }
        });
        let allocations = counted.count_total as f64 / 1_000.0;
        figures.push(Figure {
            name: "allocations_per_hit".into(),
            value: allocations,
            aim: Some(2.0),
            what: "counted, load to Arc",
        });
    }

    /// The time that 64 tasks take, who share the keys among them.
    async fn in_flight<F>(&self, task: impl Fn(Vec<StoredKey>, Vec<String>) -> F) -> Duration
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let share = SESSIONS / IN_FLIGHT;
        let tasks: Vec<_> = (0..IN_FLIGHT)
            .map(|n| {
                let mine = n * share..(n + 1) * share;
                task(self.keys[mine.clone()].to_vec(), self.cookies[mine].to_vec())
            })
            .collect();
        let start = Instant::now();
        let running: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
        for task in running {
            task.await.unwrap();
        }
        start.elapsed()
    }

    async fn misses(&self, figures: &mut Vec<Figure>) {
        let mut ratios = Vec::new();
        for chunk in self.keys.chunks(SESSIONS / ROUNDS).take(ROUNDS) {
            // Nothing is cached in a new one.
            let cold = store(SqlitePersistence::from_pool(self.pool.clone())).await;
            let (mut raw_times, mut miss_times) = (Vec::new(), Vec::new());
            for key in chunk {
                raw_times.push(timed(async || drop(black_box(self.select(key).await))).await);
                miss_times
                    .push(timed(async || drop(black_box(cold.load(key).await.unwrap().unwrap()))).await);
            }
            assert_eq!(cold.stats().misses, chunk.len() as u64, "not all were misses");
            ratios.push(ratio(median(miss_times), median(raw_times)));
        }
        figures.push(Figure {
            name: "miss.sqlite".into(),
            value: median(ratios),
            aim: Some(1.3),
            what: "load of a cold key, against the raw SELECT through the same pool",
        });
    }

    async fn select(&self, key: &StoredKey) -> Vec<u8> {
        let row: (Vec<u8>, i64, i64, i64, i64, Option<String>) = sqlx::query_as(
            "SELECT payload, created_at, expires_at, last_seen_at, version, subject FROM sessions WHERE key = ?",
        )
        .bind(key.as_str())
        .fetch_one(&self.pool)
        .await
        .unwrap();
        row.0
    }

    async fn saves(&self, figures: &mut Vec<Figure>) {
        let mut ratios = Vec::new();
        for mine in self.cookies.chunks(200).take(ROUNDS) {
            // Every second session is changed past the store, and every other one through it, in turn: a checkpoint of
            // the write-ahead log hits both alike.
            let (raw, saved) = mine.split_at(100);
            let (mut raw_times, mut save_times) = (Vec::new(), Vec::new());
            for (raw, saved) in raw.iter().zip(saved) {
                let key = self.store.stored_key(&SessionKey::parse(raw).unwrap()).unwrap();
                let payload = self.select(&key).await;
                raw_times.push(timed(async || self.update(&key, &payload).await).await);
                let mut session = self.store.open(saved).await.unwrap();
                session.insert("field-3", 3).unwrap();
                save_times.push(
                    timed(async || assert_eq!(session.save().await.unwrap(), Coherence::Coherent)).await,
                );
            }
            ratios.push(ratio(median(save_times), median(raw_times)));
        }
        assert_eq!(self.store.stats().merges, 0, "somebody else wrote");
        figures.push(Figure {
            name: "save.sqlite".into(),
            value: median(ratios),
            aim: Some(1.3),
            what: "save of one changed key, against the raw UPDATE through the same pool",
        });
    }

    /// Writes the columns that any store with a sliding expiry and versions has to write.
    async fn update(&self, key: &StoredKey, payload: &[u8]) {
        let now = Timestamp::from(std::time::SystemTime::now()).as_micros();
        let updated = sqlx::query(
            "UPDATE sessions SET payload = ?, last_seen_at = ?, version = ?, expires_at = max(expires_at, ?)
             WHERE key = ? AND expires_at > ?",
        )
        .bind(payload)
        .bind(now)
        .bind(fastrand::i64(..))
        .bind(now + 14 * 86_400_000_000)
        .bind(key.as_str())
        .bind(now)
        .execute(&self.pool)
        .await
        .unwrap();
        assert_eq!(updated.rows_affected(), 1);
    }

    async fn burst(&self, figures: &mut Vec<Figure>) {
        let cold = store(SqlitePersistence::from_pool(self.pool.clone())).await;
        let key = self.keys[1];
        let loads: Vec<_> = (0..256)
            .map(|_| {
                let cold = cold.clone();
                tokio::spawn(async move { cold.load(&key).await.unwrap().unwrap() })
            })
            .collect();
        for load in loads {
            load.await.unwrap();
        }
        let stats = cold.stats();
        figures.push(Figure {
            name: "burst_of_256_db_reads".into(),
            value: (stats.misses + stats.bypasses) as f64,
            aim: Some(1.0),
            what: "database reads that 256 loads of a cold key make",
        });
    }
}

async fn store(db: SqlitePersistence) -> Store {
    let cache = MokaCache::builder().max_bytes(256 << 20).build();
    CachedDb::builder(cache, db).sole_process().reaper(None).build().await.unwrap()
}

async fn timed(work: impl AsyncFnOnce()) -> Duration {
    let start = Instant::now();
    work().await;
    start.elapsed()
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}
