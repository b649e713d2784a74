use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::SystemTime;

use session_core::{
    BoxFuture, DatabaseChannel, DatabaseNotices, ExpiredSession, ExpiredSessions, ExpiryWrite,
    NoticeListener, Persistence, PersistenceError, PersistenceProperties, Record, RecordWrite, Rotation,
    Rotations, Row, Scan, SchemaProblem, SessionTimes, StoreId, StoredKey, Subject, SubjectIndex, Timestamp,
    Version,
};

use crate::suite::persistence::Damage;

/// The largest payload, in bytes.
const MAX_PAYLOAD_BYTES: usize = 1 << 22;

/// A database of one table in memory, which reports writes: a map under a lock. A clone is another handle to the same table.
#[derive(Clone, Debug)]
pub struct MemoryPersistence {
    database: Arc<Mutex<Database>>,
}

#[derive(Debug, Default)]
struct Database {
    table: Option<HashMap<StoredKey, Record>>,
    /// The table of the notes of rotations.
    rotations: Option<Vec<Rotation>>,
    /// Counted over all keys, and never back, so no key has the same version again.
    last_version: u64,
    /// The rows that were damaged, and how.
    damaged: HashMap<StoredKey, Damage>,
    /// The rows under texts that are no stored keys.
    without_key: Vec<Record>,
    channels: Vec<Weak<Watcher>>,
}

impl Default for MemoryPersistence {
    /// Makes a database with an empty table.
    fn default() -> Self {
        let database = Database { table: Some(HashMap::new()), ..Database::default() };
        Self { database: Arc::new(Mutex::new(database)) }
    }
}

impl MemoryPersistence {
    /// Makes a database as it is before [`migrate`](Persistence::migrate).
    #[must_use]
    pub fn without_table() -> Self {
        Self { database: Arc::default() }
    }

    /// Damages the row under `key`, as another program might.
    pub fn damage(&self, key: &StoredKey, damage: Damage) {
        let mut database = self.lock();
        if damage == Damage::Key {
            // Under a text that is no stored key, no method finds it, and it still expires.
            let row = database.table.as_mut().and_then(|rows| rows.remove(key));
            database.without_key.extend(row);
        } else {
            database.damaged.insert(*key, damage);
        }
    }

