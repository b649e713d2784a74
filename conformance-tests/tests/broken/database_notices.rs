//! Databases whose reports are wrong in one way each, and the case that must notice it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conformance_tests::reference::MemoryPersistence;
use session_core::{
    BoxFuture, DatabaseChannel, DatabaseNotices, ExpiredSessions, NoticeListener, Persistence,
    PersistenceError, PersistenceProperties, Record, RecordWrite, StoredKey, Timestamp, Version,
};

/// A kind of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    None,
    Insert,
    Update,
    Touch,
    Rename,
    Delete,
    Reap,
}

/// The fault of a broken database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No fault. The suite must pass, which shows that the other databases fail because of their faults.
    Nothing,
    KeepsSecret(Write),
    ReportsNewKeysOnly,
    ReportsOneReapedSession,
    ServesOneChannel,
    ReportsAfterTheAnswerToAPing,
    ReportsFailures,
    SurvivesCuts,
}

/// Each fault, and the case that must notice it.
pub(crate) const ALL: &[(Fault, &str)] = &[
    (Fault::KeepsSecret(Write::Insert), "insert_is_reported"),
    (Fault::KeepsSecret(Write::Update), "update_is_reported"),
    (Fault::KeepsSecret(Write::Touch), "touch_is_reported"),
    (Fault::KeepsSecret(Write::Rename), "rename_is_reported_with_both_keys"),
    (Fault::ReportsNewKeysOnly, "rename_is_reported_with_both_keys"),
    (Fault::KeepsSecret(Write::Delete), "delete_is_reported"),
    (Fault::ReportsOneReapedSession, "every_session_that_is_reaped_is_reported"),
    (Fault::ServesOneChannel, "every_channel_reports_a_write"),
    (Fault::ReportsAfterTheAnswerToAPing, "confirmed_writes_are_reported_before_a_ping_ends"),
    (Fault::ReportsFailures, "write_that_changes_nothing_is_not_reported"),
    (Fault::SurvivesCuts, "channel_that_was_cut_fails_every_call"),
];

/// The reference, with a fault between its reports and those who listen.
#[derive(Clone, Debug)]
pub(crate) struct BrokenReports {
    pub(crate) db: MemoryPersistence,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fault: Fault,
    /// The write that is being made.
    write: Mutex<Write>,
    filters: Mutex<Vec<Arc<Filter>>>,
    opened: AtomicUsize,
}

impl BrokenReports {
    pub(crate) fn with(fault: Fault) -> Self {
        let shared = Shared {
            fault,
            write: Mutex::new(Write::None),
            filters: Mutex::default(),
            opened: AtomicUsize::new(0),
        };
        Self { db: MemoryPersistence::default(), shared: Arc::new(shared) }
    }

    /// Notes which write is made while `writing` runs. The reference makes it in one step.
    async fn during<T>(
        &self,
        write: Write,
        key: &StoredKey,
        writing: impl Future<Output = Result<T, PersistenceError>>,
    ) -> Result<T, PersistenceError> {
        *self.shared.write.lock().unwrap() = write;
        let written = writing.await;
        *self.shared.write.lock().unwrap() = Write::None;
        if written.is_err() && self.shared.fault == Fault::ReportsFailures {
            for filter in &*self.shared.filters.lock().unwrap() {
                filter.listener.changed(key);
            }
        }
        written
    }
}

/// Passes on the reports that the fault lets pass.
#[derive(Debug)]
struct Filter {
    shared: Arc<Shared>,
    number: usize,
    listener: Arc<dyn NoticeListener>,
    reaped: Mutex<HashSet<StoredKey>>,
    renamed: AtomicUsize,
    late: Mutex<Vec<StoredKey>>,
}

impl NoticeListener for Filter {
    fn changed(&self, key: &StoredKey) {
        let write = *self.shared.write.lock().unwrap();
        match self.shared.fault {
            Fault::KeepsSecret(secret) if secret == write => {}
            // The reference reports the old key first.
            Fault::ReportsNewKeysOnly
                if write == Write::Rename
                    && self.renamed.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) => {}
            Fault::ReportsOneReapedSession if write == Write::Reap => {
                let mut reaped = self.reaped.lock().unwrap();
                if reaped.is_empty() {
                    self.listener.changed(key);
                }
                reaped.insert(*key);
            }
            Fault::ServesOneChannel if self.number > 0 => {}
            Fault::ReportsAfterTheAnswerToAPing => self.late.lock().unwrap().push(*key),
            _ => self.listener.changed(key),
        }
    }

    fn all_changed(&self) {
        self.listener.all_changed();
    }
}

struct BrokenChannel {
    channel: Box<dyn DatabaseChannel>,
    filter: Arc<Filter>,
}

impl DatabaseChannel for BrokenChannel {
    fn ping(&self) -> BoxFuture<Result<(), PersistenceError>> {
        match self.filter.shared.fault {
            Fault::SurvivesCuts => return Box::pin(std::future::ready(Ok(()))),
            Fault::ReportsAfterTheAnswerToAPing => {
                let filter = Arc::clone(&self.filter);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    for key in filter.late.lock().unwrap().drain(..) {
                        filter.listener.changed(&key);
                    }
                });
            }
            _ => {}
        }
        self.channel.ping()
    }
}

impl DatabaseNotices for BrokenReports {
    fn open_channel(
        self: Arc<Self>,
        listener: Arc<dyn NoticeListener>,
    ) -> BoxFuture<Result<Box<dyn DatabaseChannel>, PersistenceError>> {
        let filter = Arc::new(Filter {
            number: self.shared.opened.fetch_add(1, Ordering::SeqCst),
            shared: Arc::clone(&self.shared),
            listener,
            reaped: Mutex::default(),
            renamed: AtomicUsize::new(0),
            late: Mutex::default(),
        });
        self.shared.filters.lock().unwrap().push(Arc::clone(&filter));
        let opening = Arc::new(self.db.clone()).open_channel(Arc::clone(&filter) as _);
        Box::pin(async move {
            let channel = opening.await?;
            Ok(Box::new(BrokenChannel { channel, filter }) as _)
        })
    }
}

impl Persistence for BrokenReports {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        self.db.load(key, now).await
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        self.during(Write::Insert, key, self.db.insert(key, record)).await
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.during(Write::Update, key, self.db.update(key, write, now)).await
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        self.during(Write::Touch, key, self.db.touch(key, expires_at, idle_since, now)).await
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.during(Write::Rename, old, self.db.rename(old, new, write, now)).await
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        self.during(Write::Delete, key, self.db.delete(key)).await
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        self.during(Write::Reap, &StoredKey::PROBE, self.db.delete_expired(before, limit)).await
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        self.db.now().await
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

    fn notify(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str> {
        Ok(Arc::new(self.clone()))
    }
}
