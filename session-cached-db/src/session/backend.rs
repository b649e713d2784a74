use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use session_core::{
    BoxFuture, Cache, Codec, Persistence, Record, SessionData, SessionKey, StoredKey, Subject, Timestamp,
};
use tokio::sync::oneshot;

use super::Session;
use crate::Error;
use crate::coherence::Loaded;
use crate::runtime::Admission;
use crate::store::job::{Job, Reply, Written};
use crate::store::{CachedDb, Followed, Follows, Inner, Logout, Settings, Wait, answer_of};
#[cfg(feature = "tower")]
use crate::telemetry::Telemetry;
use crate::watch::SessionWatch;

/// A store without its type parameters, so that handlers need not name the backends.
pub(crate) trait SessionBackend: Send + Sync + fmt::Debug {
    #[cfg_attr(
        not(feature = "tower"),
        allow(dead_code, reason = "only the layer opens sessions in this way")
    )]
    fn open(self: Arc<Self>, key: Option<SessionKey>) -> BoxFuture<Result<Session, Error>>;
    /// Queues a write, whose answer takes the way back that is in `job`. Returns the wait for its turn if there is one.
    fn enqueue(self: Arc<Self>, key: &StoredKey, job: Job) -> Result<Option<Wait>, Error>;
    #[cfg_attr(
        not(feature = "tower"),
        allow(dead_code, reason = "only the layer knows no store by its type")
    )]
    fn end(self: Arc<Self>, key: SessionKey) -> BoxFuture<Result<Written<bool>, Error>>;
    /// Ends a session wherever it has moved. Goes on if the future is dropped.
    fn log_out(self: Arc<Self>, logout: Logout) -> BoxFuture<Result<Written<bool>, Error>>;
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
    fn watch(self: Arc<Self>, key: StoredKey, session_key: SessionKey, interval: Duration) -> SessionWatch;
    /// Waits until no node shows what was replaced before.
    fn wait_for_all_nodes(self: Arc<Self>) -> BoxFuture<()>;
    fn now(&self) -> Timestamp;
    #[cfg(feature = "tower")]
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;
    fn settings(&self) -> &Settings;
    fn codec(&self) -> &dyn Codec;
    #[cfg(feature = "tower")]
    fn telemetry(&self) -> &Telemetry;
}

impl dyn SessionBackend {
    /// Queues a write of the session under `key`, and returns its result. The write is carried out even if the returned future
    /// is dropped.
    pub(crate) fn write<T: Send + 'static, J: FnOnce(Reply<T>) -> Job>(
        self: &Arc<Self>,
        key: &StoredKey,
        job: J,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, J> {
        let (reply, answer) = oneshot::channel();
        answer_of(answer, Arc::clone(self).enqueue(key, job(reply)))
    }
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
    fn enqueue(self: Arc<Self>, key: &StoredKey, job: Job) -> Result<Option<Wait>, Error> {
        Self::enqueue(&self, key, Admission::New, job)
    }
    fn end(self: Arc<Self>, key: SessionKey) -> BoxFuture<Result<Written<bool>, Error>> {
        let store = CachedDb { inner: self };
        Box::pin(async move { store.end(&key).await })
    }
    fn log_out(self: Arc<Self>, logout: Logout) -> BoxFuture<Result<Written<bool>, Error>> {
        Box::pin(Self::log_out(&self, logout))
    }
    fn exists(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<bool, Error>> {
        Box::pin(async move { Ok(self.load(&key).await?.is_some()) })
    }
    fn follow(
        self: Arc<Self>,
        key: SessionKey,
        stored_key: StoredKey,
    ) -> BoxFuture<Result<Option<Followed>, Error>> {
        Box::pin(async move { Self::follow(&self, Some(key), stored_key, Follows::Write).await })
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
    fn watch(self: Arc<Self>, key: StoredKey, session_key: SessionKey, interval: Duration) -> SessionWatch {
        Self::watch(&self, key, Some(session_key), interval)
    }
    fn wait_for_all_nodes(self: Arc<Self>) -> BoxFuture<()> {
        Box::pin(async move { self.cache.wait_for_all_nodes().await })
    }
    fn now(&self) -> Timestamp {
        self.runtime.now()
    }
    #[cfg(feature = "tower")]
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        self.runtime.sleep(duration)
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
