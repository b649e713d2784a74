//! Object-safe twins of the traits, and the traits for pointers to them, so that a program can choose its
//! backends at run time.
//!
//! Backends implement the static traits only. `dyn DynCache` implements [`Cache`] again, and so does every
//! `Box` and `Arc` of a cache.

#[macro_use]
mod twin;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Acquired, Cache, CacheError, CacheProperties, DatabaseNotices, Entry, Exchange, Expected,
    ExpiredSessions, Near, Persistence, PersistenceError, PersistenceProperties, Record, RecordWrite,
    Rotation, Rotations, Row, Scan, SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp, Version,
};

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

twin! {
    DynPersistence of Persistence for dyn DynPersistence, dyn DynDatabase;
    [
        /// The object-safe twin of [`Persistence`]: the same methods with boxed futures. Implemented for every [`Persistence`].
        pub trait DynPersistence: Send + Sync + std::fmt::Debug + 'static
    ]
    {
        async {
            Persistence::load = load_dyn(
                key: &StoredKey, now: Timestamp
            ) -> Result<Option<Record>, PersistenceError>;
            Persistence::insert = insert_dyn(
                key: &StoredKey, record: &Record
            ) -> Result<Version, PersistenceError>;
            Persistence::update = update_dyn(
                key: &StoredKey, write: RecordWrite<'_>, now: Timestamp
            ) -> Result<Version, PersistenceError>;
            Persistence::touch = touch_dyn(
                key: &StoredKey, expires_at: Timestamp, idle_since: Timestamp, now: Timestamp
            ) -> Result<bool, PersistenceError>;
            Persistence::rename = rename_dyn(
                old: &StoredKey, new: &StoredKey, write: RecordWrite<'_>, now: Timestamp
            ) -> Result<Version, PersistenceError>;
            Persistence::delete = delete_dyn(key: &StoredKey) -> Result<bool, PersistenceError>;
            Persistence::delete_all = delete_all_dyn(
                keys: &[StoredKey]
            ) -> Result<Vec<StoredKey>, PersistenceError>;
            Persistence::delete_expired = delete_expired_dyn(
                before: Timestamp, limit: u32
            ) -> Result<ExpiredSessions, PersistenceError>;
            Persistence::now = now_dyn() -> Result<Timestamp, PersistenceError>;
            Persistence::migrate = migrate_dyn() -> Result<(), PersistenceError>;
            Persistence::check_schema = check_schema_dyn() -> Result<(), PersistenceError>;
        }
        plain {
            Persistence::schema_sql = schema_sql_dyn() -> String;
            Persistence::properties = properties_dyn() -> PersistenceProperties;
            Persistence::notify = notify_dyn() -> Result<Arc<dyn DatabaseNotices>, &'static str>;
        }
    }
}

twin! {
    DynSubjectIndex of SubjectIndex for dyn DynDatabase;
    [
        /// The object-safe twin of [`SubjectIndex`]: the same method with a boxed future. Implemented for every
        /// [`SubjectIndex`].
        pub trait DynSubjectIndex: DynPersistence
    ]
    {
        async {
            SubjectIndex::list_by_subject = list_by_subject_dyn(
                subject: &Subject, now: Timestamp, after: Option<&StoredKey>, limit: u32
            ) -> Result<Vec<Row<SessionTimes>>, PersistenceError>;
        }
        plain {}
    }
}

twin! {
    DynScan of Scan for dyn DynDatabase;
    [
        /// The object-safe twin of [`Scan`]: the same method with a boxed future. Implemented for every [`Scan`].
        pub trait DynScan: DynPersistence
    ]
    {
        async {
            Scan::scan = scan_dyn(
                after: Option<&StoredKey>, limit: u32
            ) -> Result<Vec<Row<Record>>, PersistenceError>;
        }
        plain {}
    }
}

twin! {
    DynRotations of Rotations for dyn DynDatabase;
    [
        /// The object-safe twin of [`Rotations`]: the same methods with boxed futures. Implemented for all [`Rotations`].
        pub trait DynRotations: DynPersistence
    ]
    {
        async {
            Rotations::note_rotation = note_rotation_dyn(rotation: &Rotation) -> Result<(), PersistenceError>;
            Rotations::rotations = rotations_dyn(
                old: &StoredKey, now: Timestamp, limit: u32
            ) -> Result<Vec<Rotation>, PersistenceError>;
            Rotations::migrate_rotations = migrate_rotations_dyn() -> Result<(), PersistenceError>;
            Rotations::check_rotations = check_rotations_dyn() -> Result<(), PersistenceError>;
        }
        plain {
            Rotations::rotations_sql = rotations_sql_dyn() -> String;
        }
    }
}

/// A database that implements all of [`Persistence`], [`SubjectIndex`], [`Scan`] and [`Rotations`], made object-safe: the
/// type of the database in a program that chooses it by URL. Implemented for every such database.
pub trait DynDatabase: DynPersistence + DynSubjectIndex + DynScan + DynRotations {}

impl<T: SubjectIndex + Scan + Rotations> DynDatabase for T {}
