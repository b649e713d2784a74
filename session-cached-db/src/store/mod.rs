//! The store: a database behind a coherent cache.
//!
//! [`CachedDb`] is the public type, [`Inner`] the parts that its clones share. Reads: `load`, `single_flight`. Operations on
//! many sessions: `subjects`, `together`, `limits`, `maintenance`, `reaper`. Watched sessions: `watch`. Requests that come
//! late with an old key: `rotations`. The way of a write, from its caller to the database, in files of which each uses only
//! those after it:
//!
//! | file | content |
//! |---|---|
//! | `writes` | the public methods, and each write when its turn has come |
//! | `turns` | the task that carries the writes of a session out, one after another |
//! | `save`, `merge` | changed data: one statement for all saves that wait together |
//! | `outcome` | the end of a write |
//! | `inner` | the parts of a store |
//! | `queue`, `job` | queues, and what waits in them |

mod abandoned;
mod attempt;
mod builder;
mod database;
pub(crate) mod expiry;
mod inner;
pub(crate) mod job;
mod limits;
mod load;
mod logout;
mod maintenance;
mod merge;
#[cfg(feature = "__simulation")]
mod mutants;
mod no_cache;
mod outcome;
mod queue;
mod reaper;
mod rotation_table;
mod rotations;
mod save;
mod settings;
mod single_flight;
mod subjects;
mod together;
mod touches;
mod turns;
mod watch;
mod writes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use session_core::{
    Cache, InvalidKey, Persistence, Record, Row, SessionData, SessionKey, SessionTimes, StoredKey, Subject,
    SubjectIndex,
};

use self::inner::Parts;
use crate::Error;
use crate::coherence::{Loaded, Reachable};
use crate::telemetry::Stats;

pub use self::builder::{Builder, DEFAULT_CLOCK_SLACK, DEFAULT_WRITE_TIMEOUT};
pub(crate) use self::inner::Inner;
pub use self::job::Written;
pub(crate) use self::logout::Logout;
pub use self::maintenance::SweepPage;
pub use self::no_cache::NoCache;
pub(crate) use self::queue::{Wait, answer_of};
pub(crate) use self::rotations::{Followed, Follows};
pub use self::settings::SHORTEST_FRESHNESS_BOUND;
pub(crate) use self::settings::Settings;
pub use self::settings::{ConflictPolicy, Reaper, Schema};

/// A session store: a database, which is the truth, and a cache in front of it, which never lies.
///
/// Cheap to clone; clones share one store. See the [crate's documentation](crate) for its guarantees.
///
/// Most programs need [`open`](Self::open) and [`Session`](crate::Session) only. The methods that take a [`StoredKey`] are
/// for lists of sessions, for operators' programs, and for adapters to other frameworks.
///
/// # Errors of every write
///
/// - [`Error::Database`] when the database does not answer or refuses; its [outcome](Error::outcome) says whether the write
///   may have happened.
/// - [`Error::Busy`] when too many writes of the session wait, or other processes kept getting ahead.
/// - [`Error::CacheUnavailable`] under [`OutagePolicy::FailClosed`](crate::OutagePolicy::FailClosed) only.
/// - [`Error::Closed`] after [`close`](Self::close), and [`Error::Interrupted`] when the runtime ends.
///
/// # Cancel safety
///
/// Reads can be dropped at any time. A write runs in a task of its own from its first effect on: a caller that drops the
/// future does not learn the result, but nothing is left half done. [`close`](Self::close) waits for such tasks.
pub struct CachedDb<C, P> {
    pub(crate) inner: Arc<Inner<C, P>>,
}

#[allow(
    clippy::manual_async_fn,
    reason = "of an `async fn` that awaits a method of a `dyn` backend, callers cannot prove that its future is Send"
)]
impl<C: Cache, P: Persistence> CachedDb<C, P> {
    /// Returns a builder of a store over any cache and any database.
    pub fn builder(cache: C, db: P) -> Builder<C, P> {
        Builder::new(cache, db)
    }