    /// Cuts every channel.
    pub fn cut_channels(&self) {
        for watcher in self.lock().channels.drain(..).filter_map(|channel| channel.upgrade()) {
            watcher.is_cut.store(true, Ordering::SeqCst);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Database> {
        self.database.lock().expect("no holder of the lock panics")
    }
}

impl Database {
    fn rows(&mut self) -> Result<&mut HashMap<StoredKey, Record>, PersistenceError> {
        let missing = || SchemaProblem::Missing { table: "sessions".into() };
        self.table.as_mut().ok_or_else(|| missing().into())
    }

    fn notes(&mut self) -> Result<&mut Vec<Rotation>, PersistenceError> {
        let missing = || SchemaProblem::MissingRotations { table: "sessions_rotations".into() };
        self.rotations.as_mut().ok_or_else(|| missing().into())
    }

    /// Returns the row to which a write with these conditions applies.
    fn row_to_write(
        &mut self,
        key: &StoredKey,
        expected: Option<Version>,
        now: Timestamp,
    ) -> Result<&mut Record, PersistenceError> {
        let row = self.rows()?.get_mut(key).filter(|row| !row.is_expired(now));
        let row = row.ok_or(PersistenceError::NotFound)?;
        if expected.is_some_and(|expected| expected != row.version()) {
            return Err(PersistenceError::Conflict);
        }
        Ok(row)
    }

    /// Returns `row`, unless the row under `key` has a damage that `matters`.
    fn readable<T>(
        &self,
        key: &StoredKey,
        row: T,
        matters: fn(Damage) -> bool,
    ) -> Result<T, PersistenceError> {
        match self.damaged.get(key) {
            Some(damage) if matters(*damage) => Err(PersistenceError::CorruptRow("it was damaged".into())),
            _ => Ok(row),
        }
    }

    /// Reports a write of `key`, while it is made.
    fn report(&mut self, key: &StoredKey) {
        self.channels.retain(|channel| channel.strong_count() > 0);
        for watcher in self.channels.iter().filter_map(Weak::upgrade) {
            watcher.listener.changed(key);
        }
    }

    fn next_version(&mut self) -> Version {
        self.last_version += 1;
        Version::from_u64(self.last_version)
    }
}

fn check_size(record: &Record) -> Result<(), PersistenceError> {
    match record.payload().len() {
        actual if actual > MAX_PAYLOAD_BYTES => {
            Err(PersistenceError::TooLarge { actual, limit: MAX_PAYLOAD_BYTES })
        }
        _ => Ok(()),
    }
}

/// Returns `row` after `record` was written to it.
fn written(row: &Record, write: RecordWrite<'_>, version: Version) -> Record {
    let RecordWrite { record, expiry, .. } = write;
    let expires_at = match expiry {
        ExpiryWrite::Extend => record.expires_at().max(row.expires_at()),
        ExpiryWrite::Replace => record.expires_at(),
    };
    record.clone().with_created_at(row.created_at()).with_expires_at(expires_at).with_version(version)
}

impl Persistence for MemoryPersistence {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        let mut database = self.lock();
        let row = database.rows()?.get(key).filter(|row| !row.is_expired(now)).cloned();
        row.map(|row| database.readable(key, row, |_| true)).transpose()
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        check_size(record)?;
        let mut database = self.lock();
        if database.rows()?.contains_key(key) {
            return Err(PersistenceError::AlreadyExists);
        }
        let version = database.next_version();
        database.rows()?.insert(*key, record.clone().with_version(version));
        database.report(key);
        Ok(version)
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        check_size(write.record)?;
        let mut database = self.lock();
        let version = database.next_version();
        let row = database.row_to_write(key, write.expected, now)?;
        *row = written(row, write, version);
        database.report(key);
        Ok(version)
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        let mut database = self.lock();
        let row = database.row_to_write(key, None, now)?;
        if row.last_seen_at() > idle_since {
            return Ok(false);
        }
        *row = row
            .clone()
            .with_expires_at(expires_at.max(row.expires_at()))
            .with_last_seen_at(now.max(row.last_seen_at()));
        database.report(key);
        Ok(true)
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        check_size(write.record)?;
        let mut database = self.lock();
        let version = database.next_version();
        let row = database.row_to_write(old, write.expected, now)?;
        let renamed = written(row, write, version);
        let rows = database.rows()?;
        if rows.contains_key(new) {
            return Err(PersistenceError::AlreadyExists);
        }
        rows.remove(old);
        rows.insert(*new, renamed);
        database.report(old);
        database.report(new);
        Ok(version)
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        let mut database = self.lock();
        database.damaged.remove(key);
        let was_there = database.rows()?.remove(key).is_some();
        if was_there {
            database.report(key);
        }
        Ok(was_there)
    }

    async fn delete_all(&self, keys: &[StoredKey]) -> Result<Vec<StoredKey>, PersistenceError> {
        let mut database = self.lock();
        let mut removed = Vec::new();
        for key in keys {
            database.damaged.remove(key);
            if database.rows()?.remove(key).is_some() {
                database.report(key);
                removed.push(*key);
            }
        }
        Ok(removed)
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        let mut database = self.lock();
        let rows = database.rows()?;
        let expired = rows.iter().filter(|(_, row)| row.is_expired(before)).map(|(key, _)| *key);
        let mut sessions = Vec::new();
        for key in expired.take(limit as usize).collect::<Vec<_>>() {
            let subject = rows.remove(&key).and_then(|row| row.subject().cloned());
            sessions.push((key, subject));
        }
        let sessions = sessions.into_iter().map(|(key, subject)| {
            let is_readable = database.damaged.remove(&key) != Some(Damage::Record);
            ExpiredSession::new(key, subject.filter(|_| is_readable))
        });
        let sessions = sessions.collect::<Vec<_>>();
        for session in &sessions {
            database.report(&session.key);
        }
        let left = (limit as usize).saturating_sub(sessions.len());
        let without_key =
            database.without_key.extract_if(.., |row| row.is_expired(before)).take(left).count();
        let notes = database
            .rotations
            .iter_mut()
            .flat_map(|notes| notes.extract_if(.., |note| note.expires_at <= before).take(limit as usize));
        let has_more = limit > 0 && notes.count() >= limit as usize;
        let removed = ExpiredSessions::new((sessions.len() + without_key) as u64, sessions);
        Ok(removed.with_more(has_more))
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        Ok(SystemTime::now().into())
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.lock().table.get_or_insert_default();
        Ok(())
    }

    fn schema_sql(&self) -> String {
        "-- A map in memory needs none.\n".into()
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        self.lock().rows().map(|_| ())
    }

    fn properties(&self) -> PersistenceProperties {
        PersistenceProperties::new(MAX_PAYLOAD_BYTES)
            .with_deletes_together()
            .with_table_id(StoreId::of(["sessions"]).0)
    }

    /// Reports every write, also one of this handle.
    fn notify(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str> {
        Ok(Arc::new(self.clone()))
    }
}

impl DatabaseNotices for MemoryPersistence {
    fn open_channel(
        self: Arc<Self>,
        listener: Arc<dyn NoticeListener>,
    ) -> BoxFuture<Result<Box<dyn DatabaseChannel>, PersistenceError>> {
        let watcher = Arc::new(Watcher { listener, is_cut: AtomicBool::new(false) });
        self.lock().channels.push(Arc::downgrade(&watcher));
        Box::pin(std::future::ready(Ok(Box::new(Watching(watcher)) as _)))
    }
}

#[derive(Debug)]
struct Watcher {
    listener: Arc<dyn NoticeListener>,
    is_cut: AtomicBool,
}

/// The open end of a channel.
struct Watching(Arc<Watcher>);

impl DatabaseChannel for Watching {
    fn ping(&self) -> BoxFuture<Result<(), PersistenceError>> {
        let cut = || PersistenceError::Unavailable("the channel was cut".into());
        let is_cut = self.0.is_cut.load(Ordering::SeqCst);
        Box::pin(std::future::ready(if is_cut { Err(cut()) } else { Ok(()) }))
    }
}

impl MemoryPersistence {
    /// Returns a page of the rows for which `is_meant` is true, with the `contents` of each.
    fn page<T>(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
        is_meant: impl Fn(&Record) -> bool,
        contents: impl Fn(&Database, &StoredKey, &Record) -> Result<T, PersistenceError>,
    ) -> Result<Vec<Row<T>>, PersistenceError> {
        let mut database = self.lock();
        let after = after.map_or(&b""[..], StoredKey::as_bytes);
        let rows = database.rows()?.iter().filter(|(key, row)| key.as_bytes() > after && is_meant(row));
        let mut rows = rows.map(|(key, row)| (*key, row.clone())).collect::<Vec<_>>();
        rows.sort_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
        rows.truncate(limit as usize);
        let read = |(key, row): &(StoredKey, Record)| Row::new(*key, contents(&database, key, row));
        Ok(rows.iter().map(read).collect())
    }
}

impl SubjectIndex for MemoryPersistence {
    async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
        let is_meant = |row: &Record| row.subject() == Some(subject) && !row.is_expired(now);
        self.page(after, limit, is_meant, |database, key, row| {
            database.readable(key, row.into(), |damage| damage == Damage::Times)
        })
    }
}

impl Rotations for MemoryPersistence {
    async fn note_rotation(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
        let mut database = self.lock();
        let notes = database.notes()?;
        match notes.iter_mut().find(|note| (note.old, note.new) == (rotation.old, rotation.new)) {
            Some(note) => note.expires_at = note.expires_at.max(rotation.expires_at),
            None => notes.push(rotation.clone()),
        }
        notes.sort_by_key(|note| note.expires_at);
        Ok(())
    }

    async fn rotations(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Rotation>, PersistenceError> {
        let mut database = self.lock();
        let found = database.notes()?.iter().filter(|note| note.old == *old && note.expires_at > now);
        Ok(found.take(limit as usize).cloned().collect())
    }

    async fn migrate_rotations(&self) -> Result<(), PersistenceError> {
        self.lock().rotations.get_or_insert_default();
        Ok(())
    }

    fn rotations_sql(&self) -> String {
        "-- A list in memory needs none.\n".into()
    }

    async fn check_rotations(&self) -> Result<(), PersistenceError> {
        self.lock().notes().map(|_| ())
    }
}

impl Scan for MemoryPersistence {
    async fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, PersistenceError> {
        self.page(after, limit, |_| true, |database, key, row| database.readable(key, row.clone(), |_| true))
    }
}
