//! What the parts of a store work on.

use std::sync::Arc;

use session_core::{Cache, Codec, CodecError, Persistence, Runtime, SessionKey, StoredKey};

use crate::cache_guard::CacheGuard;
use crate::config::Config;
use crate::events::Events;
use crate::flight::{Flights, Loaded};
use crate::limits::SubjectLimit;
use crate::measured::Measured;
use crate::metrics::{DatabaseLatencies, Labels};
use crate::queue::Queues;
use crate::repair::Repairs;
use crate::stats::Counters;
use crate::tasks::Tasks;
use crate::trace::{LogKey, LogName};
use crate::{Error, PresentedKey};

/// What the clones of a store share.
#[derive(Debug)]
pub(crate) struct Inner<C, P> {
    pub(crate) cache: CacheGuard<C>,
    pub(crate) db: Measured<P>,
    pub(crate) config: Config,
    pub(crate) codec: Arc<dyn Codec>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) queues: Queues,
    pub(crate) repairs: Arc<Repairs>,
    pub(crate) tasks: Tasks,
    pub(crate) counters: Arc<Counters>,
    pub(crate) events: Option<Arc<dyn Events>>,
    pub(crate) subject_limit: Option<SubjectLimit<C, P>>,
    log_key: LogKey,
}

/// What a store is made of.
pub(crate) struct Parts<C, P> {
    pub(crate) cache: C,
    pub(crate) db: P,
    pub(crate) config: Config,
    pub(crate) codec: Arc<dyn Codec>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) events: Option<Arc<dyn Events>>,
    pub(crate) subject_limit: Option<SubjectLimit<C, P>>,
    pub(crate) log_key: LogKey,
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    pub(crate) fn new(parts: Parts<C, P>) -> Self {
        let Parts { cache, db, config, codec, runtime, events, subject_limit, log_key } = parts;
        let labels = Labels {
            store: config.name.clone(),
            cache: cache.properties().name,
            database: db.properties().name,
        };
        let counters = Arc::new(Counters::new(&labels));
        Self {
            cache: CacheGuard::new(
                cache,
                config.cache_timeout,
                config.breaker_threshold,
                Arc::clone(&runtime),
                Arc::clone(&counters),
                &labels,
            ),
            db: Measured::new(db, DatabaseLatencies::new(&labels), Arc::clone(&runtime)),
            codec,
            flights: Arc::new(Flights::new(config.flight_capacity)),
            queues: Queues::new(config.max_waiting_writes),
            repairs: Arc::new(Repairs::new(config.repair_capacity, &labels)),
            tasks: Tasks::new(Arc::clone(&runtime)),
            counters,
            events,
            subject_limit,
            log_key,
            config,
            runtime,
        }
    }

    /// Tells the application, if it listens.
    pub(crate) fn tell(&self, event: impl FnOnce(&dyn Events)) {
        if let Some(events) = &self.events {
            event(&**events);
        }
    }

    /// What stands in logs instead of `key`.
    pub(crate) const fn name<'a>(&'a self, key: &'a StoredKey) -> LogName<'a> {
        self.log_key.name(key)
    }

    /// As [`load`](Self::load); what cannot be decoded is an error.
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
            // A cache is not the truth, and this one may have been written to by somebody else.
            tracing::warn!(target: "session_cached_db", event = "cached_payload_unreadable", session = %self.name(key),
                reason = error.reason(), %error, "a cached session cannot be read; the database is asked");
            loaded = Box::pin(self.read(key)).await?;
            if let Some(found) = &loaded {
                found.record.decode(key, &*self.codec).map_err(|error| self.unreadable(key, error))?;
            }
        }
        Ok(loaded)
    }

    /// As [`load_readable`](Self::load_readable), for a client or the application, which is told.
    pub(crate) async fn load_told(self: &Arc<Self>, key: &StoredKey) -> Result<Option<Loaded>, Error> {
        let loaded = self.load_readable(key).await?;
        if let Some(Loaded { record, .. }) = &loaded {
            self.tell(|events| events.loaded(key, record));
        }
        Ok(loaded)
    }

    /// The payload under `key` cannot be decoded.
    pub(crate) fn unreadable(&self, key: &StoredKey, error: CodecError) -> Error {
        tracing::warn!(target: "session_cached_db", event = "payload_unreadable", session = %self.name(key),
            reason = error.reason(), %error, "a stored session cannot be read; its row is left alone");
        let error = Error::Unreadable(Arc::new(error));
        self.note_unreadable(key, &error);
        error
    }

    /// The row under `key` cannot be read.
    pub(crate) fn note_unreadable_row(&self, key: &StoredKey, error: &Error) {
        tracing::warn!(target: "session_cached_db", event = "row_unreadable", session = %self.name(key), %error,
            "a stored session cannot be read; its row is left alone");
        self.note_unreadable(key, error);
    }

    fn note_unreadable(&self, key: &StoredKey, error: &Error) {
        self.counters.unreadable.bump();
        self.tell(|events| events.payload_unreadable(key, error));
    }

    /// A client has presented what is no session's key: nothing like one, if there is none.
    pub(crate) fn note_unknown_key(&self, key: Option<&SessionKey>) {
        let presented = match key {
            None => PresentedKey::Malformed,
            Some(key) if self.config.looks_stored(key) => PresentedKey::LooksLikeStoredKey,
            Some(_) => PresentedKey::Unknown,
        };
        if presented == PresentedKey::LooksLikeStoredKey {
            tracing::warn!(target: "session_cached_db", event = "stored_key_presented",
                "a client presented what looks like a stored key; has somebody seen the database or the cache?");
        } else {
            tracing::debug!(target: "session_cached_db", event = "unknown_key", ?presented);
        }
        self.counters.unknown_keys.bump();
        self.tell(|events| events.unknown_key(presented));
    }
}
