//! The contract of [`Persistence`], case by case.
//!
//! Every case passes the present to the database, and in nearly all of them it is the year 2020: a database
//! that asks its own clock finds everything expired.

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use session_core::{
    ExpiryWrite, Persistence, PersistenceError, Record, RecordWrite, Rotations, SessionKey, StoredKey,
    Subject, SubjectIndex, Timestamp, Version,
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

pub(crate) use deletes::THEN;

/// A fixture that makes handles to one migrated table, which no other program uses meanwhile.
///
/// A closure that returns a future of a database is one.
pub trait PersistenceFixture: Send + Sync + 'static {
    /// The database.
    type Persistence: Persistence;

    /// Opens another handle to the same table, as another node would.
    fn open(&self) -> impl Future<Output = Self::Persistence> + Send;

    /// Opens several handles to a table of their own, another one at each call, which is not made yet.
    /// Returns none if the fixture cannot do that. Cases that need it are then skipped. Defaults to none.
    fn open_before_migration(&self) -> impl Future<Output = Vec<Self::Persistence>> + Send {
        std::future::ready(Vec::new())
    }

    /// Damages the row under `key`, as another program might. Returns `false` if the fixture cannot do that.
    /// Cases that need it are then skipped. Defaults to `false`.
    fn damage(&self, key: &StoredKey, damage: Damage) -> impl Future<Output = bool> + Send {
        let _ = (key, damage);
        std::future::ready(false)
    }
}

/// A damage to a row by another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The payload or the subject can no longer be read. The row may no longer be listed under its subject.
    Record,
    /// The times can no longer be read, but the row is still found under its subject as one that has not
    /// expired.
    Times,
    /// The key becomes a text that is no stored key and takes its place in the order of keys: the key, a
    /// space, and more text.
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

/// A [`PersistenceFixture`] whose database keeps notes of rotations. Implemented for all of them.
pub trait RotationsFixture: PersistenceFixture<Persistence: Rotations> {}

impl<F: PersistenceFixture<Persistence: Rotations>> RotationsFixture for F {}

/// Returns all cases of this layer.
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

/// The present, unless a case passes another instant.
pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_600_000_000_123_457);

/// Returns a key that no other case and no other run uses, and for which every form of keys has room.
pub(crate) fn key() -> StoredKey {
    let random = SessionKey::generate().expect("the system has random numbers");
    StoredKey::parse(random.expose()).expect("it is a stored key")
}

pub(crate) fn subject(text: &str) -> Option<Subject> {
    Some(Subject::parse(text).expect("it is a subject"))
}

/// Returns a record that lives for an hour from [`NOW`] on.
pub(crate) fn record(payload: impl Into<Bytes>) -> Record {
    Record::new(payload.into(), NOW - HOUR, NOW + HOUR)
        .with_last_seen_at(NOW - MINUTE)
        .with_subject(subject("user-42"))
        // The database does not keep it.
        .with_version(Version::from_u64(fastrand::u64(..)))
}

/// Returns a record that differs from every [`record`] in all that an update writes, and in `created_at`.
pub(crate) fn another_record() -> Record {
    Record::new(format!("another {}", fastrand::u64(..)).into(), NOW - MINUTE, NOW + 2 * HOUR)
        .with_last_seen_at(NOW)
        .with_subject(subject("another user"))
}

/// Returns `row` after all of `record` was written to it, under `version`.
pub(crate) fn written(row: &Record, record: &Record, version: Version) -> Record {
    record.clone().with_created_at(row.created_at()).with_version(version)
}

/// Inserts `record`, and returns it as it must be found from now on.
pub(crate) async fn insert(db: &impl Persistence, key: &StoredKey, record: &Record) -> Record {
    let version = db.insert(key, record).await.expect("a row can be added under a new key");
    record.clone().with_version(version)
}

pub(crate) async fn load(db: &impl Persistence, key: &StoredKey, now: Timestamp) -> Option<Record> {
    // A database in memory never waits, and would keep other tasks from running.
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
    let written = db.update(key, RecordWrite::new(record).with_expiry(ExpiryWrite::Replace), now).await;
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

/// Opens several handles, as several nodes would.
pub(crate) async fn nodes<F: PersistenceFixture>(fixture: &F) -> Vec<Arc<F::Persistence>> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Arc::new(fixture.open().await));
    }
    nodes
}

/// Returns `true` if a write took place, and `false` for `Conflict`, `NotFound` and `AlreadyExists`. Any
/// other error fails the case.
pub(crate) fn took_place<T>(result: Result<T, PersistenceError>) -> bool {
    use PersistenceError::{AlreadyExists, Conflict, NotFound};
    match result {
        Ok(_) => true,
        Err(NotFound | Conflict | AlreadyExists) => false,
        Err(error) => panic!("the database answers: {error}"),
    }
}

/// Locks out other cases that remove sessions that expired before the year 2000, or that keep sessions from
/// that time: they share a table, so they run one after the other.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}
