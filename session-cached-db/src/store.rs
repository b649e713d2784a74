use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use session_core::{
    Cache, ExpiryWrite, InvalidKey, Persistence, Record, Row, SessionData, SessionKey, SessionTimes,
    StoredKey, Subject, SubjectIndex, Timestamp, Version,
};

use crate::builder::Builder;
use crate::cache_guard::Gate;
use crate::events::{Ending, Revocation};
use crate::flight::Loaded;
use crate::inner::{Inner, Parts};
use crate::operations::Written;
use crate::queue::{Touch, Update};
use crate::reaper::Reaper;
use crate::session::Session;
use crate::stats::Stats;
use crate::tasks::Admission;
use crate::{Coherence, Error};

/// A session store: a database, which is the truth, and a cache in front of it, which never lies.
///
/// Cheap to clone; clones are the same store. See the [crate's documentation](crate) for what it guarantees.
///
/// Most programs need [`open`](Self::open) and [`Session`]. The methods that take a [`StoredKey`] are for those who
/// build something else on it.
///
/// # Cancel safety
///
/// Reads can be dropped at any time. A write runs in a task of its own from its first effect on: whoever drops its
/// future does not learn the result, but nothing is left half done. [`close`](Self::close) waits for such tasks.
pub struct CachedDb<C, P> {
    pub(crate) inner: Arc<Inner<C, P>>,
}

#[allow(
    clippy::manual_async_fn,
    reason = "of an `async fn` that awaits a method of a `dyn` backend, callers cannot prove that its future is Send"
)]
impl<C: Cache, P: Persistence> CachedDb<C, P> {
    /// Composes a store of any cache with any database.
    pub fn builder(cache: C, db: P) -> Builder<C, P> {
        Builder::new(cache, db)
    }

    pub(crate) fn start(parts: Parts<C, P>, reaper: Option<Reaper>) -> Self {
        let inner = Arc::new(Inner::new(parts));
        if let Some(reaper) = reaper {
            inner.start_reaper(reaper);
        }
        Self { inner }
    }

    /// Opens the session of a client that presented `cookie`. If there is none (unknown, malformed, expired, or
    /// unreadable), gives a new, empty, unsaved session under no key: what a client presents is never adopted.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database does not answer. A cache that does not answer is no error.
    pub fn open(&self, cookie: &str) -> impl Future<Output = Result<Session, Error>> + Send {
        async move {
            match SessionKey::parse(cookie) {
                Ok(key) => self.open_key(key).await,
                Err(InvalidKey) => {
                    if !cookie.is_empty() {
                        self.inner.note_unknown_key(None);
                    }
                    Ok(self.new_session())
                }
            }
        }
    }

