//! The world as a store sees it: a cache and a database, which do nothing by themselves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cache_backends::near::{NearCache, NotifiedCache};
use session_core::{
    Acquired, BoxFuture, Cache, CacheError, CacheProperties, DatabaseChannel, DatabaseNotices, Entry,
    Exchange, Expected, ExpiredSession, ExpiredSessions, KeyForm, Near, NoticeChannel, NoticeListener,
    NoticeSource, Persistence, PersistenceError, PersistenceProperties, Record, RecordWrite, Rotation,
    Rotations, Row, Scope, SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp, Version,
};

use super::call::{Effect, Reply};
use super::settings::{KEYS, STATEMENT_BOUND};
use super::task_id::TaskId;
use super::world::{Shared, lock};

/// A call on its way.
struct Calling {
    world: Shared,
    effect: Option<Effect>,
    sent_by: Option<TaskId>,
}

impl Calling {
    fn new(world: &Shared, effect: Effect) -> Self {
        Self { world: Arc::clone(world), effect: Some(effect), sent_by: None }
    }
}

impl Future for Calling {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        let world = Arc::clone(&self.world);
        let mut world = lock(&world);
        if let Some(effect) = self.effect.take() {
            self.sent_by = Some(world.send(effect, context.waker()));
            return Poll::Pending;
        }
        let task = self.sent_by.expect("polled after it was answered");
        match world.take_reply(task, context.waker()) {
            Some(reply) => {
                self.sent_by = None;
                Poll::Ready(reply)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        if let Some(task) = self.sent_by {
            lock(&self.world).abandon(task);
        }
    }
}

/// Returns the position of `key` in the world. The probe key has none.
fn index(key: &StoredKey) -> Option<usize> {
    KEYS.iter().position(|known| *known == key.as_str())
}

fn known(key: &StoredKey) -> usize {
    index(key).expect("one of the keys of the run")
}

#[derive(Debug)]
pub(super) struct SimCache {
    pub(super) world: Shared,
    pub(super) scope: Scope,
    pub(super) process: usize,
    /// It refuses every channel.
    pub(super) is_deaf: bool,
}

fn cache_error(reply: Reply) -> CacheError {
    match reply {
        Reply::Refused => CacheError::Unavailable("simulated".into()),
        Reply::Unknown => CacheError::Unknown("simulated".into()),
        other => panic!("not an answer of a cache: {other:?}"),
    }
}

impl Cache for SimCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        // The probe asks only whether the cache answers, so any key will do.
        let key = index(key).unwrap_or(0);
        match Calling::new(&self.world, Effect::Get(key)).await {
            Reply::Found(found) => Ok(found),
            other => Err(cache_error(other)),
        }
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        match Calling::new(&self.world, Effect::Exchange(known(key), expected, new, ttl)).await {
            Reply::Exchanged(exchange) => Ok(exchange),
            other => Err(cache_error(other)),
        }
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        match Calling::new(&self.world, Effect::Acquire(known(key), lease, ttl)).await {
            Reply::Acquired(acquired) => Ok(acquired),
            other => Err(cache_error(other)),
        }
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(self.scope)
    }
}

impl NoticeSource for SimCache {
    type Channel = SimChannel;

    /// Opens the channel at once: until it is used, it changes nothing.
    async fn open_channel(&self, listener: Arc<dyn NoticeListener>) -> Result<SimChannel, CacheError> {
        if self.is_deaf {
            return Err(CacheError::Refused("simulated".into()));
        }
        let number = lock(&self.world).open_channel(self.process, false, listener);
        Ok(SimChannel { world: Arc::clone(&self.world), number })
    }
}

/// A connection to the simulated cache on which reports and answers come in order.
#[derive(Debug)]
pub(super) struct SimChannel {
    world: Shared,
    number: usize,
}

impl NoticeChannel for SimChannel {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        match Calling::new(&self.world, Effect::Watch(self.number, known(key))).await {
            Reply::Found(found) => Ok(found),
            other => Err(cache_error(other)),
        }
    }

    async fn ping(&self) -> Result<(), CacheError> {
        match Calling::new(&self.world, Effect::Ping(self.number)).await {
            Reply::Ponged => Ok(()),
            other => Err(cache_error(other)),
        }
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        lock(&self.world).close_channel(self.number);
    }
}

