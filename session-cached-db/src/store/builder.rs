use std::sync::Arc;
use std::time::Duration;

use session_core::{
    Cache, Codec, DatabaseNotices, JsonCodec, Persistence, Rotations, Runtime, Scope, StoreId, SubjectIndex,
};

use super::inner::{Inner, Parts};
use super::limits::SubjectLimit;
use super::rotation_table::{RotationTable, Table};
use super::settings::{DAY, Options, SECOND, is_told_by_database};
use super::{CachedDb, ConflictPolicy, Reaper, Schema};
use crate::telemetry::{Hooks, LogKey};
use crate::{BuildError, OutagePolicy, TokioRuntime, WriteOperation};

/// The default of [`Builder::clock_slack`], which `sessionctl` compares clocks with.
pub const DEFAULT_CLOCK_SLACK: Duration = Duration::from_secs(2);

/// The default of [`Builder::write_timeout`]. The freshness bound of a near cache is below it.
pub const DEFAULT_WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Every default that depends on no other setting.
impl Default for Options {
    fn default() -> Self {
        Self {
            name: "sessions".to_owned(),
            key_prefix: String::new(),
            accepts_plain_keys: false,
            max_payload_bytes: None,
            max_keys: None,
            idle_timeout: 14 * DAY,
            absolute_timeout: None,
            touch_interval: None,
            expire_at_browser_close: false,
            max_cache_age: None,
            is_sole_process: false,
            is_notified: false,
            lease_ttl: 10 * SECOND,
            fence_ttl: 30 * SECOND,
            clock_slack: DEFAULT_CLOCK_SLACK,
            cache_timeout: Duration::from_millis(100),
            read_timeout: 5 * SECOND,
            write_timeout: DEFAULT_WRITE_TIMEOUT,
            breaker_threshold: 5,
            probe_interval: SECOND,
            repair_capacity: 100_000,
            single_flight_capacity: 100_000,
            max_waiting_writes: 1_024,
            max_sessions_per_subject: None,
            conflict_policy: ConflictPolicy::default(),
            fail_closed: Vec::new(),
            strict: Vec::new(),
            reaper: Some(Reaper::default()),
            rotation_grace: None,
        }
    }
}

/// A builder of a [`CachedDb`]. Every setting has a default that suits a web application.
///
/// ```
/// # #[cfg(all(feature = "moka", feature = "sqlite"))]
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
///
/// let cache = MokaCache::builder().max_bytes(64 << 20).build();
/// let db = SqlitePersistence::connect("sqlite://sessions.db").await?;
/// let store = CachedDb::builder(cache, db)
///     .sole_process()
///     .idle_timeout(Duration::from_secs(30 * 60))
///     .max_sessions_per_subject(5)
///     .build()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Builder<C, P> {
    cache: C,
    db: P,
    options: Options,
    schema: Schema,
    codec: Arc<dyn Codec>,
    runtime: Option<Arc<dyn Runtime>>,
    hooks: Option<Arc<dyn Hooks>>,
    subject_limit: Option<SubjectLimit<Inner<C, P>>>,
    rotations: Option<Arc<dyn RotationTable<P>>>,
    log_key: LogKey,
}

impl<C: Cache, P: Persistence> Builder<C, P> {
    pub(crate) fn new(cache: C, db: P) -> Self {
        Self {
            cache,
            db,
            options: Options::default(),
            schema: Schema::default(),
            codec: Arc::new(JsonCodec::default()),
            runtime: None,
            hooks: None,
            subject_limit: None,
            rotations: None,
            log_key: LogKey::new(None),
        }
    }

