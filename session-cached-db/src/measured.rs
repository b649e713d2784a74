//! The database, every call of it timed.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use session_core::{
    ExpiryWrite, Persistence, PersistenceError, PersistenceProperties, Record, Row, Runtime, Scan,
    SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp, Version,
};

use crate::metrics::DatabaseLatencies;

pub(crate) struct Measured<P> {
    db: P,
    latencies: DatabaseLatencies,
    runtime: Arc<dyn Runtime>,
}

impl<P> Measured<P> {
    pub(crate) fn new(db: P, latencies: DatabaseLatencies, runtime: Arc<dyn Runtime>) -> Self {
        Self { db, latencies, runtime }
    }
}

macro_rules! timed {
    ($self:ident.$operation:ident($($argument:expr),*)) => {
        $self.latencies.$operation.time(&*$self.runtime, pin!($self.db.$operation($($argument),*))).await
    };
}

#[deny(clippy::missing_trait_methods)]
impl<P: Persistence> Persistence for Measured<P> {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        timed!(self.load(key, now))
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        timed!(self.insert(key, record))
    }

    async fn update(
        &self,
        key: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        timed!(self.update(key, record, expected, expiry, now))
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        timed!(self.touch(key, expires_at, idle_since, now))
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        timed!(self.rename(old, new, record, expected, expiry, now))
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        timed!(self.delete(key))
    }

    async fn delete_expired(&self, before: Timestamp, limit: u32) -> Result<u64, PersistenceError> {
        timed!(self.delete_expired(before, limit))
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        timed!(self.now())
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.db.migrate().await
    }

    fn schema_sql(&self) -> String {
        self.db.schema_sql()
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        self.db.check_schema().await
    }

    fn properties(&self) -> PersistenceProperties {
        self.db.properties()
    }
}

#[deny(clippy::missing_trait_methods)]
impl<P: SubjectIndex> SubjectIndex for Measured<P> {
    async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
        timed!(self.list_by_subject(subject, now, after, limit))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<P: Scan> Scan for Measured<P> {
    async fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, PersistenceError> {
        timed!(self.scan(after, limit))
    }
}

impl<P: fmt::Debug> fmt::Debug for Measured<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.db.fmt(f)
    }
}
