//! The world of a test: one clock, one cache and one database, all under the test's control.

pub mod backends;
pub mod calls;
pub mod log;
pub mod runtime;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use session_cached_db::{Builder, CachedDb, Session, SqlitePersistence};
use session_core::{CacheProperties, Scope, StoredKey};
use tempfile::TempDir;

pub use self::backends::{TestCache, TestDb};
pub use self::calls::{Call, Fault, Held, Moment};
pub use self::log::Log;
pub use self::runtime::{ManualRuntime, START};

pub type Store = CachedDb<TestCache, TestDb>;
pub type StoreBuilder = Builder<TestCache, TestDb>;

pub const SECOND: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(60 * 60);
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A store with its clock, cache and database.
pub struct World {
    pub runtime: ManualRuntime,
    pub cache: TestCache,
    pub db: TestDb,
    pub store: Store,
    /// The directory of the database's file, if it has one.
    pub directory: Option<TempDir>,
}

/// Runs `test` with the database in memory, then with the database in a file.
pub async fn each_database(test: impl AsyncFn(World)) {
    each_database_with(|builder| builder, test).await;
}

/// Like [`each_database`], with a store that `configure` changes.
pub async fn each_database_with(configure: impl Fn(StoreBuilder) -> StoreBuilder, test: impl AsyncFn(World)) {
    println!("the database is in memory");
    test(World::with(&configure).await).await;
    println!("the database is in a file");
    test(World::in_file_with(&configure).await).await;
}

impl World {
    /// Returns a store with moka in front of SQLite in memory, as the sole process, without a reaper.
    pub async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    /// Like [`new`](Self::new), with a store that `configure` changes.
    pub async fn with(configure: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        Self::over(TestCache::new(), in_memory().await, None, configure).await
    }

    /// Like [`with`](Self::with), with the database in a file.
    pub async fn in_file_with(configure: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db = in_file(&directory).await;
        Self::over(TestCache::new(), db, Some(directory), configure).await
    }

    /// Like [`with`](Self::with), with a cache that claims to be shared by several processes: its calls have
    /// a timeout, and the breaker and repairs are at work.
    pub async fn shared_with(configure: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let cache = TestCache::new().with_properties(CacheProperties::new(Scope::Shared));
        Self::over(cache, in_memory().await, None, configure).await
    }

    /// Like [`shared_with`](Self::shared_with), with a cache of several servers.
    pub async fn with_servers(servers: usize, configure: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let properties = CacheProperties::new(Scope::Shared).with_servers(servers);
        let cache = TestCache::new().with_properties(properties);
        Self::over(cache, in_memory().await, None, configure).await
    }

    pub async fn shared() -> Self {
        Self::shared_with(|builder| builder).await
    }

    pub async fn over(
        cache: TestCache,
        db: TestDb,
        directory: Option<TempDir>,
        configure: impl FnOnce(StoreBuilder) -> StoreBuilder,
    ) -> Self {
        let runtime = ManualRuntime::new();
        *db.clock.lock().unwrap() = Some(Arc::new(runtime.clone()));
        let store = configure(builder(&runtime, &cache, &db)).build().await.unwrap();
        let world = Self { runtime, cache, db, store, directory };
        world.forget_calls();
        world
    }

    /// Builds another node: a second store over the same cache and the same database.
    pub async fn node(&self) -> Store {
        self.builder().build().await.unwrap()
    }

    /// Returns a builder of another store over the same cache and the same database.
    pub fn builder(&self) -> StoreBuilder {
        builder(&self.runtime, &self.cache, &self.db)
    }

    /// Sets the counts of calls to zero.
    pub fn forget_calls(&self) {
        self.cache.calls.reset();
        self.db.calls.reset();
    }

    /// Returns the number of calls to the cache and the database.
    pub fn calls(&self) -> usize {
        self.cache.calls.total() + self.db.calls.total()
    }

    /// Waits until the repair task sleeps, and returns for how long.
    pub async fn probe_pause(&self) -> Duration {
        let pauses = [SECOND / 16, SECOND / 8, SECOND / 4, SECOND / 2, SECOND];
        self.runtime.sleeping(|asked| pauses.contains(&asked)).await
    }

    /// Makes the cache answer again, and waits until the store has found out.
    pub async fn cache_recovers(&self, log: &Log) {
        self.cache.calls.heal();
        let pause = self.probe_pause().await;
        self.runtime.advance(pause);
        until(|| !log.events("cache_breaker_closed").is_empty()).await;
    }

    /// Saves a session with these values.
    pub async fn saved<const N: usize>(&self, values: [(&str, i32); N]) -> Session {
        let mut session = self.store.new_session();
        session.update(values).unwrap();
        let _ = session.save().await.unwrap();
        session
    }

    /// Opens the session again, as a client with its cookie does.
    pub async fn reopen(&self, session: &Session) -> Session {
        self.store.open(&key_of(session)).await.unwrap()
    }

    /// Opens the session again, and returns the error of that.
    pub async fn unreadable(&self, session: &Session) -> session_cached_db::Error {
        self.store.open(&key_of(session)).await.expect_err("the session cannot be read")
    }

    /// Returns the session's values as the database has them.
    pub async fn in_database(&self, key: &StoredKey) -> Option<BTreeMap<String, i32>> {
        use session_core::{JsonCodec, Persistence as _, Runtime as _};
        let record = Arc::new(self.db.sqlite.load(key, self.runtime.now()).await.unwrap()?);
        let data = record.data(key, &JsonCodec::default()).unwrap();
        Some(data.iter().map(|(key, value)| (key.to_owned(), value.parse().unwrap())).collect())
    }
}

fn builder(runtime: &ManualRuntime, cache: &TestCache, db: &TestDb) -> StoreBuilder {
    CachedDb::builder(cache.clone(), db.clone()).sole_process().reaper(None).runtime(runtime.clone())
}

pub async fn in_memory() -> TestDb {
    TestDb::new(SqlitePersistence::connect("sqlite::memory:").await.unwrap())
}

pub async fn in_file(directory: &TempDir) -> TestDb {
    let url = format!("sqlite://{}", directory.path().join("sessions.db").display());
    TestDb::new(SqlitePersistence::connect(&url).await.unwrap())
}

/// Waits for an event that is sure to happen soon. After a minute, the test fails rather than hangs.
pub async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(MINUTE, event).await.expect("the event should happen within a minute")
}

/// Waits until other tasks have made `condition` true.
pub async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Returns the key that the client presents next time.
pub fn key_of(session: &Session) -> String {
    session.key().unwrap().expose().to_owned()
}

/// Returns the session's values.
pub fn values_of(session: &Session) -> BTreeMap<String, i32> {
    session.iter().map(|(key, value)| (key.to_owned(), value.parse().unwrap())).collect()
}

/// Returns values as a map.
pub fn map<const N: usize>(values: [(&str, i32); N]) -> BTreeMap<String, i32> {
    values.map(|(key, value)| (key.to_owned(), value)).into()
}