    /// Sets how long an unused session lives. Defaults to 14 days.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.options.idle_timeout = idle_timeout;
        self
    }

    /// Sets whether clients drop their cookies when the browser closes, unless a session chooses its own expiry. Defaults to
    /// `false`.
    pub fn expire_at_browser_close(mut self, expire_at_browser_close: bool) -> Self {
        self.options.expire_at_browser_close = expire_at_browser_close;
        self
    }

    /// Sets how long a session lives at most, counted from its creation, however much it is used. Defaults to no limit.
    pub fn absolute_timeout(mut self, absolute_timeout: Duration) -> Self {
        self.options.absolute_timeout = Some(absolute_timeout);
        self
    }

    /// Sets the shortest time between two [touches](crate::Session::touch) that are written to the database. Defaults to 5
    /// minutes, or a quarter of the idle timeout if that is less. For a session that has chosen its own lifetime, it is at
    /// most a quarter of that.
    pub fn touch_interval(mut self, touch_interval: Duration) -> Self {
        self.options.touch_interval = Some(touch_interval);
        self
    }

    /// Sets how long a cached value is used before the database is asked again, counted from the moment at which it was read
    /// or written there. This bounds staleness where nothing better can be promised.
    ///
    /// Defaults to 5 minutes. Defaults to 5 seconds if the cache belongs to this process alone, or other programs write to
    /// the table, unless [`sole_process`](Self::sole_process) is set.
    pub fn max_cache_age(mut self, max_cache_age: Duration) -> Self {
        self.options.max_cache_age = Some(max_cache_age);
        self
    }

    /// Promises that no other process uses the session table, so that a cache in this process sees every write.
    pub fn sole_process(mut self) -> Self {
        self.options.is_sole_process = true;
        self
    }

    /// Sets how long a reader may take to fill a key. Defaults to 10 s.
    pub fn lease_ttl(mut self, lease_ttl: Duration) -> Self {
        self.options.lease_ttl = lease_ttl;
        self
    }

    /// Sets how long a writer that died keeps a key out of the cache. Must be at least the cache timeout, the write timeout
    /// and the database's bound on abandoned statements together. Defaults to 30 s.
    pub fn fence_ttl(mut self, fence_ttl: Duration) -> Self {
        self.options.fence_ttl = fence_ttl;
        self
    }

    /// Sets how far the clocks of the nodes may differ. Defaults to 2 s.
    pub fn clock_slack(mut self, clock_slack: Duration) -> Self {
        self.options.clock_slack = clock_slack;
        self
    }

    /// Sets how long one call of a shared cache may take before the database is asked instead. Defaults to 100 ms.
    pub fn cache_timeout(mut self, cache_timeout: Duration) -> Self {
        self.options.cache_timeout = cache_timeout;
        self
    }

    /// Sets how long one read of the database may take. Defaults to 5 s.
    pub fn read_timeout(mut self, read_timeout: Duration) -> Self {
        self.options.read_timeout = read_timeout;
        self
    }

    /// Sets how long one write of the database may take before its outcome counts as unknown. Defaults to 10 s.
    pub fn write_timeout(mut self, write_timeout: Duration) -> Self {
        self.options.write_timeout = write_timeout;
        self
    }

    /// Sets the number of failed calls in a row after which a server of the cache is no longer used, until a probe finds that
    /// it answers again. Defaults to 5.
    pub fn breaker_threshold(mut self, breaker_threshold: u32) -> Self {
        self.options.breaker_threshold = breaker_threshold;
        self
    }

    /// Sets the time between two probes of a cache that does not answer. Defaults to 1 s.
    pub fn probe_interval(mut self, probe_interval: Duration) -> Self {
        self.options.probe_interval = probe_interval;
        self
    }

    /// Sets the number of keys that can wait for the cache to come back. One more drops them all, with a log event: staleness
    /// is then bounded by [`max_cache_age`](Self::max_cache_age) only. Defaults to 100,000.
    pub fn repair_capacity(mut self, repair_capacity: usize) -> Self {
        self.options.repair_capacity = repair_capacity;
        self
    }

    /// Sets the number of keys for which concurrent loads can share one attempt. Loads of further keys each read the
    /// database. Defaults to 100,000.
    pub fn single_flight_capacity(mut self, single_flight_capacity: usize) -> Self {
        self.options.single_flight_capacity = single_flight_capacity;
        self
    }

    /// Sets the number of writes of one session that can wait for their turn in this process, and of logins of one subject
    /// whose sessions [are limited](Self::max_sessions_per_subject). One more fails with
    /// [`Error::Busy`](crate::Error::Busy). Defaults to 1,024.
    pub fn max_waiting_writes(mut self, max_waiting_writes: usize) -> Self {
        self.options.max_waiting_writes = max_waiting_writes;
        self
    }

    /// Sets the largest payload of a session, in bytes. Defaults to 1 MiB, or to what the database takes if that is less.
    pub fn max_payload_bytes(mut self, max_payload_bytes: usize) -> Self {
        self.options.max_payload_bytes = Some(max_payload_bytes);
        self
    }

    /// Sets the number of values that a session can hold. A save with more fails with
    /// [`Error::TooManyKeys`](crate::Error::TooManyKeys). Applies to sessions that are saved through
    /// [`Session`](crate::Session), not to records of the application's own making. Defaults to no limit but
    /// [`max_payload_bytes`](Self::max_payload_bytes).
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.options.max_keys = Some(max_keys);
        self
    }

    /// Accepts sessions that another program or configuration has stored under plain keys, so that no client is logged out
    /// when keys are hashed from now on. Remove the call when no plain key is left. Plain keys are not accepted by default.
    ///
    /// # Behavior
    ///
    /// - A client whose key opens no session under its hash gets the session that is stored under the key itself, if there is
    ///   one. That session gets its hashed key at once. Stop programs that know plain keys only beforehand: they do not find
    ///   it any more.
    /// - The other sessions get hashed keys by [`hash_plain_keys`](crate::CachedDb::hash_plain_keys), or expire.
    /// - A key of 43 characters or more is never looked up as it is: it may be a hashed key, of this application or of another
    ///   with a prefix, and a client that has read the table could open every session in it. Sessions under longer plain keys
    ///   are left to expire.
    /// - A key that opens no session costs three reads of the database instead of one.
    ///
    /// Building fails if the database is one of plain keys by nature.
    pub fn accept_plain_keys(mut self) -> Self {
        self.options.accepts_plain_keys = true;
        self
    }

    /// Sets the hooks that are called when something happens to a session. Defaults to none.
    pub fn hooks(mut self, hooks: impl Hooks) -> Self {
        self.hooks = Some(Arc::new(hooks));
        self
    }

    /// Sets the store's name, the label `store` of its metrics. Together with the table and the
    /// [key prefix](Self::key_prefix), the name is also the store's identity, which is bound into every cached value: use the
    /// same name on all nodes, and different names for stores that share a cache. Defaults to `sessions`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// Sets the key of the hash that stands in logs instead of a session's key. With the same key on all nodes, a session can
    /// be followed through all their logs. It is a secret: with it, the lines of a log can be matched to the rows of the
    /// table. Defaults to a random key.
    pub fn log_key(mut self, log_key: impl Into<Box<[u8]>>) -> Self {
        self.log_key = LogKey::new(Some(log_key.into()));
        self
    }

    /// Sets what happens when two requests have changed the same key of a session. Defaults to
    /// [`ConflictPolicy::LastWrite`].
    pub fn conflict_policy(mut self, conflict_policy: ConflictPolicy) -> Self {
        self.options.conflict_policy = conflict_policy;
        self
    }

    /// Sets what `operation` does when the cache does not answer. Defaults to [`OutagePolicy::Degrade`] for every
    /// operation. To choose for all of them, call this for each of [`WriteOperation::ALL`].
    pub fn outage_policy(mut self, operation: WriteOperation, policy: OutagePolicy) -> Self {
        self.options.fail_closed.retain(|other| *other != operation);
        if policy == OutagePolicy::FailClosed {
            self.options.fail_closed.push(operation);
        }
        self
    }

    /// Makes `operation` final on all nodes when the cache is a near one: it is acknowledged only when no node shows what it
    /// has replaced, which takes the cache's freshness bound. Operations that end sessions or change their keys always are.
    /// Defaults to no other operation. Other caches show nothing old in any case.
    pub fn strict(mut self, operation: WriteOperation) -> Self {
        self.options.strict.push(operation);
        self
    }

    /// Sets the prefix of every stored key, in the database and in the cache, so that several applications can share them: at
    /// most 21 characters of `[A-Za-z0-9_.:-]`. Defaults to none.
    pub fn key_prefix(mut self, key_prefix: impl Into<String>) -> Self {
        self.options.key_prefix = key_prefix.into();
        self
    }

    /// Sets what the build does about the session table. Defaults to [`Schema::Migrate`].
    pub fn schema(mut self, schema: Schema) -> Self {
        self.schema = schema;
        self
    }

    /// Sets how expired sessions are deleted in the background. `None` leaves that to [`CachedDb::clear_expired`]. Defaults to
    /// [`Reaper::default`].
    pub fn reaper(mut self, reaper: impl Into<Option<Reaper>>) -> Self {
        self.options.reaper = reaper.into();
        self
    }

    /// Sets the codec, which encodes session data as payloads. Defaults to [`JsonCodec`].
    pub fn codec(mut self, codec: impl Codec) -> Self {
        self.codec = Arc::new(codec);
        self
    }

    /// Sets where time, timers, tasks and random numbers come from. Defaults to the tokio runtime in which the store is built.
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.runtime = Some(Arc::new(runtime));
        self
    }

    /// Builds the store, prepares the session table, and starts the reaper.
    ///
    /// # Errors
    ///
    /// - [`BuildError::Invalid`] when settings contradict each other or do not fit the cache or the database.
    /// - [`BuildError::Schema`] and [`BuildError::Database`] when the table cannot be prepared.
    /// - [`BuildError::NoRuntime`] outside of a tokio runtime, unless another [`runtime`](Self::runtime) is set.
    #[allow(clippy::manual_async_fn, reason = "as for the methods of CachedDb")]
    pub fn build(self) -> impl Future<Output = Result<CachedDb<C, P>, BuildError>> + Send {
        async move {
            let Self {
                cache,
                db,
                mut options,
                schema,
                codec,
                runtime,
                hooks,
                subject_limit,
                rotations,
                log_key,
            } = self;
            let reaper = options.reaper;
            let runtime = match runtime {
                Some(runtime) => runtime,
                None => Arc::new(TokioRuntime::current().ok_or(BuildError::NoRuntime)?),
            };
            let store_id = match cache.properties().scope {
                // No other store may believe what this one keeps in a cache of this process.
                Scope::Process => StoreId(runtime.random_u64().get()),
                // The same on all nodes.
                _ => {
                    let table = db.properties().table_id.to_string();
                    StoreId::of([&*options.name, &*table, &*options.key_prefix])
                }
            };
            options.check_near(&cache, &db.properties())?;
            // Twice: from the notices on, each write of this handle is reported, whether or not there is a store, and statements
            // may take longer.
            options.clone().resolve(&cache.properties(), &db.properties(), store_id)?;
            prepare(&db, schema, rotations.as_deref()).await?;
            let notices = take_notices(&cache, &db)?;
            let settings = options.resolve(&cache.properties(), &db.properties(), store_id)?;
            let parts = Parts {
                cache,
                db,
                settings,
                codec,
                runtime,
                hooks,
                subject_limit,
                rotations,
                log_key,
                notices,
            };
            let store =
                CachedDb::start(parts, reaper).map_err(|reason| BuildError::Invalid(reason.to_owned()))?;
            store.warn_of_clock_skew().await;
            Ok(store)
        }
    }
}

