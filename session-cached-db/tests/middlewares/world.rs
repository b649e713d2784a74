//! The stores of one scenario, on one node or two.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use libtest_mimic::Failed;
use session_cached_db::db_backends::sqlx::{AssertSqlSafe, Connection as _, PgConnection, raw_sql};
use session_cached_db::{
    CachedDb, MokaCache, PostgresPersistence, Session, SqlitePersistence, cache_backends,
};
use session_core::{DynCache, DynDatabase, ExpiryWrite, Record, Subject};

pub type Store = CachedDb<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

/// The URLs of Redis and Postgres.
#[derive(Clone)]
pub struct Servers {
    redis: String,
    postgres: String,
}

impl Servers {
    pub fn of_environment() -> Result<Self, String> {
        let url = |name: &str| {
            std::env::var(name).ok().filter(|url| !url.is_empty()).ok_or_else(|| format!("{name} is not set"))
        };
        Ok(Self { redis: url("CONFORMANCE_REDIS_URL")?, postgres: url("CONFORMANCE_POSTGRES_URL")? })
    }
}

/// The database of a node.
enum Database {
    Sqlite(Arc<SqlitePersistence>),
    Postgres(Arc<PostgresPersistence>),
}

pub struct World {
    /// Two nodes. In one process, they are the same store.
    pub nodes: [Store; 2],
    databases: Vec<Database>,
    /// The table to remove afterwards: a URL of Postgres, and its name.
    table: Option<(String, String)>,
}

impl World {
    /// Creates the stores of a cache: `redis`, `near+redis`, or `notified+moka`. Without servers, they are over moka and SQLite.
    pub async fn new(servers: Option<(Servers, &str)>) -> Self {
        let Some((Servers { redis, postgres }, cache)) = servers else {
            let db = Arc::new(SqlitePersistence::connect("sqlite::memory:").await.unwrap());
            let cache = Arc::new(MokaCache::builder().build()) as Arc<dyn DynCache>;
            let store = CachedDb::builder(cache, Arc::clone(&db) as Arc<dyn DynDatabase>);
            let store = store.sole_process().build().await.unwrap();
            let databases = vec![Database::Sqlite(db)];
            return Self { nodes: [store.clone(), store], databases, table: None };
        };
        let name = format!("web_{:016x}", fastrand::u64(..));
        let separator = if redis.contains('?') { '&' } else { '?' };
        let redis = format!("{redis}{separator}key_prefix={name}:");
        let cache_url = match cache {
            "redis" => redis,
            "near+redis" => format!("near+{redis}&freshness_bound_ms=1000"),
            memory => format!("{memory}://?freshness_bound_ms=1000"),
        };
        let node = async || {
            let cache = cache_backends::connect(&cache_url).unwrap();
            let db = PostgresPersistence::builder()
                .table(&name)
                .max_connections(4)
                .connect(&postgres)
                .await
                .unwrap();
            let db = Arc::new(db);
            let store = CachedDb::builder(cache, Arc::clone(&db) as Arc<dyn DynDatabase>);
            // A busy machine must not count as an outage.
            let store = store
                .cache_timeout(Duration::from_secs(10))
                .fence_ttl(Duration::from_secs(60))
                .build()
                .await
                .unwrap();
            (store, Database::Postgres(db))
        };
        let [(one, first), (two, second)] = [node().await, node().await];
        Self { nodes: [one, two], databases: vec![first, second], table: Some((postgres, name)) }
    }

    /// Closes the databases under the stores: from then on, no statement is answered.
    pub async fn close_databases(&self) {
        for database in &self.databases {
            match database {
                Database::Sqlite(db) => db.close().await,
                Database::Postgres(db) => db.close().await,
            }
        }
    }

    /// Runs a scenario, and returns a panic as an error.
    pub async fn catch(&self, scenario: impl Future<Output = ()>) -> Result<(), Failed> {
        let message = |panic: Box<dyn std::any::Any + Send>| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
        };
        AssertUnwindSafe(scenario).catch_unwind().await.map_err(|panic| Failed::from(message(panic)))
    }

    pub async fn clean_up(self) {
        for node in &self.nodes {
            node.close().await;
        }
        if let Some((url, table)) = self.table {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let sql = AssertSqlSafe(format!("DROP TABLE IF EXISTS {table}, {table}_schema"));
            raw_sql(sql).execute(&mut connection).await.unwrap();
        }
    }

    /// Opens the session under this key, without a middleware.
    pub async fn open(&self, key: &str) -> Session {
        self.nodes[1].open(key).await.unwrap()
    }

    /// Makes the payload of the session under this key unreadable.
    pub async fn corrupt(&self, key: &str) {
        let stored_key = *self.open(key).await.stored_key().unwrap();
        let record = self.nodes[0].load(&stored_key).await.unwrap().unwrap();
        let broken = Record::new(Bytes::from_static(b"no payload"), record.created_at(), record.expires_at());
        self.nodes[0].update(&stored_key, broken, None, ExpiryWrite::Extend).await.unwrap();
    }

    /// Gives a session to a subject, behind the back of the middleware, under its key.
    pub async fn give_to(&self, session: &Session, subject: &str) {
        let key = session.stored_key().unwrap();
        let record = Record::clone(&*self.nodes[0].load(key).await.unwrap().unwrap());
        let record = record.with_subject(Some(Subject::parse(subject).unwrap()));
        self.nodes[0].update(key, record, None, ExpiryWrite::Extend).await.unwrap();
    }

    /// Returns `true` if there is a row under this key, readable or not.
    pub async fn has_row(&self, key: &str) -> bool {
        let key = session_core::SessionKey::parse(key).unwrap();
        self.nodes[0].exists(&self.nodes[0].stored_key(&key).unwrap()).await.unwrap()
    }

    /// Asks for a page of the second node until that node's memory has answered.
    pub async fn warm(&self, page: impl AsyncFn()) {
        let (begun, before) = (Instant::now(), self.nodes[1].stats().near_hits);
        while self.nodes[1].stats().near_hits == before {
            let stats = self.nodes[1].stats();
            assert!(begun.elapsed() < Duration::from_secs(60), "memory does not answer: {stats:?}");
            page().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the number of database reads of the nodes.
    pub fn database_reads(&self) -> u64 {
        let reads = |store: &Store| store.stats().misses + store.stats().bypasses;
        reads(&self.nodes[0]) + reads(&self.nodes[1])
    }
}

pub fn erase(db: impl DynDatabase) -> Arc<dyn DynDatabase> {
    Arc::new(db)
}

/// A number that no type of JSON libraries can hold, and text in a form that none of them writes.
pub const ODD_JSON: &str = "{\"b\": 12345678901234567890.123456789, \"a\": \"\\u00e9\"}";
