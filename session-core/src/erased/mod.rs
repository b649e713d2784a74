//! Object-safe twins of the traits, and the traits for pointers to them, so that a program can choose its
//! backends at run time.
//!
//! Backends implement the static traits only. `dyn DynCache` implements [`Cache`] again, and so does every
//! `Box` and `Arc` of a cache.

#[macro_use]
mod twin;
mod rotations;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Acquired, Cache, CacheError, CacheProperties, DatabaseNotices, Entry, Exchange, Expected,
    ExpiredSessions, Near, Persistence, PersistenceError, PersistenceProperties, Record, RecordWrite,
    Rotations, Row, Scan, SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp, Version,
};

pub use self::rotations::DynRotations;

twin! {
    DynCache of Cache for dyn DynCache;
    [
        /// The object-safe twin of [`Cache`]: the same methods with boxed futures. Implemented for every [`Cache`].
        pub trait DynCache: Send + Sync + std::fmt::Debug + 'static
    ]
    {
        async {
            Cache::get = get_dyn(key: &StoredKey) -> Result<Option<Entry>, CacheError>;
            Cache::compare_exchange = compare_exchange_dyn(
                key: &StoredKey, expected: Expected, new: Option<Entry>, ttl: Duration
            ) -> Result<Exchange, CacheError>;
            Cache::acquire = acquire_dyn(
                key: &StoredKey, lease: Entry, ttl: Duration
            ) -> Result<Acquired, CacheError>;
        }
        plain {
            Cache::server = server_dyn(key: &StoredKey) -> usize;
            Cache::properties = properties_dyn() -> CacheProperties;
            Cache::near = near_dyn() -> Option<&dyn Near>;
        }
    }
}

