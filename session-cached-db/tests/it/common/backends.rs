//! The real cache and the real database, with calls that a test can count, stop and fail.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use session_cached_db::{MokaCache, SqlitePersistence};
use session_core::{
    Acquired, BoxFuture, Cache, CacheError, CacheProperties, DatabaseNotices, Entry, Exchange, Expected,
    ExpiredSessions, Near, NearObserver, NearSource, Persistence, PersistenceError, PersistenceProperties,
    Record, RecordWrite, Rotation, Rotations, Row, Runtime, Scan, SessionTimes, State, StoreId, StoredKey,
    Subject, SubjectIndex, Timestamp, Version,
};

use super::calls::{Call, Calls, Fault};
use super::runtime::START;

impl From<Fault> for CacheError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unreachable => Self::Unavailable("the test cut it off".into()),
            Fault::NoAnswer | Fault::Hangs | Fault::Panics => {
                Self::Unknown("the test lost the answer".into())
            }
            Fault::Refused => Self::Refused("the test said no".into()),
            Fault::Unusable => Self::Unusable("the test said no to all; say yes".into()),
        }
    }
}

impl From<Fault> for PersistenceError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unreachable => Self::Unavailable("the test cut it off".into()),
            Fault::NoAnswer | Fault::Hangs | Fault::Panics => {
                Self::Unknown("the test lost the answer".into())
            }
            Fault::Refused | Fault::Unusable => Self::Refused("the test said no".into()),
        }
    }
}

/// A [`MokaCache`] under the test's control. Clones are the same cache.
#[derive(Clone, Debug)]
pub struct TestCache {
    pub calls: Calls,
    moka: MokaCache,
    properties: CacheProperties,
    /// The servers that are down.
    dead: Arc<Mutex<HashSet<usize>>>,
    /// Keys under which another program has put an entry.
    foreign: Arc<Mutex<HashSet<String>>>,
    /// Keys for which no call is answered.
    silent: Arc<Mutex<HashSet<String>>>,
    /// The bound of the near cache that this one claims to be.
    freshness_bound: Option<Duration>,
    /// That of the store that was built last with this as a near cache.
    pub observer: Arc<Mutex<Option<Arc<dyn NearObserver>>>>,
}

impl TestCache {
    pub fn new() -> Self {
        let moka = MokaCache::builder().build();
        let properties = moka.properties();
        Self {
            calls: Calls::default(),
            moka,
            properties,
            dead: Arc::default(),
            foreign: Arc::default(),
            silent: Arc::default(),
            freshness_bound: None,
            observer: Arc::default(),
        }
    }

    /// Sets the properties that the cache reports.
    pub fn with_properties(mut self, properties: CacheProperties) -> Self {
        self.properties = properties;
        self
    }

    /// Makes the cache claim to be a near one, which other nodes have in their memory, too.
    pub fn near(mut self, freshness_bound: Duration) -> Self {
        self.freshness_bound = Some(freshness_bound);
        self
    }

    /// Takes the server of `key` down.
    pub fn kill_server_of(&self, key: &StoredKey) {
        self.dead.lock().unwrap().insert(self.server(key));
    }

    /// Brings all servers up again.
    pub fn revive_servers(&self) {
        self.dead.lock().unwrap().clear();
    }

    /// Makes the entry under `key` another program's.
    pub fn take_over(&self, key: &StoredKey) {
        self.foreign.lock().unwrap().insert(key.as_str().to_owned());
    }

    /// Makes all calls for `key` fail without an answer, and no others.
    pub fn silence(&self, key: &StoredKey) {
        self.silent.lock().unwrap().insert(key.as_str().to_owned());
    }

    /// Makes calls for all keys succeed again.
    pub fn end_silence(&self) {
        self.silent.lock().unwrap().clear();
    }

    /// Returns an error if `key` is silent, or its server is down, or has another program's entry there.
    fn check(&self, key: &StoredKey) -> Result<(), CacheError> {
        if self.dead.lock().unwrap().contains(&self.server(key)) {
            return Err(Fault::Unreachable.into());
        }
        if self.silent.lock().unwrap().contains(key.as_str()) {
            return Err(Fault::NoAnswer.into());
        }
        if self.foreign.lock().unwrap().contains(key.as_str()) {
            return Err(CacheError::WrongKey);
        }
        Ok(())
    }

