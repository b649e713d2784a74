use std::fmt;
use std::sync::Arc;

use session_core::{
    BoxFuture, Cache, Codec, Persistence, Record, SessionData, SessionKey, Stamp, StoredKey, Subject,
    Timestamp,
};

use super::Session;
use crate::coherence::Loaded;
use crate::runtime::Admission;
use crate::store::{CachedDb, Followed, Follows, Inner, KeyOrigin, Save, Saved, Settings, Touch, Written};
use crate::telemetry::Ending;
#[cfg(feature = "tower")]
use crate::telemetry::Telemetry;
use crate::{Coherence, Error};

/// A store without its type parameters, so that handlers need not name the backends.
pub(crate) trait SessionBackend: Send + Sync + fmt::Debug {
    #[cfg_attr(
        not(feature = "tower"),
        allow(dead_code, reason = "only the layer opens sessions in this way")
    )]
    fn open(self: Arc<Self>, key: Option<SessionKey>) -> BoxFuture<Result<Session, Error>>;
    fn create(self: Arc<Self>, key: StoredKey, record: Record) -> BoxFuture<Result<Saved, Error>>;
    fn save(self: Arc<Self>, key: StoredKey, save: Save) -> BoxFuture<Result<Saved, Error>>;
    fn touch(self: Arc<Self>, key: StoredKey, touch: Touch) -> BoxFuture<Result<Coherence, Error>>;
    fn delete(
        self: Arc<Self>,
        key: StoredKey,
        seen: Option<Stamp>,
    ) -> BoxFuture<Result<Written<bool>, Error>>;
    #[cfg_attr(
        not(feature = "tower"),
        allow(dead_code, reason = "only the layer knows no store by its type")
    )]
    fn end(self: Arc<Self>, key: SessionKey) -> BoxFuture<Result<Written<bool>, Error>>;
    fn exists(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<bool, Error>>;
    /// Returns the session that was under a key, if it has got another one within the grace, for a request that was opened
    /// with the old one.
    fn follow(
        self: Arc<Self>,
        key: SessionKey,
        stored_key: StoredKey,
    ) -> BoxFuture<Result<Option<Followed>, Error>>;
    /// Reads the database.
    fn read(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<Option<Loaded>, Error>>;
    /// Ends what a write with an unknown outcome may store under `key`.
    fn abandon(self: Arc<Self>, key: StoredKey);
    fn new_record(
        &self,
        key: &StoredKey,
        data: &SessionData,
        subject: Option<Subject>,
    ) -> Result<Record, Error>;
    fn now(&self) -> Timestamp;
    fn settings(&self) -> &Settings;
    fn codec(&self) -> &dyn Codec;
    #[cfg(feature = "tower")]
    fn telemetry(&self) -> &Telemetry;
}

impl<C: Cache, P: Persistence> SessionBackend for Inner<C, P> {
    fn open(self: Arc<Self>, key: Option<SessionKey>) -> BoxFuture<Result<Session, Error>> {
        let store = CachedDb { inner: self };
        Box::pin(async move {
            match key {
                Some(key) => store.open_key(key).await,
                None => Ok(store.new_session()),
            }
        })
    }
    fn create(self: Arc<Self>, key: StoredKey, record: Record) -> BoxFuture<Result<Saved, Error>> {
        Box::pin(async move { Self::create(&self, key, record, KeyOrigin::Random).await })
    }
    fn save(self: Arc<Self>, key: StoredKey, save: Save) -> BoxFuture<Result<Saved, Error>> {
        Box::pin(Self::save(&self, key, save))
    }
    fn touch(self: Arc<Self>, key: StoredKey, touch: Touch) -> BoxFuture<Result<Coherence, Error>> {
        Box::pin(Self::touch(&self, key, touch))
    }
    fn delete(
        self: Arc<Self>,
        key: StoredKey,
        seen: Option<Stamp>,
    ) -> BoxFuture<Result<Written<bool>, Error>> {
        Box::pin(Self::delete(&self, key, seen, Ending::Destroyed, Admission::New))
    }
    fn end(self: Arc<Self>, key: SessionKey) -> BoxFuture<Result<Written<bool>, Error>> {
        let store = CachedDb { inner: self };
        Box::pin(async move { store.end(&key).await })
    }
    fn exists(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<bool, Error>> {
        Box::pin(async move { Ok(self.load(&key).await?.is_some()) })
    }
    fn follow(
        self: Arc<Self>,
        key: SessionKey,
        stored_key: StoredKey,
    ) -> BoxFuture<Result<Option<Followed>, Error>> {
        Box::pin(async move { Self::follow(&self, key, stored_key, Follows::Write).await })
    }
    fn read(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<Option<Loaded>, Error>> {
        Box::pin(async move { Self::read(&self, &key).await })
    }
    fn abandon(self: Arc<Self>, key: StoredKey) {
        Self::abandon(&self, key);
    }
    fn new_record(
        &self,
        key: &StoredKey,
        data: &SessionData,
        subject: Option<Subject>,
    ) -> Result<Record, Error> {
        Self::new_record(self, key, data, subject)
    }
    fn now(&self) -> Timestamp {
        self.runtime.now()
    }
    fn settings(&self) -> &Settings {
        &self.settings
    }
    fn codec(&self) -> &dyn Codec {
        &*self.codec
    }
    #[cfg(feature = "tower")]
    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
}
