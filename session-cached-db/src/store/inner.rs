use std::sync::{Arc, Mutex};

use session_core::{
    Cache, Codec, CodecError, DatabaseNotices, Persistence, Runtime, SessionKey, StoredKey, Subject,
};

use super::database::Database;
use super::job::Job;
use super::limits::{Login, SubjectLimit};
use super::queue::Queues;
use super::rotation_table::RotationTable;
use super::settings::Settings;
use super::single_flight::SingleFlight;
use super::touches::Touches;
use crate::Error;
use crate::coherence::{CoherentCache, Loaded};
use crate::runtime::Tasks;
use crate::telemetry::metrics::{DatabaseLatencies, Labels};
use crate::telemetry::{Counters, Hooks, LogKey, PresentedKey, Telemetry};
use crate::watch::Watches;

/// The parts of a store, which its clones share.
#[derive(Debug)]
pub(crate) struct Inner<C, P> {
    pub(crate) cache: Arc<CoherentCache<C>>,
    pub(crate) db: Database<P>,
    pub(crate) settings: Settings,
    pub(crate) codec: Arc<dyn Codec>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) single_flight: Arc<SingleFlight>,
    /// The writes that wait for their turn.
    pub(super) queues: Arc<Queues<StoredKey, Job>>,
    /// The logins that wait for the turn of their subject.
    pub(super) logins: Arc<Queues<Subject, Login>>,
    /// Held while several sessions are queued to be ended by one statement.
    pub(super) ending_together: Mutex<()>,
    pub(super) touches: Touches,
    pub(crate) tasks: Arc<Tasks>,
    pub(super) watches: Arc<Watches>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(super) subject_limit: Option<SubjectLimit<Self>>,
    /// The notes of rotations, if there is a grace after one.
    pub(super) rotations: Option<Arc<dyn RotationTable<P>>>,
}