/// Returns the database's reports of changes, if the cache needs them. Refuses a database that has none.
fn take_notices(
    cache: &impl Cache,
    db: &impl Persistence,
) -> Result<Option<Arc<dyn DatabaseNotices>>, BuildError> {
    if !is_told_by_database(cache) {
        return Ok(None);
    }
    let notices = db.notify();
    notices.map(Some).map_err(|reason| BuildError::Invalid(format!("{}: {reason}", db.properties().name)))
}

/// Creates or checks the tables that the store needs.
async fn prepare<P: Persistence>(
    db: &P,
    schema: Schema,
    rotations: Option<&dyn RotationTable<P>>,
) -> Result<(), BuildError> {
    match schema {
        Schema::Migrate => db.migrate().await?,
        Schema::Check => db.check_schema().await?,
        Schema::Trust => {}
    }
    match (schema, rotations) {
        (Schema::Migrate, Some(table)) => table.migrate(db).await?,
        (Schema::Check, Some(table)) => table.check(db).await?,
        _ => {}
    }
    Ok(())
}

impl<C: Cache, P: Rotations> Builder<C, P> {
    /// Sets how long requests with the old key of a session can follow it to its new one: at most 60 seconds. Off by default:
    /// an old key is then dead at once.
    ///
    /// # Behavior
    ///
    /// - A client that presents the old key after [`renew_key`](crate::Session::renew_key) gets the session, and its new key
    ///   once more: the answer that carried it may have been lost on the way. A key that was stolen before is good for as long.
    /// - After a change of the subject, and after [`cycle_key`](crate::Session::cycle_key), the old key opens nothing: it may
    ///   be one that an attacker has planted. As long as the session lives, saving a new one without a subject for a client
    ///   with the old key fails with [`Error::SessionGone`](crate::Error::SessionGone): a poll that was under way during a login
    ///   would otherwise be answered with another key, and log the user out.
    /// - A request that was opened before its session got another key, whatever the reason, can still save: its changes are
    ///   applied to the session under the new key. If the old key opens nothing any more, the request learns neither the new key nor
    ///   the session's values, and fails with [`Error::Conflict`](crate::Error::Conflict) if both have changed the same value.
    /// - A session that has ended cannot be followed.
    /// - Each that follows is reported: by the event `rotation_followed`, a metric, and the hook
    ///   [`followed`](crate::Hooks::followed).
    /// - A rotation costs one statement more, and so does a key that opens no session. The new keys are noted in a table of
    ///   their own, masked by the old ones. It is [migrated or checked](Self::schema) like the session table. The
    ///   [reaper](Self::reaper) empties it, also when the setting was taken away.
    /// - With a near cache, a request that presents an old key waits for the freshness bound before it gets the new one.
    /// - Nodes without the setting, or with an older version, can run beside this one. Their rotations have no grace.
    pub fn rotation_grace(mut self, grace: Duration) -> Self {
        self.options.rotation_grace = Some(grace);
        self.rotations = Some(Arc::new(Table));
        self
    }
}

