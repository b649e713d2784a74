//! The database, with a timeout and a latency histogram for every call.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use session_core::{
    BoxFuture, ExpiredSessions, Persistence, PersistenceError, Record, RecordWrite, Rotation, Rotations, Row,
    Runtime, Scan, SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp, Version,
};

use crate::Error;
use crate::runtime::within;
use crate::telemetry::metrics::DatabaseLatencies;

pub(crate) struct Database<P> {
    db: P,
    read_timeout: Duration,
    write_timeout: Duration,
    latencies: DatabaseLatencies,
    runtime: Arc<dyn Runtime>,
}

/// Reads for as long as the read timeout allows.
macro_rules! read {
    ($self:ident.$operation:ident($($argument:expr),*)) => {{
        let call = pin!($self.db.$operation($($argument),*));
        let call = pin!($self.latencies.$operation.time(&*$self.runtime, call));
        match within(&*$self.runtime, $self.read_timeout, call).await {
            Some(result) => result.map_err(|error| Error::Database(Arc::new(error))),
            None => Err(no_answer()),
        }
    }};
}

/// Runs a statement for as long as the write timeout allows.
macro_rules! write {
    ($self:ident.$operation:ident($($argument:expr),*)) => {{
        let call = pin!($self.db.$operation($($argument),*));
        let call = pin!($self.latencies.$operation.time(&*$self.runtime, call));
        match within(&*$self.runtime, $self.write_timeout, call).await {
            Some(result) => result.map_err(Error::from),
            None => Err(PersistenceError::Unknown("no answer within the write timeout".into()).into()),
        }
    }};
}

/// Returns the error of a read that was not answered in time.
pub(crate) fn no_answer() -> Error {
    Error::Database(Arc::new(PersistenceError::Unavailable("no answer within the read timeout".into())))
}

impl<P: Persistence> Database<P> {
    pub(crate) fn new(
        db: P,
        read_timeout: Duration,
        write_timeout: Duration,
        latencies: DatabaseLatencies,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        Self { db, read_timeout, write_timeout, latencies, runtime }
    }

    pub(crate) async fn load(&self, key: &StoredKey) -> Result<Option<Record>, Error> {
        read!(self.load(key, self.runtime.now()))
    }

    pub(crate) async fn now(&self) -> Result<Timestamp, Error> {
        read!(self.now())
    }

    pub(crate) async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, Error> {
        write!(self.insert(key, record))
    }

    pub(crate) async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, Error> {
        write!(self.update(key, write, now))
    }

    pub(crate) async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, Error> {
        write!(self.touch(key, expires_at, idle_since, now))
    }

    pub(crate) async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, Error> {
        write!(self.rename(old, new, write, now))
    }

    pub(crate) async fn delete(&self, key: &StoredKey) -> Result<bool, Error> {
        write!(self.delete(key))
    }

    pub(crate) async fn delete_all(&self, keys: &[StoredKey]) -> Result<Vec<StoredKey>, Error> {
        write!(self.delete_all(keys))
    }

    /// Returns the present, by this process's clock.
    pub(crate) fn present(&self) -> Timestamp {
        self.runtime.now()
    }

    pub(crate) fn sleep(&self, time: Duration) -> BoxFuture<()> {
        self.runtime.sleep(time)
    }

    /// Returns `true` if several sessions are removed by one statement.
    pub(crate) fn deletes_together(&self) -> bool {
        self.db.properties().deletes_together
    }

    pub(crate) async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, Error> {
        write!(self.delete_expired(before, limit))
    }
}

impl<P: SubjectIndex> Database<P> {
    pub(crate) async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, Error> {
        read!(self.list_by_subject(subject, now, after, limit))
    }
}

impl<P: Rotations> Database<P> {
    pub(crate) async fn note_rotation(&self, rotation: &Rotation) -> Result<(), Error> {
        write!(self.note_rotation(rotation))
    }

    pub(crate) async fn rotations(&self, old: &StoredKey, limit: u32) -> Result<Vec<Rotation>, Error> {
        read!(self.rotations(old, self.runtime.now(), limit))
    }
}

impl<P: Scan> Database<P> {
    pub(crate) async fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, Error> {
        read!(self.scan(after, limit))
    }
}

impl<P: fmt::Debug> fmt::Debug for Database<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.db.fmt(f)
    }
}