/// The parts that a builder has collected.
pub(crate) struct Parts<C, P> {
    pub(crate) cache: C,
    pub(crate) db: P,
    pub(crate) settings: Settings,
    pub(crate) codec: Arc<dyn Codec>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) hooks: Option<Arc<dyn Hooks>>,
    pub(super) subject_limit: Option<SubjectLimit<Inner<C, P>>>,
    pub(super) rotations: Option<Arc<dyn RotationTable<P>>>,
    pub(crate) log_key: LogKey,
    /// The database's reports of changes, if the cache needs them.
    pub(super) notices: Option<Arc<dyn DatabaseNotices>>,
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Fails with the reason if the cache has become another store's.
    pub(crate) fn new(parts: Parts<C, P>) -> Result<Arc<Self>, &'static str> {
        let Parts { cache, db, settings, codec, runtime, hooks, subject_limit, rotations, log_key, notices } =
            parts;
        let labels = Labels {
            store: settings.name.clone(),
            cache: cache.properties().name,
            database: db.properties().name,
        };
        let telemetry = Arc::new(Telemetry::new(Counters::new(&labels), hooks, log_key));
        let tasks = Arc::new(Tasks::new(Arc::clone(&runtime)));
        let db = Database::new(
            db,
            settings.read_timeout,
            settings.write_timeout,
            DatabaseLatencies::new(&labels),
            Arc::clone(&runtime),
        );
        let store = Arc::new_cyclic(|inner: &std::sync::Weak<Self>| Self {
            cache: Arc::new(CoherentCache::new(
                cache,
                settings.coherence.clone(),
                inner.clone() as _,
                Arc::clone(&tasks),
                Arc::clone(&runtime),
                Arc::clone(&telemetry),
                &labels,
            )),
            db,
            codec,
            single_flight: Arc::new(SingleFlight::new(settings.single_flight_capacity)),
            queues: Queues::new(settings.max_waiting_writes),
            logins: Queues::new(settings.max_waiting_writes),
            ending_together: Mutex::default(),
            touches: Touches::default(),
            tasks,
            watches: Arc::new(Watches::new(Arc::clone(&runtime), &labels)),
            telemetry,
            subject_limit,
            rotations,
            settings,
            runtime,
        });
        store.cache.start_near(&labels, notices, &store.watches)?;
        Ok(store)
    }

    /// Returns the session under `key`. A payload that cannot be decoded is an error.
    pub(crate) async fn load_readable(self: &Arc<Self>, key: &StoredKey) -> Result<Option<Loaded>, Error> {
        let mut loaded = self.load(key).await.inspect_err(|error| {
            if error.is_row_error() {
                self.note_unreadable_row(key, error);
            }
        })?;
        if let Some(found) = &loaded
            && let Err(error) = found.record.decode(key, &*self.codec)
        {
            if found.stamp.is_none() {
                return Err(self.unreadable(key, error));
            }
            // The cache is not the truth, and another program may have written to it.
            if let Some(suppressed) =
                self.telemetry.log_limits.admit("cached_payload_unreadable", self.runtime.now())
            {
                tracing::warn!(target: "session_cached_db", event = "cached_payload_unreadable", session = %self.telemetry.log_id(key),
                    reason = error.reason(), %error, suppressed, "a cached session cannot be read; the database is asked");
            }
            loaded = Box::pin(self.read(key)).await?;
            if let Some(found) = &loaded {
                found.record.decode(key, &*self.codec).map_err(|error| self.unreadable(key, error))?;
            }
        }
        Ok(loaded)
    }

    /// Returns the session under `key` for a client or the application, and calls the hook.
    pub(crate) async fn load_for_caller(self: &Arc<Self>, key: &StoredKey) -> Result<Option<Loaded>, Error> {
        let loaded = self.load_readable(key).await?;
        if let Some(Loaded { record, .. }) = &loaded {
            self.telemetry.call_hooks(|hooks| hooks.loaded(key, record));
        }
        Ok(loaded)
    }

    /// Notes that the payload under `key` cannot be decoded, and returns the error that says so.
    pub(crate) fn unreadable(&self, key: &StoredKey, error: CodecError) -> Error {
        if let Some(suppressed) = self.telemetry.log_limits.admit("payload_unreadable", self.runtime.now()) {
            tracing::warn!(target: "session_cached_db", event = "payload_unreadable", session = %self.telemetry.log_id(key),
                reason = error.reason(), %error, suppressed, "a stored session cannot be read; its row is left alone");
        }
        let error = Error::Unreadable(Arc::new(error));
        self.note_unreadable(key, &error);
        error
    }

    /// Notes that the row under `key` cannot be read.
    pub(crate) fn note_unreadable_row(&self, key: &StoredKey, error: &Error) {
        if let Some(suppressed) = self.telemetry.log_limits.admit("row_unreadable", self.runtime.now()) {
            tracing::warn!(target: "session_cached_db", event = "row_unreadable", session = %self.telemetry.log_id(key), %error,
                suppressed, "a stored session cannot be read; its row is left alone");
        }
        self.note_unreadable(key, error);
    }

    fn note_unreadable(&self, key: &StoredKey, error: &Error) {
        self.telemetry.counters.unreadable.bump();
        self.telemetry.call_hooks(|hooks| hooks.payload_unreadable(key, error));
    }

    /// Notes that a client has presented `key`, which opens no session, or text that cannot be a key.
    pub(crate) fn note_unknown_key(&self, key: Option<&SessionKey>) {
        let presented = match key {
            None => PresentedKey::Malformed,
            Some(key) if self.settings.looks_stored(key) => PresentedKey::LooksLikeStoredKey,
            Some(_) => PresentedKey::Unknown,
        };
        if presented == PresentedKey::LooksLikeStoredKey {
            self.telemetry.counters.stored_keys_presented.bump();
            if let Some(suppressed) =
                self.telemetry.log_limits.admit("stored_key_presented", self.runtime.now())
            {
                tracing::warn!(target: "session_cached_db", event = "stored_key_presented", suppressed,
                    "a client presented what looks like a stored key; find out who has seen the database or the cache");
            }
        } else {
            tracing::debug!(target: "session_cached_db", event = "unknown_key", ?presented);
        }
        self.telemetry.counters.unknown_keys.bump();
        self.telemetry.call_hooks(|hooks| hooks.unknown_key(presented));
    }
}