/// The cache of a process: the simulated one, memory in front of it, or memory alone.
#[derive(Clone, Debug)]
pub(super) enum NodeCache {
    Plain(Arc<SimCache>),
    Near(NearCache<SimCache>),
    Notified(NotifiedCache),
}

impl NodeCache {
    /// Returns what memory has under `key`, whether or not it may be shown.
    pub(super) fn present(&self, key: &StoredKey) -> Option<Entry> {
        match self {
            Self::Plain(_) => None,
            Self::Near(cache) => cache.__present(key),
            Self::Notified(cache) => cache.__present(key),
        }
    }

    /// Returns whether memory may answer, until when, and whether there is a channel.
    pub(super) fn state(&self) -> (bool, u64, bool) {
        match self {
            Self::Plain(_) => (false, 0, false),
            Self::Near(cache) => cache.__state(),
            Self::Notified(cache) => cache.__state(),
        }
    }
}

impl Cache for NodeCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        match self {
            Self::Plain(cache) => cache.get(key).await,
            Self::Near(cache) => cache.get(key).await,
            Self::Notified(cache) => cache.get(key).await,
        }
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        match self {
            Self::Plain(cache) => cache.compare_exchange(key, expected, new, ttl).await,
            Self::Near(cache) => cache.compare_exchange(key, expected, new, ttl).await,
            Self::Notified(cache) => cache.compare_exchange(key, expected, new, ttl).await,
        }
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        match self {
            Self::Plain(cache) => cache.acquire(key, lease, ttl).await,
            Self::Near(cache) => cache.acquire(key, lease, ttl).await,
            Self::Notified(cache) => cache.acquire(key, lease, ttl).await,
        }
    }

    fn properties(&self) -> CacheProperties {
        match self {
            Self::Plain(cache) => cache.properties(),
            Self::Near(cache) => cache.properties(),
            Self::Notified(cache) => cache.properties(),
        }
    }

    fn near(&self) -> Option<&dyn Near> {
        match self {
            Self::Plain(_) => None,
            Self::Near(cache) => cache.near(),
            Self::Notified(cache) => cache.near(),
        }
    }
}

#[derive(Debug)]
pub(super) struct SimDb {
    pub(super) world: Shared,
    pub(super) process: usize,
    /// It reports what is committed.
    pub(super) reports: bool,
}

/// The reports of the simulated database to a process.
#[derive(Debug)]
struct SimNotices {
    world: Shared,
    process: usize,
}

impl DatabaseNotices for SimNotices {
    /// Opens the channel at once: what is committed from here on is reported.
    fn open_channel(
        self: Arc<Self>,
        listener: Arc<dyn NoticeListener>,
    ) -> BoxFuture<Result<Box<dyn DatabaseChannel>, PersistenceError>> {
        let number = lock(&self.world).open_channel(self.process, true, listener);
        let channel = SimChannel { world: Arc::clone(&self.world), number };
        Box::pin(std::future::ready(Ok(Box::new(channel) as _)))
    }
}

impl DatabaseChannel for SimChannel {
    fn ping(&self) -> BoxFuture<Result<(), PersistenceError>> {
        let calling = Calling::new(&self.world, Effect::Ping(self.number));
        Box::pin(async move {
            match calling.await {
                Reply::Ponged => Ok(()),
                other => Err(db_error(other)),
            }
        })
    }
}

fn db_error(reply: Reply) -> PersistenceError {
    match reply {
        Reply::NotFound => PersistenceError::NotFound,
        Reply::Conflict => PersistenceError::Conflict,
        Reply::AlreadyExists => PersistenceError::AlreadyExists,
        Reply::Refused => PersistenceError::Unavailable("simulated".into()),
        Reply::Unknown => PersistenceError::Unknown("simulated".into()),
        other => panic!("not an answer of a database: {other:?}"),
    }
}

