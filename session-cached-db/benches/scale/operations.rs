//! Every operation on a table of many sessions, one at a time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use session_cached_db::session_core::{
    DynCache, DynDatabase, ExpiryWrite, Persistence as _, Record, StoredKey, Subject,
};
use session_cached_db::{CachedDb, cache_backends};

use crate::database::{DAY, HASHED, Raw, Rows, Table, key, now, payload, variable};
use crate::pages::{self, Pages};
use crate::times::{Times, rounded};

type Store = CachedDb<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

/// The number of sessions on which each operation is measured.
const SAMPLES: usize = 2_000;

/// The number of sessions that are read before, so that connections and statements are there.
const WARM: usize = 200;

/// The number of expired sessions that one statement of the reaper removes, and of such statements.
const BATCH: u32 = 100;
const BATCHES: u64 = 100;

pub(crate) async fn measure(database: &str, cache: &str, sessions: u64) -> Value {
    let table = Table::open(database, &table_name(database, sessions)).await;
    table.fill(sessions, &format!("n % {}", sessions / 10)).await;
    let (table_bytes, index_bytes) = table.sizes().await;
    let store = store(&table, cache).await;
    let mut measured = Measured { table, sessions, operations: Map::new() };
    let keys = some_keys(sessions);
    let (warm, keys) = keys.split_at(WARM);
    for key in warm {
        load(&store, key).await;
    }
    measured.loads(&store, keys).await;
    measured.writes(&store, keys).await;
    measured.lists(&store).await;
    measured.creations(&store).await;
    measured.reaping().await;
    store.close().await;
    json!({
        "database": database, "cache": cache, "sessions": sessions, "table_bytes": table_bytes, "index_bytes": index_bytes,
        "operations": measured.operations,
    })
}

fn table_name(database: &str, sessions: u64) -> String {
    if database == HASHED { format!("scale_hash_{sessions}") } else { format!("scale_{sessions}") }
}

/// Opens a store whose cache is empty.
async fn store(table: &Table, cache: &str) -> Store {
    let url = match cache {
        "moka" => "moka://?max_bytes=1073741824".to_owned(),
        server => {
            let url = variable(server);
            let separator = if url.contains('?') { '&' } else { '?' };
            format!("{url}{separator}key_prefix=scale-{:016x}:", fastrand::u64(..))
        }
    };
    let mut builder =
        CachedDb::builder(cache_backends::connect(&url).unwrap(), table.db().await).reaper(None);
    if cache == "moka" {
        builder = builder.sole_process();
    }
    builder.build().await.unwrap()
}

/// Returns keys of sessions, each once.
fn some_keys(sessions: u64) -> Vec<StoredKey> {
    let mut numbers = HashSet::new();
    while numbers.len() < WARM + SAMPLES {
        numbers.insert(fastrand::u64(1..=sessions));
    }
    numbers.into_iter().map(key).collect()
}

async fn load(store: &Store, key: &StoredKey) -> Arc<Record> {
    store.load(key).await.unwrap().unwrap()
}

/// The number of tasks that use the store at the same time, and of sessions that each uses.
const TASKS: u64 = 64;
const EACH: u64 = 100;

