//! The contract of [`Persistence`], case by case.
//!
//! Every case tells the database what time it is, and nearly all of them say that it is the year 2020: a database that
//! asks its own clock finds everything expired.

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use session_core::{
    ExpiryWrite, Persistence, PersistenceError, Record, SessionKey, StoredKey, Subject, SubjectIndex,
    Timestamp, Version,
};
use tokio::sync::{Mutex, MutexGuard};

use crate::suite::case::Case;

pub mod deletes;
pub mod expiry;
pub mod histories;
pub mod inserts;
pub mod loads;
pub mod records;
pub mod renames;
pub mod schema;
pub mod touches;
pub mod updates;

/// Makes handles to one table that is migrated, and that nobody else uses meanwhile.
///
/// A closure that returns a future of a database is one, too.
pub trait PersistenceFixture: Send + Sync + 'static {
    /// The database.
    type Persistence: Persistence;

    /// Another handle to the same table, as another node has it.
    fn open(&self) -> impl Future<Output = Self::Persistence> + Send;

    /// Several handles to a table of their own, new at each call, which nobody has made yet. None if that cannot be
    /// had; cases that need it are skipped then.
    fn open_before_migration(&self) -> impl Future<Output = Vec<Self::Persistence>> + Send {
        std::future::ready(Vec::new())
    }

    /// Damages the row under `key`, as another program might. Returns `false` if that cannot be had; cases that need it
    /// are skipped then.
    fn damage(&self, key: &StoredKey, damage: Damage) -> impl Future<Output = bool> + Send {
        let _ = (key, damage);
        std::future::ready(false)
    }
}

/// What is done to a row from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The payload or the subject can no longer be read. It may no longer be listed as one of its subject.
    Record,
    /// The times can no longer be read, and still the row is found as one of its subject that has not expired.
    Times,
    /// Its key becomes a text that is no stored key, and that comes in its place in the order of keys: the key, a space,
    /// and something.
    Key,
}

impl<F, Fut> PersistenceFixture for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output: Persistence> + Send,
{
    type Persistence = Fut::Output;

    fn open(&self) -> impl Future<Output = Self::Persistence> + Send {
        self()
    }
}

/// A [`PersistenceFixture`] whose table has an index of subjects. Implemented for all of them.
pub trait SubjectIndexFixture: PersistenceFixture<Persistence: SubjectIndex> {}

impl<F: PersistenceFixture<Persistence: SubjectIndex>> SubjectIndexFixture for F {}

/// All cases of this layer.
#[must_use]
pub fn cases<F: PersistenceFixture>() -> Vec<Case<F>> {
    let parts = [
        loads::cases(),
        records::cases(),
        expiry::cases(),
        inserts::cases(),
        updates::cases(),
        touches::cases(),
        renames::cases(),
        deletes::cases(),
        schema::cases(),
        histories::cases(),
    ];
    parts.into_iter().flatten().collect()
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const MICRO: Duration = Duration::from_micros(1);

/// What time it is, if nothing else is said.
pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_600_000_000_123_457);

/// A key that no other case and no other run uses, and that every form of keys has room for.
pub(crate) fn key() -> StoredKey {
    let random = SessionKey::generate().expect("the system has random numbers");
    StoredKey::parse(random.expose()).expect("it is a stored key")
}

pub(crate) fn subject(text: &str) -> Option<Subject> {
    Some(Subject::parse(text).expect("it is a subject"))
}

/// A record that lives for an hour from [`NOW`] on.
pub(crate) fn record(payload: impl Into<Bytes>) -> Record {
    Record::new(payload.into(), NOW - HOUR, NOW + HOUR)
        .with_last_seen_at(NOW - MINUTE)
        .with_subject(subject("user-42"))
        // Not for the database to keep.
        .with_version(Version::from_u64(fastrand::u64(..)))
}

/// A record that differs from every [`record`] in all that an update writes, and in `created_at`.
pub(crate) fn another_record() -> Record {
    Record::new(format!("another {}", fastrand::u64(..)).into(), NOW - MINUTE, NOW + 2 * HOUR)
        .with_last_seen_at(NOW)
        .with_subject(subject("somebody else"))
}

/// `row` after all of `record` was written to it, under `version`.
pub(crate) fn written(row: &Record, record: &Record, version: Version) -> Record {
    Record::new(record.payload().clone(), row.created_at(), record.expires_at())
        .with_last_seen_at(record.last_seen_at())
        .with_subject(record.subject().cloned())
        .with_version(version)
}

/// Adds `record`, and gives it back as it must be found from now on.
pub(crate) async fn insert(db: &impl Persistence, key: &StoredKey, record: &Record) -> Record {
    let version = db.insert(key, record).await.expect("a row can be added under a new key");
    record.clone().with_version(version)
}

pub(crate) async fn load(db: &impl Persistence, key: &StoredKey, now: Timestamp) -> Option<Record> {
    // A database in memory never waits, and would keep others from getting on.
    tokio::task::yield_now().await;
    db.load(key, now).await.expect("the database answers")
}

/// Replaces everything, whatever the version.
pub(crate) async fn replace(
    db: &impl Persistence,
    key: &StoredKey,
    record: &Record,
    now: Timestamp,
) -> Version {
    let written = db.update(key, record, None, ExpiryWrite::Replace, now).await;
    written.expect("a session that is there can be updated")
}

/// Fails unless `result` is the error that `expected` is a pattern of.
macro_rules! assert_refused {
    ($result:expr, $expected:ident) => {
        let result = $result;
        assert!(
            matches!(&result, Err(session_core::PersistenceError::$expected)),
            "should be {}, and is {result:?}",
            stringify!($expected)
        );
    };
}

pub(crate) use assert_refused;

/// Several handles, as several nodes have them.
pub(crate) async fn nodes<F: PersistenceFixture>(fixture: &F) -> Vec<Arc<F::Persistence>> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Arc::new(fixture.open().await));
    }
    nodes
}

/// Whether a write took place; anything but it or `Conflict`, `NotFound`, `AlreadyExists` fails the case.
pub(crate) fn took_place<T>(result: Result<T, PersistenceError>) -> bool {
    use PersistenceError::{AlreadyExists, Conflict, NotFound};
    match result {
        Ok(_) => true,
        Err(NotFound | Conflict | AlreadyExists) => false,
        Err(error) => panic!("the database answers: {error}"),
    }
}

/// For cases that remove what has expired before the year 2000, or keep sessions from that time: they share a table,
/// and run one after the other.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}
