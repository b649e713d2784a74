//! The two reporters of changes: a shared cache, and the database.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use session_core::{
    BoxError, CacheError, DatabaseChannel, DatabaseNotices, NearSource, NoticeChannel, NoticeListener,
    NoticeSource, PersistenceError, StoredKey,
};

/// The reporter of changes to a near cache. Implemented for every [`NoticeSource`], and for [`DatabaseReports`].
pub trait Source: Send + Sync + fmt::Debug + 'static {
    /// A connection on which reports and answers come in order.
    type Channel: Send + Sync + 'static;

    /// The kind of reporter.
    const KIND: NearSource;

    /// Opens a channel that reports to `listener`.
    fn open(
        &self,
        listener: Arc<dyn NoticeListener>,
    ) -> impl Future<Output = Result<Self::Channel, CacheError>> + Send;

    /// Waits until every report that is on its way has been made.
    fn ping(channel: &Self::Channel) -> impl Future<Output = Result<(), CacheError>> + Send;

    /// Asks for a report of the next change of `key`.
    fn watch(channel: &Self::Channel, key: &StoredKey)
    -> impl Future<Output = Result<(), CacheError>> + Send;

    /// Returns the reason why no channel can ever be opened, or `None`.
    fn why_never(&self) -> Option<&'static str>;

    /// Takes the reports of the store's database.
    fn attach(&self, notices: Option<Arc<dyn DatabaseNotices>>);

    /// Drops the reports of the store's database.
    fn detach(&self) {
        self.attach(None);
    }
}

impl<S: NoticeSource> Source for S {
    type Channel = S::Channel;

    const KIND: NearSource = NearSource::SharedCache;

    fn open(
        &self,
        listener: Arc<dyn NoticeListener>,
    ) -> impl Future<Output = Result<Self::Channel, CacheError>> + Send {
        self.open_channel(listener)
    }

    fn ping(channel: &Self::Channel) -> impl Future<Output = Result<(), CacheError>> + Send {
        channel.ping()
    }

    /// Reads the key, and keeps nothing of it in memory: that is for loads.
    async fn watch(channel: &Self::Channel, key: &StoredKey) -> Result<(), CacheError> {
        channel.get(key).await.map(drop)
    }

    fn why_never(&self) -> Option<&'static str> {
        self.refusal()
    }

    fn attach(&self, _: Option<Arc<dyn DatabaseNotices>>) {}
}

/// The reports of the database of the store that uses a near cache.
#[derive(Debug, Default)]
pub struct DatabaseReports(Mutex<Option<Arc<dyn DatabaseNotices>>>);

impl DatabaseReports {
    fn notices(&self) -> Option<Arc<dyn DatabaseNotices>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source for DatabaseReports {
    type Channel = Box<dyn DatabaseChannel>;

    const KIND: NearSource = NearSource::Database;

    async fn open(&self, listener: Arc<dyn NoticeListener>) -> Result<Self::Channel, CacheError> {
        let Some(notices) = self.notices() else {
            return Err(CacheError::Unusable("the database of the store reports no changes".into()));
        };
        notices.open_channel(listener).await.map_err(of_database)
    }

    async fn ping(channel: &Self::Channel) -> Result<(), CacheError> {
        channel.ping().await.map_err(of_database)
    }

    /// Every commit is reported, asked for or not.
    async fn watch(_: &Self::Channel, _: &StoredKey) -> Result<(), CacheError> {
        Ok(())
    }

    /// Another store cannot use this memory, because it has the reports of one database.
    fn why_never(&self) -> Option<&'static str> {
        self.notices().map(|_| "this memory is another store's already; make one for each store")
    }

    fn attach(&self, notices: Option<Arc<dyn DatabaseNotices>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = notices;
    }
}

fn of_database(error: PersistenceError) -> CacheError {
    let is_setting = matches!(error, PersistenceError::Config(_));
    let error = BoxError::from(error);
    if is_setting { CacheError::Unusable(error) } else { CacheError::Unavailable(error) }
}