    /// Fails with the reason if the cache has become another store's.
    pub(crate) fn start(parts: Parts<C, P>, reaper: Option<Reaper>) -> Result<Self, &'static str> {
        let inner = Inner::new(parts)?;
        if let Some(reaper) = reaper {
            inner.start_reaper(reaper);
        }
        Ok(Self { inner })
    }

    /// Returns the key under which the session of `key` is stored.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] when this store cannot hold a session of that key.
    pub fn stored_key(&self, key: &SessionKey) -> Result<StoredKey, InvalidKey> {
        self.inner.settings.stored_key(key)
    }

    /// Returns the session that is stored under `key`, or `None` if there is none or it has expired.
    ///
    /// # Errors
    ///
    /// [`Error::Unreadable`] when the payload cannot be decoded; the row stays. [`Error::Database`] when the database does
    /// not answer.
    pub fn load(&self, key: &StoredKey) -> impl Future<Output = Result<Option<Arc<Record>>, Error>> + Send {
        async move { Ok(self.inner.load_for_caller(key).await?.map(|loaded| loaded.record)) }
    }

    /// Returns the data of the session that is stored under `key`, for a list that shows more of a session than its times.
    ///
    /// # Errors
    ///
    /// The errors of [`load`](Self::load).
    pub fn data(&self, key: &StoredKey) -> impl Future<Output = Result<Option<SessionData>, Error>> + Send {
        async move {
            let Some(Loaded { record, .. }) = self.inner.load_for_caller(key).await? else { return Ok(None) };
            let data = record.data(key, &*self.inner.codec);
            data.map(Some).map_err(|error| self.inner.unreadable(key, error))
        }
    }

    /// Returns `true` if there is a session under `key` that has not expired.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database does not answer.
    pub fn exists(&self, key: &StoredKey) -> impl Future<Output = Result<bool, Error>> + Send {
        async move { Ok(self.inner.load(key).await?.is_some()) }
    }

    /// Deletes every session that has expired, in batches of the [reaper's](Reaper::batch) size (of its default size without
    /// a reaper) and without a pause between them, and returns how many. The reaper does the same in the background.
    ///
    /// # Cancel safety
    ///
    /// Goes on to its end if the future is dropped; [`close`](Self::close) waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::ClockSkew`] when this machine's clock and the database's differ by more than
    /// [`clock_slack`](Builder::clock_slack); [`Error::Database`] when the database does not answer.
    pub fn clear_expired(&self) -> impl Future<Output = Result<u64, Error>> + Send {
        async move {
            self.inner.tasks.check_open()?;
            let store = Arc::clone(&self.inner);
            self.inner.tasks.run(async move { store.reap(store.settings.reap_batch, None).await }).await
        }
    }

    /// Asks the database and the cache whether they answer, and the database for its time.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database does not answer. A cache that does not answer and a clock that is wrong are part
    /// of the result, because the store works all the same.
    pub fn ping(&self) -> impl Future<Output = Result<Health, Error>> + Send {
        async move {
            self.inner.read(&StoredKey::PROBE).await?;
            let skew = self.inner.clock_skew().await?;
            let cache = match self.inner.cache.ping().await {
                Reachable::All => CacheHealth::Up,
                Reachable::Some => CacheHealth::Partial,
                Reachable::None => CacheHealth::Down,
                Reachable::Refused => CacheHealth::Unusable,
            };
            let clock_skew = Some(skew).filter(|skew| *skew > self.inner.settings.clock_slack);
            Ok(Health { cache, clock_skew })
        }
    }

    /// Logs a warning if this machine's clock is wrong. A database that does not answer now is noticed elsewhere.
    pub(crate) async fn warn_of_clock_skew(&self) {
        if let Ok(by) = self.inner.clock_skew().await
            && by > self.inner.settings.clock_slack
        {
            tracing::warn!(target: "session_cached_db", event = "clock_skew", ?by,
                "this machine's clock and the database's differ by more than clock_slack; set the clock that is wrong: until \
                 then sessions end too early or too late, and expired ones are not deleted by this node");
        }
    }

    /// Returns counts of the store's work so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.telemetry.counters.snapshot()
    }

    /// Refuses further writes, waits for those in flight, and stops the reaper. Then repairs the cache entries of writes that
    /// could not be fenced, because the repair queue ends with the store. If the cache does not answer, that takes at most two
    /// [probe intervals](Builder::probe_interval). Ends the connection on which a near cache is told of changes: loads that
    /// come later go to the shared cache, or to the database.
    pub fn close(&self) -> impl Future<Output = ()> + Send {
        async move {
            self.inner.tasks.close();
            self.inner.tasks.drain().await;
            self.inner.cache.repair_at_the_end().await;
            self.inner.cache.stop_near().await;
        }
    }
}