    /// Returns the entry under `key`, uncounted.
    pub async fn peek(&self, key: &StoredKey) -> Option<Entry> {
        self.moka.get(key).await.unwrap()
    }

    /// Returns the record under `key`, uncounted. `None` also for a lease or a fence.
    pub async fn peek_record(&self, key: &StoredKey) -> Option<Arc<Record>> {
        match self.peek(key).await?.state {
            State::Value(value) => Some(value.record),
            State::Lease | State::Fence(_) => None,
        }
    }

    /// Returns the identity of the store that has cached the value under `key`.
    pub async fn store_of(&self, key: &StoredKey) -> StoreId {
        match self.peek(key).await.map(|entry| entry.state) {
            Some(State::Value(value)) => value.store,
            other => panic!("{other:?}"),
        }
    }

    /// Replaces the entry under `key`, uncounted.
    pub async fn plant(&self, key: &StoredKey, entry: Option<Entry>) {
        let expected = self.peek(key).await.map_or(Expected::Vacant, |entry| Expected::Stamp(entry.stamp));
        let planted = self.moka.compare_exchange(key, expected, entry, Duration::from_secs(3600)).await;
        assert_eq!(planted.unwrap(), Exchange::Stored);
    }
}

impl Cache for TestCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        self.check(key)?;
        self.calls.make(Call::Get, self.moka.get(key)).await
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        self.check(key)?;
        let call = match new.as_ref().map(|entry| &entry.state) {
            Some(State::Value(_)) => Call::PutValue,
            Some(State::Fence(_)) => Call::PutFence,
            Some(State::Lease) => Call::Acquire,
            None => Call::PutNothing,
        };
        self.calls.make(call, self.moka.compare_exchange(key, expected, new, ttl)).await
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        self.check(key)?;
        self.calls.make(Call::Acquire, self.moka.acquire(key, lease, ttl)).await
    }

    fn server(&self, key: &StoredKey) -> usize {
        usize::from(*key.as_bytes().last().unwrap()) % self.properties.servers
    }

    fn properties(&self) -> CacheProperties {
        self.properties
    }

    fn near(&self) -> Option<&dyn Near> {
        self.freshness_bound.is_some().then_some(self)
    }
}

/// Keeps nothing in memory.
impl Near for TestCache {
    fn peek(&self, _key: &StoredKey) -> Option<Entry> {
        None
    }

    fn forget(&self, _key: &StoredKey) {}

    fn freshness_bound(&self) -> Duration {
        self.freshness_bound.unwrap_or_default()
    }

    fn source(&self) -> NearSource {
        NearSource::SharedCache
    }

    fn refusal(&self) -> Option<&'static str> {
        None
    }

    fn start(
        &self,
        _runtime: &Arc<dyn Runtime>,
        observer: Arc<dyn NearObserver>,
        _notices: Option<Arc<dyn DatabaseNotices>>,
    ) -> Result<(), &'static str> {
        *self.observer.lock().unwrap() = Some(observer);
        Ok(())
    }

    fn watch(&self, _key: &StoredKey) -> Option<BoxFuture<bool>> {
        None
    }

    fn stop(&self) -> BoxFuture<()> {
        Box::pin(std::future::ready(()))
    }

    #[cfg(feature = "__simulation")]
    fn __peek_anyway(&self, _key: &StoredKey) -> Option<Entry> {
        None
    }

    #[cfg(feature = "__simulation")]
    fn __is_fresh(&self) -> bool {
        false
    }
}

/// A [`SqlitePersistence`] under the test's control. Clones are the same database.
#[derive(Clone, Debug)]
pub struct TestDb {
    pub calls: Calls,
    /// The database itself, for calls behind the store's back, which are not counted.
    pub sqlite: Arc<SqlitePersistence>,
    /// The database's clock. Without one, the time is [`START`].
    pub clock: Arc<Mutex<Option<Arc<dyn Runtime>>>>,
    /// A time that replaces the clock's.
    set_to: Arc<Mutex<Option<Timestamp>>>,
    /// The key whose updates and renames fail, and in which way.
    broken: Arc<Mutex<Option<(StoredKey, Fault)>>>,
    properties: PersistenceProperties,
}