/// The object-safe twin of [`Persistence`]: the same methods with boxed futures. Implemented for every
/// [`Persistence`].
#[async_trait]
pub trait DynPersistence: Send + Sync + std::fmt::Debug + 'static {
    /// See [`Persistence::load`].
    async fn load_dyn(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError>;
    /// See [`Persistence::insert`].
    async fn insert_dyn(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError>;
    /// See [`Persistence::update`].
    async fn update_dyn(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError>;
    /// See [`Persistence::touch`].
    async fn touch_dyn(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError>;
    /// See [`Persistence::rename`].
    async fn rename_dyn(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError>;
    /// See [`Persistence::delete`].
    async fn delete_dyn(&self, key: &StoredKey) -> Result<bool, PersistenceError>;
    /// See [`Persistence::delete_expired`].
    async fn delete_expired_dyn(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError>;
    /// See [`Persistence::now`].
    async fn now_dyn(&self) -> Result<Timestamp, PersistenceError>;
    /// See [`Persistence::migrate`].
    async fn migrate_dyn(&self) -> Result<(), PersistenceError>;
    /// See [`Persistence::schema_sql`].
    fn schema_sql_dyn(&self) -> String;
    /// See [`Persistence::check_schema`].
    async fn check_schema_dyn(&self) -> Result<(), PersistenceError>;
    /// See [`Persistence::properties`].
    fn properties_dyn(&self) -> PersistenceProperties;
    /// See [`Persistence::notify`].
    fn notify_dyn(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str>;
}

#[async_trait]
impl<T: Persistence> DynPersistence for T {
    async fn load_dyn(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        self.load(key, now).await
    }
    async fn insert_dyn(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        self.insert(key, record).await
    }
    async fn update_dyn(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.update(key, write, now).await
    }
    async fn touch_dyn(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        self.touch(key, expires_at, idle_since, now).await
    }
    async fn rename_dyn(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.rename(old, new, write, now).await
    }
    async fn delete_dyn(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        self.delete(key).await
    }
    async fn delete_expired_dyn(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        self.delete_expired(before, limit).await
    }
    async fn now_dyn(&self) -> Result<Timestamp, PersistenceError> {
        self.now().await
    }
    async fn migrate_dyn(&self) -> Result<(), PersistenceError> {
        self.migrate().await
    }
    fn schema_sql_dyn(&self) -> String {
        self.schema_sql()
    }
    async fn check_schema_dyn(&self) -> Result<(), PersistenceError> {
        self.check_schema().await
    }
    fn properties_dyn(&self) -> PersistenceProperties {
        self.properties()
    }
    fn notify_dyn(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str> {
        self.notify()
    }
}

/// The object-safe twin of a database that implements all of [`Persistence`], [`SubjectIndex`], [`Scan`] and
/// [`Rotations`]: the type of the database in a program that chooses it by URL. Implemented for every such
/// database.
#[async_trait]
pub trait DynDatabase: DynPersistence + DynRotations {
    /// See [`SubjectIndex::list_by_subject`].
    async fn list_by_subject_dyn(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError>;
    /// See [`Scan::scan`].
    async fn scan_dyn(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, PersistenceError>;
}

#[async_trait]
impl<T: SubjectIndex + Scan + Rotations> DynDatabase for T {
    async fn list_by_subject_dyn(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
        self.list_by_subject(subject, now, after, limit).await
    }
    async fn scan_dyn(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, PersistenceError> {
        self.scan(after, limit).await
    }
}

/// Implements [`Persistence`] by the methods `$load` and so on of `$target`: a twin, or the target of a
/// pointer.
macro_rules! forward_persistence {
    (($($head:tt)*) ($this:ident => $target:expr) $load:ident $insert:ident $update:ident $touch:ident $rename:ident
     $delete:ident $delete_expired:ident $now:ident $migrate:ident $schema_sql:ident $check_schema:ident $properties:ident
     $notify:ident) => {
        #[deny(clippy::missing_trait_methods)]
        $($head)* {
            async fn load(
                &self,
                key: &StoredKey,
                now: Timestamp,
            ) -> Result<Option<Record>, PersistenceError> {
                let $this = self;
                $target.$load(key, now).await
            }
            async fn insert(
                &self,
                key: &StoredKey,
                record: &Record,
            ) -> Result<Version, PersistenceError> {
                let $this = self;
                $target.$insert(key, record).await
            }
            async fn update(
                &self,
                key: &StoredKey,
                write: RecordWrite<'_>,
                now: Timestamp,
            ) -> Result<Version, PersistenceError> {
                let $this = self;
                $target.$update(key, write, now).await
            }
            async fn touch(
                &self,
                key: &StoredKey,
                expires_at: Timestamp,
                idle_since: Timestamp,
                now: Timestamp,
            ) -> Result<bool, PersistenceError> {
                let $this = self;
                $target.$touch(key, expires_at, idle_since, now).await
            }
            async fn rename(
                &self,
                old: &StoredKey,
                new: &StoredKey,
                write: RecordWrite<'_>,
                now: Timestamp,
            ) -> Result<Version, PersistenceError> {
                let $this = self;
                $target.$rename(old, new, write, now).await
            }
            async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
                let $this = self;
                $target.$delete(key).await
            }
            async fn delete_expired(
                &self,
                before: Timestamp,
                limit: u32,
            ) -> Result<ExpiredSessions, PersistenceError> {
                let $this = self;
                $target.$delete_expired(before, limit).await
            }
            async fn now(&self) -> Result<Timestamp, PersistenceError> {
                let $this = self;
                $target.$now().await
            }
            async fn migrate(&self) -> Result<(), PersistenceError> {
                let $this = self;
                $target.$migrate().await
            }
            fn schema_sql(&self) -> String {
                let $this = self;
                $target.$schema_sql()
            }
            async fn check_schema(&self) -> Result<(), PersistenceError> {
                let $this = self;
                $target.$check_schema().await
            }
            fn properties(&self) -> PersistenceProperties {
                let $this = self;
                $target.$properties()
            }
            fn notify(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str> {
                let $this = self;
                $target.$notify()
            }
        }
    };
}

macro_rules! persistence_for_dyn {
    ($($twin:ident),*) => {$(
        forward_persistence!((impl Persistence for dyn $twin) (this => this)
            load_dyn insert_dyn update_dyn touch_dyn rename_dyn delete_dyn delete_expired_dyn now_dyn migrate_dyn
            schema_sql_dyn check_schema_dyn properties_dyn notify_dyn);
    )*};
}

macro_rules! persistence_for_pointer {
    ($($pointer:ident),*) => {$(
        forward_persistence!((impl<T: Persistence + ?Sized> Persistence for $pointer<T>) (this => (**this))
            load insert update touch rename delete delete_expired now migrate schema_sql check_schema properties notify);

        #[deny(clippy::missing_trait_methods)]
        impl<T: SubjectIndex + ?Sized> SubjectIndex for $pointer<T> {
            async fn list_by_subject(
                &self,
                subject: &Subject,
                now: Timestamp,
                after: Option<&StoredKey>,
                limit: u32,
            ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
                (**self).list_by_subject(subject, now, after, limit).await
            }
        }

        #[deny(clippy::missing_trait_methods)]
        impl<T: Scan + ?Sized> Scan for $pointer<T> {
            async fn scan(
                &self,
                after: Option<&StoredKey>,
                limit: u32,
            ) -> Result<Vec<Row<Record>>, PersistenceError> {
                (**self).scan(after, limit).await
            }
        }
    )*};
}

persistence_for_dyn!(DynDatabase, DynPersistence);
persistence_for_pointer!(Arc, Box);

#[deny(clippy::missing_trait_methods)]
impl SubjectIndex for dyn DynDatabase {
    async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
        self.list_by_subject_dyn(subject, now, after, limit).await
    }
}

#[deny(clippy::missing_trait_methods)]
impl Scan for dyn DynDatabase {
    async fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, PersistenceError> {
        self.scan_dyn(after, limit).await
    }
}