#[allow(
    clippy::manual_async_fn,
    reason = "of an `async fn` that awaits a method of a `dyn` backend, callers cannot prove that its future is Send"
)]
impl<C: Cache, P: SubjectIndex> CachedDb<C, P> {
    /// Returns the keys and times of the sessions of `subject` ("you are logged in on these devices"), in the order of their
    /// keys. [`data`](Self::data) returns the contents of one of them.
    ///
    /// # Behavior
    ///
    /// - Sessions with another [key prefix](Builder::key_prefix) belong to another application, and are not listed.
    /// - A session whose row cannot be read is listed without its times, and can be ended like the others.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSubject`], or [`Error::Database`] when the database does not answer.
    pub fn list_by_subject(
        &self,
        subject: &str,
    ) -> impl Future<Output = Result<Vec<ListedSession>, Error>> + Send {
        async move {
            let subject = Subject::parse(subject)?;
            let rows = self.inner.list_by_subject(&subject, self.inner.runtime.now(), usize::MAX).await?;
            Ok(rows.into_iter().map(|row| self.listed(row)).collect())
        }
    }

    /// Returns at most `limit` of the sessions that [`list_by_subject`](Self::list_by_subject) returns: those whose keys come
    /// after `after`, or the first ones. For subjects that may have thousands. A `limit` of zero counts as one.
    ///
    /// # Errors
    ///
    /// The errors of [`list_by_subject`](Self::list_by_subject).
    pub fn list_page_by_subject(
        &self,
        subject: &str,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<SubjectPage, Error>> + Send {
        let after = after.copied();
        async move {
            let subject = Subject::parse(subject)?;
            let now = self.inner.runtime.now();
            let (rows, next) = self.inner.list_page_of_subject(&subject, now, after, limit).await?;
            Ok(SubjectPage { sessions: rows.into_iter().map(|row| self.listed(row)).collect(), next })
        }
    }

    fn listed(&self, row: Row<SessionTimes>) -> ListedSession {
        let Row { key, contents, .. } = row;
        let times = match contents {
            Ok(times) => Some(times),
            Err(error) => {
                self.inner.note_unreadable_row(&key, &Error::Database(Arc::new(error)));
                None
            }
        };
        ListedSession { key, times }
    }

    /// Ends every session of `subject` ("log out everywhere"), also those that are created meanwhile, and returns how many
    /// were ended. Sessions with another [key prefix](Builder::key_prefix) belong to another application, and live on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSubject`]; [`Error::Conflict`] when new sessions kept coming; or an
    /// [error of every write](Self#errors-of-every-write), after the other sessions were ended.
    ///
    /// # Cancel safety
    ///
    /// Goes on to its end if the future is dropped; [`close`](Self::close) waits for it.
    pub fn revoke_subject(&self, subject: &str) -> impl Future<Output = Result<Written<u64>, Error>> + Send {
        let revoked = Subject::parse(subject).map(|subject| self.inner.revoke_subject(subject));
        async move { revoked?.await }
    }
}

/// A page of a list of sessions. See [`CachedDb::list_page_by_subject`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubjectPage {
    /// The sessions, in the order of their keys. May be fewer than were asked for, before the last page, too.
    pub sessions: Vec<ListedSession>,
    /// The key after which the next page begins. `None` after the last page.
    pub next: Option<StoredKey>,
}

/// A line of a list of sessions. See [`CachedDb::list_by_subject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedSession {
    /// The key under which the session is stored, by which it can be [ended](CachedDb::revoke).
    pub key: StoredKey,
    /// The instants at which the session began, was last used, and ends. `None` if its row cannot be read.
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
            .field("stats", &self.inner.telemetry.counters.snapshot())
            .finish_non_exhaustive()
    }
}

/// The result of a [`ping`](CachedDb::ping) of a database that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The state of the cache.
    pub cache: CacheHealth,
    /// The difference between this machine's clock and the database's, if it is more than the
    /// [`clock_slack`](Builder::clock_slack): set the clock that is wrong.
    pub clock_skew: Option<Duration>,
}

/// The state of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheHealth {
    /// The cache answers.
    Up,
    /// Some servers of the cache answer, others do not.
    Partial,
    /// The cache does not answer; sessions come from the database.
    Down,
    /// The cache answers, and refuses every call until an operator mends it: a wrong password, a missing right, a server
    /// that is too old. The log event `cache_unusable` says what to do. Sessions come from the database.
    Unusable,
}