impl TestDb {
    pub fn new(sqlite: SqlitePersistence) -> Self {
        let properties = sqlite.properties();
        Self {
            calls: Calls::default(),
            sqlite: Arc::new(sqlite),
            clock: Arc::default(),
            set_to: Arc::default(),
            broken: Arc::default(),
            properties,
        }
    }

    /// Makes every update and rename of `key` fail, and of no other key.
    pub fn fail_for(&self, key: &StoredKey, fault: Fault) {
        *self.broken.lock().unwrap() = Some((*key, fault));
    }

    async fn check(&self, key: &StoredKey) -> Result<(), PersistenceError> {
        let broken = *self.broken.lock().unwrap();
        match broken {
            Some((broken, fault)) if broken == *key => Ok(fault.strike().await?),
            _ => Ok(()),
        }
    }

    /// Sets the database's clock, which stands still from now on.
    pub fn set_clock(&self, time: Timestamp) {
        *self.set_to.lock().unwrap() = Some(time);
    }

    /// Sets the properties that the database reports.
    pub fn with_properties(mut self, properties: PersistenceProperties) -> Self {
        self.properties = properties;
        self
    }
}

impl Persistence for TestDb {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        self.calls.make(Call::Load, self.sqlite.load(key, now)).await
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        self.calls.make(Call::Insert, self.sqlite.insert(key, record)).await
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.check(key).await?;
        self.calls.make(Call::Update, self.sqlite.update(key, write, now)).await
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        self.calls.make(Call::Touch, self.sqlite.touch(key, expires_at, idle_since, now)).await
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.check(old).await?;
        self.calls.make(Call::Rename, self.sqlite.rename(old, new, write, now)).await
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        self.check(key).await?;
        self.calls.make(Call::Delete, self.sqlite.delete(key)).await
    }

    async fn delete_all(&self, keys: &[StoredKey]) -> Result<Vec<StoredKey>, PersistenceError> {
        self.calls.make(Call::Delete, self.sqlite.delete_all(keys)).await
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        self.calls.make(Call::DeleteExpired, self.sqlite.delete_expired(before, limit)).await
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        let set_to = *self.set_to.lock().unwrap();
        let running = self.clock.lock().unwrap().as_ref().map_or(START, |clock| clock.now());
        self.calls.make(Call::Now, async { Ok(set_to.unwrap_or(running)) }).await
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.calls.make(Call::Migrate, self.sqlite.migrate()).await
    }

    fn schema_sql(&self) -> String {
        self.sqlite.schema_sql()
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        self.calls.make(Call::CheckSchema, self.sqlite.check_schema()).await
    }

    fn properties(&self) -> PersistenceProperties {
        self.properties
    }
}

impl SubjectIndex for TestDb {
    async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
        self.calls.make(Call::List, self.sqlite.list_by_subject(subject, now, after, limit)).await
    }
}

impl Rotations for TestDb {
    async fn note_rotation(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
        self.calls.make(Call::NoteRotation, self.sqlite.note_rotation(rotation)).await
    }

    async fn rotations(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Rotation>, PersistenceError> {
        self.calls.make(Call::Rotations, self.sqlite.rotations(old, now, limit)).await
    }

    async fn migrate_rotations(&self) -> Result<(), PersistenceError> {
        self.calls.make(Call::MigrateRotations, self.sqlite.migrate_rotations()).await
    }

    fn rotations_sql(&self) -> String {
        self.sqlite.rotations_sql()
    }

    async fn check_rotations(&self) -> Result<(), PersistenceError> {
        self.calls.make(Call::CheckRotations, self.sqlite.check_rotations()).await
    }
}

impl Scan for TestDb {
    async fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, PersistenceError> {
        self.calls.make(Call::Scan, self.sqlite.scan(after, limit)).await
    }
}