    /// As [`open`](Self::open), for a key that was parsed before.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_key(&self, key: SessionKey) -> impl Future<Output = Result<Session, Error>> + Send {
        async move {
            let Ok(stored_key) = self.stored_key(&key) else {
                self.inner.note_unknown_key(Some(&key));
                return Ok(self.new_session());
            };
            let found = self.inner.load_readable(&stored_key).await;
            // At once, because every copy of the keys is felt here.
            if let Ok(Some(loaded)) = found {
                return Ok(self.opened(key, stored_key, loaded));
            }
            let adopted = match found {
                Ok(_) if self.inner.config.accepts_plain_keys => {
                    Box::pin(self.inner.adopt_plain(&key, &stored_key)).await
                }
                found => found.map(|_| None),
            };
            match adopted {
                Ok(Some((stored_key, loaded))) => Ok(self.opened(key, stored_key, loaded)),
                Ok(None) => {
                    self.inner.note_unknown_key(Some(&key));
                    Ok(self.new_session())
                }
                Err(error) if error.is_row_error() => Ok(self.new_session()),
                Err(error) => Err(error),
            }
        }
    }

    #[inline]
    fn opened(&self, key: SessionKey, stored_key: StoredKey, loaded: Loaded) -> Session {
        self.inner.tell(|events| events.loaded(&stored_key, &loaded.record));
        Session::stored(Arc::clone(&self.inner) as _, key, stored_key, loaded)
    }

    /// A new, empty, unsaved session. It gets a key when it is first saved.
    #[must_use]
    pub fn new_session(&self) -> Session {
        Session::new(Arc::clone(&self.inner) as _)
    }

    /// The key under which the session of `key` is stored.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] when this store cannot have a session of that key.
    pub fn stored_key(&self, key: &SessionKey) -> Result<StoredKey, InvalidKey> {
        self.inner.config.stored_key(key)
    }

    /// The session that is stored under `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Unreadable`] when the payload cannot be decoded (the row stays); [`Error::Database`] when the database
    /// does not answer.
    pub fn load(&self, key: &StoredKey) -> impl Future<Output = Result<Option<Arc<Record>>, Error>> + Send {
        async move { Ok(self.inner.load_told(key).await?.map(|loaded| loaded.record)) }
    }

    /// Returns the data of the session that is stored under `key`, for a list of sessions that says more of them than their
    /// times.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn data(&self, key: &StoredKey) -> impl Future<Output = Result<Option<SessionData>, Error>> + Send {
        async move {
            let Some(Loaded { record, .. }) = self.inner.load_told(key).await? else { return Ok(None) };
            let data = record.data(key, &*self.inner.codec);
            data.map(Some).map_err(|error| self.inner.unreadable(key, error))
        }
    }

    /// Whether there is a session under `key` that has not expired.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database does not answer.
    pub fn exists(&self, key: &StoredKey) -> impl Future<Output = Result<bool, Error>> + Send {
        async move { Ok(self.inner.load(key).await?.is_some()) }
    }

    /// Adds a session under a key of the caller's choice.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] when there is one, expired or not.
    pub async fn create(&self, key: &StoredKey, record: Record) -> Result<Written<Arc<Record>>, Error> {
        self.inner.create(*key, record).await.map(Into::into)
    }

    /// Replaces the session under `key` by `record`, if it still has the version `expected`; whatever it has if that is
    /// `None`.
    ///
    /// The database keeps the session's own `created_at`, and under [`ExpiryWrite::Extend`] the later expiry, while the
    /// cache shows `record` as it is given here. So make it from the record that was [loaded](Self::load).
    ///
    /// # Errors
    ///
    /// [`Error::SessionGone`], [`Error::Conflict`], [`Error::TooLarge`].
    pub async fn update(
        &self,
        key: &StoredKey,
        record: Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
    ) -> Result<Written<Arc<Record>>, Error> {
        let update = Update { record, expected, expiry, rename: None };
        self.inner.update(*key, update, Admission::New).await.map(Into::into)
    }

    /// Gives the session under `old` the key `new`, and writes `record` to it, in one statement. Otherwise as
    /// [`update`](Self::update).
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update), and [`Error::AlreadyExists`].
    pub async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        record: Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
    ) -> Result<Written<Arc<Record>>, Error> {
        let update = Update { record, expected, expiry, rename: Some(*new) };
        self.inner.update(*old, update, Admission::New).await.map(Into::into)
    }

    /// Lets the session under `key` live until `expires_at`, if it would end before.
    ///
    /// # Errors
    ///
    /// [`Error::SessionGone`].
    pub async fn touch(&self, key: &StoredKey, expires_at: Timestamp) -> Result<Coherence, Error> {
        self.inner.touch(*key, Touch { seen: None, expires_at, idle_since: Timestamp::MAX }).await
    }

    /// Ends the session under `key`, everywhere and for good; whether there was one.
    ///
    /// # Errors
    ///
    /// As every write.
    pub async fn revoke(&self, key: &StoredKey) -> Result<Written<bool>, Error> {
        self.inner.delete(*key, None, Ending::Revoked(Revocation::One), Admission::New).await
    }

    /// Deletes all sessions that have expired; how many. What the [reaper](Reaper) does in the background.
    ///
    /// # Cancel safety
    ///
    /// It goes on by itself to its end; [`close`](Self::close) waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::ClockSkew`] when this machine's clock and the database's differ by more than
    /// [`clock_slack`](Builder::clock_slack); [`Error::Database`] when the database does not answer.
    pub fn clear_expired(&self) -> impl Future<Output = Result<u64, Error>> + Send {
        async move {
            self.inner.tasks.check_open()?;
            let store = Arc::clone(&self.inner);
            self.inner
                .tasks
                .run(async move { store.reap(Reaper::default().batch, Duration::ZERO).await })
                .await
        }
    }

    /// Asks the database and the cache whether they answer, and the database what time it is.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database does not answer. A cache that does not, and a clock that is wrong, are part of
    /// the result, because the store works all the same.
    pub fn ping(&self) -> impl Future<Output = Result<Health, Error>> + Send {
        async move {
            self.inner.read(&StoredKey::PROBE).await?;
            let skew = self.inner.clock_skew().await?;
            let answers = self.inner.cache.get(&StoredKey::PROBE, Gate::Probe).await.is_ok();
            let cache = match (answers, self.inner.cache.is_any_open()) {
                (true, false) => CacheHealth::Up,
                _ if self.inner.cache.is_all_open() || !answers && !self.inner.cache.has_others() => {
                    CacheHealth::Down
                }
                _ => CacheHealth::Partial,
            };
            let clock_skew = Some(skew).filter(|skew| *skew > self.inner.config.clock_slack);
            Ok(Health { cache, clock_skew })
        }
    }

    /// Says in the log when this machine's clock is wrong. A database that does not answer now is noticed by others.
    pub(crate) async fn warn_of_clock_skew(&self) {
        if let Ok(by) = self.inner.clock_skew().await
            && by > self.inner.config.clock_slack
        {
            tracing::warn!(target: "session_cached_db", event = "clock_skew", ?by,
                "this machine's clock and the database's differ by more than clock_slack; set the clock that is wrong: until \
                 then sessions end too early or too late, and expired ones are not deleted by this node");
        }
    }

    /// What this store has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }

    /// Refuses further writes, waits for those in flight, and stops the reaper. Then it repairs what the cache was not told
    /// of, because what is left of that is forgotten: if the cache does not answer, for as long as two
    /// [probe intervals](Builder::probe_interval).
    pub fn close(&self) -> impl Future<Output = ()> + Send {
        async move {
            self.inner.tasks.close();
            self.inner.tasks.drain().await;
            self.inner.repair_at_the_end().await;
        }
    }
}