impl SimDb {
    async fn committed(&self, effect: Effect) -> Result<Version, PersistenceError> {
        match Calling::new(&self.world, effect).await {
            Reply::Committed(version) => Ok(version),
            other => Err(db_error(other)),
        }
    }
}

impl Persistence for SimDb {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        match Calling::new(&self.world, Effect::Load(known(key), now)).await {
            Reply::Loaded(found) => Ok(found),
            other => Err(db_error(other)),
        }
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        self.committed(Effect::Insert(known(key), record.clone())).await
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        let RecordWrite { record, expected, expiry, .. } = write;
        self.committed(Effect::Update(known(key), record.clone(), expected, expiry, now)).await
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        match Calling::new(&self.world, Effect::Touch(known(key), expires_at, idle_since, now)).await {
            Reply::Touched(is_due) => Ok(is_due),
            other => Err(db_error(other)),
        }
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        let keys = [known(old), known(new)];
        let RecordWrite { record, expected, expiry, .. } = write;
        self.committed(Effect::Rename(keys, record.clone(), expected, expiry, now)).await
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        match Calling::new(&self.world, Effect::Delete(known(key))).await {
            Reply::Deleted(was_there) => Ok(was_there),
            other => Err(db_error(other)),
        }
    }

    async fn delete_all(&self, keys: &[StoredKey]) -> Result<Vec<StoredKey>, PersistenceError> {
        match Calling::new(&self.world, Effect::DeleteAll(keys.iter().map(known).collect())).await {
            Reply::DeletedAll(removed) => Ok(removed),
            other => Err(db_error(other)),
        }
    }

    async fn delete_expired(&self, before: Timestamp, _: u32) -> Result<ExpiredSessions, PersistenceError> {
        match Calling::new(&self.world, Effect::DeleteExpired(before)).await {
            Reply::DeletedExpired(keys) => {
                let sessions = keys.into_iter().map(|key| ExpiredSession::new(key, None)).collect::<Vec<_>>();
                Ok(ExpiredSessions::new(sessions.len() as u64, sessions))
            }
            other => Err(db_error(other)),
        }
    }

    /// Answers at once: the call changes nothing, and its answer holds at any time.
    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        Ok(lock(&self.world).now)
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        Ok(())
    }

    fn schema_sql(&self) -> String {
        String::new()
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        Ok(())
    }

    fn properties(&self) -> PersistenceProperties {
        PersistenceProperties::new(1 << 20)
            .with_deletes_together()
            .with_keys(KeyForm::Plain, StoredKey::MAX_LEN)
            .with_statement_bound(STATEMENT_BOUND)
    }

    fn notify(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str> {
        let notices = SimNotices { world: Arc::clone(&self.world), process: self.process };
        if self.reports { Ok(Arc::new(notices)) } else { Err("it does not report in this scenario") }
    }
}

impl SubjectIndex for SimDb {
    async fn list_by_subject(
        &self,
        _: &Subject,
        now: Timestamp,
        _: Option<&StoredKey>,
        _: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
        match Calling::new(&self.world, Effect::List(now)).await {
            Reply::Listed(rows) => {
                Ok(rows.into_iter().map(|(key, times)| Row::new(key, Ok(times))).collect())
            }
            other => Err(db_error(other)),
        }
    }
}

impl Rotations for SimDb {
    async fn note_rotation(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
        match Calling::new(&self.world, Effect::Note(rotation.clone())).await {
            Reply::Noted => Ok(()),
            other => Err(db_error(other)),
        }
    }

    async fn rotations(
        &self,
        old: &StoredKey,
        now: Timestamp,
        _: u32,
    ) -> Result<Vec<Rotation>, PersistenceError> {
        match Calling::new(&self.world, Effect::Notes(known(old), now)).await {
            Reply::Notes(notes) => Ok(notes),
            other => Err(db_error(other)),
        }
    }

    async fn migrate_rotations(&self) -> Result<(), PersistenceError> {
        Ok(())
    }
    fn rotations_sql(&self) -> String {
        String::new()
    }
    async fn check_rotations(&self) -> Result<(), PersistenceError> {
        Ok(())
    }
}