/// Returns how many loads that miss, hits and saves are done in a second by [`TASKS`] tasks.
pub(crate) async fn throughput(database: &str, cache: &str, sessions: u64) -> Value {
    let table = Table::open(database, &table_name(database, sessions)).await;
    let store = store(&table, cache).await;
    // From a place on where few were loaded before; each session once.
    let first = fastrand::u64(1..=sessions - TASKS * EACH);
    let mut figures = Map::new();
    for operation in ["cold load", "hit", "save"] {
        let start = Instant::now();
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for number in (0..EACH).map(|number| first + number * TASKS + task) {
                        let record = load(&store, &key(number)).await;
                        if operation == "save" {
                            let changed = Record::clone(&record).with_payload(payload(number).into());
                            let expected = Some(record.version());
                            let _ = store
                                .update(&key(number), changed, expected, ExpiryWrite::Extend)
                                .await
                                .unwrap();
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let per_second = (TASKS * EACH) as f64 / start.elapsed().as_secs_f64();
        figures.insert(operation.to_owned(), json!(per_second.round()));
    }
    eprintln!("in a second, with {TASKS} tasks: {figures:?}");
    store.close().await;
    figures.into()
}

struct Measured {
    table: Table,
    sessions: u64,
    operations: Map<String, Value>,
}

impl Measured {
    async fn count(&self) -> Pages {
        pages::count(&self.table).await
    }

    /// Adds the figure of an operation, which began when there were `before` pages.
    async fn add(&mut self, operation: &str, times: &Times, before: Pages, operations: usize) {
        let counted = self.count().await.since(before, operations);
        let pages = match pages::explained(&self.table, operation, self.sessions).await {
            Some(pages) => Some(pages),
            None => Some(counted).filter(|_| !matches!(self.table.raw, Raw::Postgres(_))),
        };
        let mut figure = times.json();
        if let Some(Pages { touched, read }) = pages {
            figure["pages_read"] = json!(rounded(read));
            figure["pages"] = json!(touched.map(rounded));
        }
        eprintln!("{} {operation}: {figure}", self.table.name);
        self.operations.insert(operation.to_owned(), figure);
    }

    async fn loads(&mut self, store: &Store, keys: &[StoredKey]) {
        for operation in ["cold load", "hit"] {
            let (mut times, before, hits) = (Times::default(), self.count().await, store.stats().hits);
            for key in keys {
                times.time(load(store, key)).await;
            }
            let hits = (store.stats().hits - hits) as usize;
            assert_eq!(hits, if operation == "hit" { keys.len() } else { 0 }, "hits of {operation}");
            self.add(operation, &times, before, keys.len()).await;
        }
    }

    async fn writes(&mut self, store: &Store, keys: &[StoredKey]) {
        let (mut times, before) = (Times::default(), self.count().await);
        for (number, key) in (1..).zip(keys) {
            let record = load(store, key).await;
            let changed =
                Record::clone(&record).with_payload(payload(number).into()).with_last_seen_at(now());
            let saved = store.update(key, changed, Some(record.version()), ExpiryWrite::Extend);
            let _ = times.time(saved).await.unwrap();
        }
        self.add("save", &times, before, keys.len()).await;

        let (mut times, before) = (Times::default(), self.count().await);
        for key in keys {
            times.time(store.touch(key, now() + 15 * DAY)).await.unwrap();
        }
        self.add("touch", &times, before, keys.len()).await;
    }

    async fn lists(&mut self, store: &Store) {
        let (mut times, before, count) = (Times::default(), self.count().await, SAMPLES / 4);
        for _ in 0..count {
            let subject = format!("user-{}", fastrand::u64(..self.sessions / 10));
            let listed = times.time(store.list_by_subject(&subject)).await.unwrap();
            assert_eq!(listed.len(), 10);
        }
        self.add("list", &times, before, count).await;
    }

    async fn creations(&mut self, store: &Store) {
        let keys: Vec<_> = (0..SAMPLES)
            .map(|_| StoredKey::parse(&format!("x{:020}{}", fastrand::u64(..), "k".repeat(22))).unwrap())
            .collect();
        let (mut times, before) = (Times::default(), self.count().await);
        for key in &keys {
            let subject = Subject::parse(&format!("user-{}", fastrand::u64(..self.sessions / 10))).unwrap();
            let record = Record::new(payload(0).into(), now(), now() + 14 * DAY).with_subject(Some(subject));
            let _ = times.time(store.create(key, record)).await.unwrap();
        }
        self.add("create", &times, before, keys.len()).await;

        let (mut times, before) = (Times::default(), self.count().await);
        for key in &keys {
            assert!(times.time(store.revoke(key)).await.unwrap().value);
        }
        self.add("delete", &times, before, keys.len()).await;
    }

    /// Measures a statement of the reaper.
    async fn reaping(&mut self) {
        let (subject, count) = (format!("n % {}", self.sessions / 10), u64::from(BATCH) * BATCHES);
        let expires_at = session_cached_db::Timestamp::from_micros(1_000_000);
        self.table.add(&Rows { first: 1, count, key_prefix: Some("y"), subject, expires_at }).await;
        let db = self.table.db().await;
        let (mut times, before) = (Times::default(), self.count().await);
        for _ in 0..BATCHES {
            let expired = times.time(db.delete_expired(now(), BATCH)).await.unwrap();
            assert_eq!(expired.count, u64::from(BATCH));
        }
        self.add("reap 100", &times, before, BATCHES as usize).await;
    }
}