#[allow(
    clippy::manual_async_fn,
    reason = "of an `async fn` that awaits a method of a `dyn` backend, callers cannot prove that its future is Send"
)]
impl<C: Cache, P: SubjectIndex> CachedDb<C, P> {
    /// Lists the sessions of `subject` ("you are logged in on these devices"): keys and times, in the order of their keys.
    /// [`data`](Self::data) returns what one of them holds.
    ///
    /// # Behavior
    ///
    /// - Sessions of another [key prefix](Builder::key_prefix) are another application's, and not listed.
    /// - A session whose row cannot be read is listed without its times, and can be ended like the others.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSubject`], or [`Error::Database`].
    pub fn list_by_subject(
        &self,
        subject: &str,
    ) -> impl Future<Output = Result<Vec<ListedSession>, Error>> + Send {
        async move {
            let subject = Subject::parse(subject)?;
            let rows = self.inner.list_by_subject(&subject, self.inner.runtime.now()).await?;
            let listed = rows.into_iter().map(|Row { key, contents, .. }| match contents {
                Ok(times) => ListedSession { key, times: Some(times) },
                Err(error) => {
                    self.inner.note_unreadable_row(&key, &Error::Database(Arc::new(error)));
                    ListedSession { key, times: None }
                }
            });
            Ok(listed.collect())
        }
    }

    /// Ends all sessions of `subject` ("log out everywhere"), also those that come into being meanwhile, and returns how
    /// many. Sessions of another [key prefix](Builder::key_prefix) are another application's, and live on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSubject`]; [`Error::Conflict`] when new ones kept coming; or the error of a write, with the other
    /// sessions ended.
    ///
    /// # Cancel safety
    ///
    /// It goes on by itself to its end; [`close`](Self::close) waits for it.
    pub fn revoke_subject(&self, subject: &str) -> impl Future<Output = Result<Written<u64>, Error>> + Send {
        let revoked = Subject::parse(subject).map(|subject| self.inner.revoke_subject(subject));
        async move { revoked?.await }
    }
}

/// A line of a list of sessions. See [`CachedDb::list_by_subject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedSession {
    /// The key that the session is stored under, by which it can be [ended](CachedDb::revoke).
    pub key: StoredKey,
    /// When it began, was last used, and ends. `None` when its row cannot be read.
    pub times: Option<SessionTimes>,
}

impl<C, P> Clone for CachedDb<C, P> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<C: fmt::Debug, P: fmt::Debug> fmt::Debug for CachedDb<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedDb")
            .field("db", &self.inner.db)
            .field("cache", &self.inner.cache)
            .field("stats", &self.inner.counters.snapshot())
            .finish_non_exhaustive()
    }
}

/// What a [`ping`](CachedDb::ping) has found. The database answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Whether the cache does.
    pub cache: CacheHealth,
    /// How far this machine's clock is from the database's, if that is more than the
    /// [`clock_slack`](Builder::clock_slack): set the clock that is wrong.
    pub clock_skew: Option<Duration>,
}

/// Whether a cache answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheHealth {
    /// It does.
    Up,
    /// Some of its servers do, others do not.
    Partial,
    /// It does not; sessions come from the database.
    Down,
}