impl<C: Cache, P: SubjectIndex> Builder<C, P> {
    /// Sets the number of sessions that a subject can have. When one more is saved with the subject, the sessions that were
    /// not used for the longest time are ended. Defaults to no limit.
    ///
    /// # Behavior
    ///
    /// - Sessions are counted when one gets its subject: by [`create`](crate::CachedDb::create), or by a save or a new key
    ///   after [`set_subject`](crate::Session::set_subject). They are not counted by an
    ///   [`update`](crate::CachedDb::update) with a record of the application's own making.
    /// - The time of a session's last use is as precise as the [`touch_interval`](Self::touch_interval), and
    ///   comes from the clocks of the nodes. The session that has just got its subject is never ended, even
    ///   if clocks differ.
    /// - Sessions of another [key prefix](Self::key_prefix) are another application's, and do not count.
    /// - The login waits until up to 8 surplus sessions have ended. Should there be more, as when the limit is new, they are
    ///   ended in the background, in pages, and the login waits for none of them: it reads the limit and 9 more sessions,
    ///   however many there are. Until then, the subject has more sessions than the limit.
    /// - Logins of one subject in one process run one after another. A login whose turn does not come within the
    ///   [`write_timeout`](Self::write_timeout) fails with [`Error::Busy`](crate::Error::Busy), and nothing was written.
    /// - If two sessions log in at the same time on nodes whose clocks differ, both may live on until the
    ///   next login.
    /// - If the database does not answer when the sessions are counted, the new session is still saved, with
    ///   an event; the next login of the subject makes up for it.
    pub fn max_sessions_per_subject(mut self, limit: usize) -> Self {
        self.options.max_sessions_per_subject = Some(limit);
        self.subject_limit =
            Some(SubjectLimit::new(limit, |store: Arc<Inner<C, P>>, subject, newest, limit| {
                Box::pin(store.end_surplus(subject, newest, limit))
            }));
        self
    }
}
