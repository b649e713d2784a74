//! What the tests share: a world of one clock, one cache and one database, all in the test's hands.

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

/// One store, and all that it stands on.
pub struct World {
    pub runtime: ManualRuntime,
    pub cache: TestCache,
    pub db: TestDb,
    pub store: Store,
    /// Where the database's file is, if it has one.
    pub directory: Option<TempDir>,
}

/// Runs `test` with the database in memory, then with the database in a file.
pub async fn each_database(test: impl AsyncFn(World)) {
    each_database_with(|builder| builder, test).await;
}

/// The same, with a store that was built otherwise.
pub async fn each_database_with(configure: impl Fn(StoreBuilder) -> StoreBuilder, test: impl AsyncFn(World)) {
    println!("the database is in memory");
    test(World::with(&configure).await).await;
    println!("the database is in a file");
    test(World::in_file_with(&configure).await).await;
}

impl World {
    /// A store with moka in front of SQLite in memory, alone in the world, without a reaper.
    pub async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    /// The same, built otherwise.
    pub async fn with(configure: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        Self::over(TestCache::new(), in_memory().await, None, configure).await
    }

    /// The same with the database in a file.
    pub async fn in_file_with(configure: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db = in_file(&directory).await;
        Self::over(TestCache::new(), db, Some(directory), configure).await
    }

    /// The same with a cache that claims to be shared by several processes: calls have a deadline, and the breaker and
    /// the repair of what could not be fenced come into play.
    pub async fn shared_with(configure: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let cache = TestCache::new().with_properties(CacheProperties::new(Scope::Shared));
        Self::over(cache, in_memory().await, None, configure).await
    }

    /// The same with a cache of several servers.
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

    /// Another node: a second store over the same cache and the same database.
    pub async fn node(&self) -> Store {
        self.builder().build().await.unwrap()
    }

    /// Describes another store over the same cache and the same database.
    pub fn builder(&self) -> StoreBuilder {
        builder(&self.runtime, &self.cache, &self.db)
    }

    /// Counts calls from zero again.
    pub fn forget_calls(&self) {
        self.cache.calls.reset();
        self.db.calls.reset();
    }

    /// How many calls have reached the cache or the database.
    pub fn calls(&self) -> usize {
        self.cache.calls.total() + self.db.calls.total()
    }

    /// Waits until the task that looks after an ailing cache sleeps, and tells for how long.
    pub async fn probe_pause(&self) -> Duration {
        let pauses = [SECOND / 16, SECOND / 8, SECOND / 4, SECOND / 2, SECOND];
        self.runtime.sleeping(|asked| pauses.contains(&asked)).await
    }

    /// The cache answers again, and the store finds out.
    pub async fn cache_recovers(&self, log: &Log) {
        self.cache.calls.heal();
        let pause = self.probe_pause().await;
        self.runtime.advance(pause);
        until(|| !log.events("cache_breaker_closed").is_empty()).await;
    }

    /// A saved session with these values.
    pub async fn saved<const N: usize>(&self, values: [(&str, i32); N]) -> Session {
        let mut session = self.store.new_session();
        session.update(values).unwrap();
        let _ = session.save().await.unwrap();
        session
    }

    /// The session that a client with this one's cookie gets.
    pub async fn reopen(&self, session: &Session) -> Session {
        self.store.open(&key_of(session)).await.unwrap()
    }

    /// The session's values as the database has them.
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

/// What is sure to happen, and so soon that a minute of waiting means it does not: a test fails rather than hangs.
pub async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(MINUTE, event).await.expect("what the test waits for does not happen")
}

/// Waits until others have brought `condition` about.
pub async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// What the client presents next time.
pub fn key_of(session: &Session) -> String {
    session.key().unwrap().expose().to_owned()
}

/// The session's values.
pub fn values_of(session: &Session) -> BTreeMap<String, i32> {
    session.iter().map(|(key, value)| (key.to_owned(), value.parse().unwrap())).collect()
}

/// The same as a map.
pub fn map<const N: usize>(values: [(&str, i32); N]) -> BTreeMap<String, i32> {
    values.map(|(key, value)| (key.to_owned(), value)).into()
}
