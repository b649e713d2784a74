use std::sync::Arc;
use std::time::Duration;

use session_core::{
    Cache, Codec, JsonCodec, KeyForm, KeyPrefix, Persistence, Runtime, Scope, SessionKey, StoreId,
    SubjectIndex,
};

use crate::config::Config;
use crate::events::Events;
use crate::inner::Parts;
use crate::limits::SubjectLimit;
use crate::reaper::Reaper;
use crate::trace::LogKey;
use crate::{BuildError, CachedDb, ConflictPolicy, Operation, OutagePolicy, Schema, TokioRuntime};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Builds a [`CachedDb`]. Every setting has a default that suits a web application.
#[derive(Debug)]
#[must_use]
pub struct Builder<C, P> {
    cache: C,
    db: P,
    config: Config,
    max_cache_age: Option<Duration>,
    max_payload_bytes: Option<usize>,
    touch_interval: Option<Duration>,
    is_sole_process: bool,
    key_prefix: String,
    schema: Schema,
    reaper: Option<Reaper>,
    codec: Arc<dyn Codec>,
    runtime: Option<Arc<dyn Runtime>>,
    events: Option<Arc<dyn Events>>,
    subject_limit: Option<SubjectLimit<C, P>>,
    log_key: LogKey,
}

impl<C: Cache, P: Persistence> Builder<C, P> {
    pub(crate) fn new(cache: C, db: P) -> Self {
        let properties = db.properties();
        let config = Config {
            name: "sessions".to_owned(),
            key_form: properties.key_form,
            key_prefix: KeyPrefix::NONE,
            store_id: StoreId(0),
            max_key_bytes: properties.max_key_bytes,
            max_payload_bytes: properties.max_payload_bytes.min(1 << 20),
            max_keys: None,
            accepts_plain_keys: false,
            idle_timeout: 14 * DAY,
            absolute_timeout: None,
            touch_interval: 300 * SECOND,
            expire_at_browser_close: false,
            max_cache_age: 300 * SECOND,
            lease_ttl: 10 * SECOND,
            fence_ttl: 30 * SECOND,
            clock_slack: 2 * SECOND,
            cache_timeout: Duration::from_millis(100),
            read_timeout: 5 * SECOND,
            write_timeout: 10 * SECOND,
            statement_bound: properties.statement_bound,
            breaker_threshold: 5,
            probe_interval: SECOND,
            repair_capacity: 100_000,
            flight_capacity: 100_000,
            max_waiting_writes: 1_024,
            conflict_policy: ConflictPolicy::default(),
            fail_closed: Vec::new(),
        };
        Self {
            cache,
            db,
            config,
            max_cache_age: None,
            max_payload_bytes: None,
            touch_interval: None,
            is_sole_process: false,
            key_prefix: String::new(),
            schema: Schema::default(),
            reaper: Some(Reaper::default()),
            codec: Arc::new(JsonCodec::default()),
            runtime: None,
            events: None,
            subject_limit: None,
            log_key: LogKey::new(None),
        }
    }

    /// How long an unused session lives. By default 14 days.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.config.idle_timeout = idle_timeout;
        self
    }

    /// Whether clients are to drop their cookies when the browser closes, unless a session chooses its own expiry. By
    /// default not.
    pub fn expire_at_browser_close(mut self, expire_at_browser_close: bool) -> Self {
        self.config.expire_at_browser_close = expire_at_browser_close;
        self
    }

    /// How long any session lives, counted from its creation, however much it is used. By default without limit.
    pub fn absolute_timeout(mut self, absolute_timeout: Duration) -> Self {
        self.config.absolute_timeout = Some(absolute_timeout);
        self
    }

    /// How much time passes at least between two [touches](crate::Session::touch) that are written to the database. By
    /// default 5 minutes, or a quarter of the idle timeout if that is less. Never more than a quarter of the time that
    /// a session has chosen for itself.
    pub fn touch_interval(mut self, touch_interval: Duration) -> Self {
        self.touch_interval = Some(touch_interval);
        self
    }

    /// How long a cached value is used at most before the database is asked again, counted from the moment at which it
    /// was read or written there. This bounds staleness where nothing better can be promised. By default 5 minutes; 5
    /// seconds if the cache is this process's own, or other programs write to the table, and
    /// [`sole_process`](Self::sole_process) was not said.
    pub fn max_cache_age(mut self, max_cache_age: Duration) -> Self {
        self.max_cache_age = Some(max_cache_age);
        self
    }

    /// Promises that no other process uses the session table, so that a cache in this process sees every write.
    pub fn sole_process(mut self) -> Self {
        self.is_sole_process = true;
        self
    }

    /// How long a reader may take to fill a key. By default 10 s.
    pub fn lease_ttl(mut self, lease_ttl: Duration) -> Self {
        self.config.lease_ttl = lease_ttl;
        self
    }

    /// How long a writer that died keeps a key out of the cache. By default 30 s. At least the cache timeout, the
    /// write timeout and the database's bound on abandoned statements together.
    pub fn fence_ttl(mut self, fence_ttl: Duration) -> Self {
        self.config.fence_ttl = fence_ttl;
        self
    }

    /// How far the clocks of the nodes differ at most. By default 2 s.
    pub fn clock_slack(mut self, clock_slack: Duration) -> Self {
        self.config.clock_slack = clock_slack;
        self
    }

    /// How long one call of a shared cache may take before the database is asked instead. By default 100 ms.
    pub fn cache_timeout(mut self, cache_timeout: Duration) -> Self {
        self.config.cache_timeout = cache_timeout;
        self
    }

    /// How long one read of the database may take. By default 5 s.
    pub fn read_timeout(mut self, read_timeout: Duration) -> Self {
        self.config.read_timeout = read_timeout;
        self
    }

    /// How long one write of the database may take, before its outcome counts as unknown. By default 10 s.
    pub fn write_timeout(mut self, write_timeout: Duration) -> Self {
        self.config.write_timeout = write_timeout;
        self
    }

    /// After how many failed cache calls in a row the cache is left alone, but for a probe now and then. By default 5.
    pub fn breaker_threshold(mut self, breaker_threshold: u32) -> Self {
        self.config.breaker_threshold = breaker_threshold;
        self
    }

    /// How often a cache that is left alone is probed. By default every second.
    pub fn probe_interval(mut self, probe_interval: Duration) -> Self {
        self.config.probe_interval = probe_interval;
        self
    }

    /// How many keys can be waiting for the cache to come back. By default 100,000. With more, all are dropped, with an
    /// event: staleness is then bounded by [`max_cache_age`](Self::max_cache_age) only.
    pub fn repair_capacity(mut self, repair_capacity: usize) -> Self {
        self.config.repair_capacity = repair_capacity;
        self
    }

    /// How many different keys can be loaded at the same time with their callers sharing one load. By default 100,000.
    /// Loads beyond that read the database on their own.
    pub fn flight_capacity(mut self, flight_capacity: usize) -> Self {
        self.config.flight_capacity = flight_capacity;
        self
    }

    /// Sets how many writes of one session can wait for their turn in this process. One more fails with
    /// [`Error::Busy`](crate::Error::Busy). Defaults to 1,024.
    pub fn max_waiting_writes(mut self, max_waiting_writes: usize) -> Self {
        self.config.max_waiting_writes = max_waiting_writes;
        self
    }

    /// The largest payload of a session, in bytes. By default 1 MiB, or what the database takes if that is less.
    pub fn max_payload_bytes(mut self, max_payload_bytes: usize) -> Self {
        self.max_payload_bytes = Some(max_payload_bytes);
        self
    }

    /// How many values a session can hold; a save with more fails with
    /// [`Error::TooManyKeys`](crate::Error::TooManyKeys). For sessions that are saved through
    /// [`Session`](crate::Session): records of the application's own making are not looked into. By default without
    /// limit, but that of [`max_payload_bytes`](Self::max_payload_bytes).
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.config.max_keys = Some(max_keys);
        self
    }

    /// For a table whose sessions are, or were, stored under plain keys by another program or configuration: nobody is
    /// logged out when keys are hashed from now on. By default not; to be taken away when no plain key is left.
    ///
    /// # Behavior
    ///
    /// - A client whose key opens no session under its hash gets the one that is stored under the key itself, if there is
    ///   one. That session gets its hashed key at once. Programs that know plain keys only do not find it any more; stop
    ///   them before.
    /// - The rest is done by [`hash_plain_keys`](crate::CachedDb::hash_plain_keys), or left to expire.
    /// - A key of 43 characters or more is never looked up as it is: it may be a hashed one, of this application or of another
    ///   with a prefix, and whoever has read the table could open every session in it. Sessions under longer plain keys have
    ///   to end by themselves.
    /// - A key that opens no session costs three reads of the database instead of one.
    ///
    /// Building fails if the database is one of plain keys by nature.
    pub fn accept_plain_keys(mut self) -> Self {
        self.config.accepts_plain_keys = true;
        self
    }

    /// Who is told what becomes of sessions. By default nobody.
    pub fn events(mut self, events: impl Events) -> Self {
        self.events = Some(Arc::new(events));
        self
    }

    /// Sets what this store is called in metrics, as the label `store`. Together with the table and the
    /// [key prefix](Self::key_prefix) it is also the store's identity, which is bound into what it caches: give it the same
    /// name on all nodes, and different names to stores that share a cache. Defaults to `sessions`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// The key of the hash that stands in logs instead of a session's key: with the same key on all nodes, a session can
    /// be followed through all their logs. A secret: who has it, and a log and the table, can match them. By default
    /// random.
    pub fn log_key(mut self, log_key: impl Into<Box<[u8]>>) -> Self {
        self.log_key = LogKey::new(Some(log_key.into()));
        self
    }

    /// What happens when two requests changed the same key of a session. By default the later save's value stays.
    pub fn conflict_policy(mut self, conflict_policy: ConflictPolicy) -> Self {
        self.config.conflict_policy = conflict_policy;
        self
    }

    /// What `operation` does when the cache does not answer. By default every operation degrades.
    pub fn outage_policy(mut self, operation: Operation, policy: OutagePolicy) -> Self {
        self.config.fail_closed.retain(|other| *other != operation);
        if policy == OutagePolicy::FailClosed {
            self.config.fail_closed.push(operation);
        }
        self
    }

    /// What stands in front of every stored key, in the database and in the cache, so that several applications can
    /// share them: at most 21 characters of `[A-Za-z0-9_.:-]`. By default nothing.
    pub fn key_prefix(mut self, key_prefix: impl Into<String>) -> Self {
        self.key_prefix = key_prefix.into();
        self
    }

    /// What becomes of the session table now. By default it is made, or brought up to date.
    pub fn schema(mut self, schema: Schema) -> Self {
        self.schema = schema;
        self
    }

    /// How expired sessions are deleted in the background, or `None` to leave it to
    /// [`CachedDb::clear_expired`]. By default every ten minutes.
    pub fn reaper(mut self, reaper: impl Into<Option<Reaper>>) -> Self {
        self.reaper = reaper.into();
        self
    }

    /// How data becomes payload. By default [`JsonCodec`].
    pub fn codec(mut self, codec: impl Codec) -> Self {
        self.codec = Arc::new(codec);
        self
    }

    /// Time, timers, tasks and random tokens. By default those of the tokio runtime in which the store is built.
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.runtime = Some(Arc::new(runtime));
        self
    }

    /// Builds the store, prepares the session table, and starts the reaper.
    ///
    /// # Errors
    ///
    /// [`BuildError::Invalid`] when settings contradict each other or do not fit the cache or the database;
    /// [`BuildError::Schema`] and [`BuildError::Database`] when the table cannot be prepared.
    #[allow(clippy::manual_async_fn, reason = "as for the methods of CachedDb")]
    pub fn build(mut self) -> impl Future<Output = Result<CachedDb<C, P>, BuildError>> + Send {
        async move {
            self.resolve()?;
            let runtime = match self.runtime.take() {
                Some(runtime) => runtime,
                None => Arc::new(TokioRuntime::current().ok_or(BuildError::NoRuntime)?),
            };
            match self.schema {
                Schema::Migrate => self.db.migrate().await?,
                Schema::Check => self.db.check_schema().await?,
                Schema::Trust => {}
            }
            self.config.store_id = self.store_id(&*runtime);
            let parts = Parts {
                cache: self.cache,
                db: self.db,
                config: self.config,
                codec: self.codec,
                runtime,
                events: self.events,
                subject_limit: self.subject_limit,
                log_key: self.log_key,
            };
            let store = CachedDb::start(parts, self.reaper);
            store.warn_of_clock_skew().await;
            Ok(store)
        }
    }

    /// What this store caches under: the same on all nodes. Of a cache in this process, no other store is to believe it.
    fn store_id(&self, runtime: &dyn Runtime) -> StoreId {
        match self.cache.properties().scope {
            Scope::Process => StoreId(runtime.random_u64().get()),
            _ => {
                let table = self.db.properties().table_id.to_string();
                StoreId::of([&*self.config.name, &*table, &*self.key_prefix])
            }
        }
    }

    /// Fills in the defaults that depend on other settings, and refuses what does not fit together.
    fn resolve(&mut self) -> Result<(), BuildError> {
        let cache = self.cache.properties();
        let db = self.db.properties();
        let config = &mut self.config;
        let invalid = |text: String| Err(BuildError::Invalid(text));

        let has_others = cache.scope == Scope::Process || db.has_other_writers;
        let is_blind = has_others && !self.is_sole_process;
        config.max_cache_age = self.max_cache_age.unwrap_or(if is_blind { 5 * SECOND } else { 300 * SECOND });
        config.touch_interval = self.touch_interval.unwrap_or((config.idle_timeout / 4).min(300 * SECOND));

        let reaper_interval = self.reaper.map(|reaper| reaper.interval);
        for (name, time) in [
            ("idle_timeout", Some(config.idle_timeout)),
            ("absolute_timeout", config.absolute_timeout),
            ("max_cache_age", Some(config.max_cache_age)),
            ("lease_ttl", Some(config.lease_ttl)),
            ("fence_ttl", Some(config.fence_ttl)),
            ("cache_timeout", Some(config.cache_timeout)),
            ("read_timeout", Some(config.read_timeout)),
            ("write_timeout", Some(config.write_timeout)),
            ("probe_interval", Some(config.probe_interval)),
            ("the reaper's interval", reaper_interval),
        ] {
            if time.is_some_and(|time| time.is_zero()) {
                return invalid(format!("{name} must be above zero"));
            }
        }
        if self.reaper.is_some_and(|reaper| reaper.batch == 0) {
            return invalid("the reaper's batch must be above zero, or it never comes to an end".into());
        }
        if config.absolute_timeout.is_some() && !db.keeps_created_at {
            return invalid(
                "absolute_timeout counts from when a session began, which this database does not keep".into(),
            );
        }
        if config.max_waiting_writes == 0 {
            return invalid("max_waiting_writes must be above zero, or nothing can be written".into());
        }
        if config.breaker_threshold == 0 {
            return invalid("breaker_threshold must be above zero, or the cache is never used".into());
        }
        if config.touch_interval >= config.idle_timeout {
            return invalid(
                "touch_interval must be shorter than idle_timeout, or sessions in use expire".into(),
            );
        }

        if self.subject_limit.as_ref().is_some_and(|limit| limit.limit == 0) {
            return invalid("max_sessions_per_subject must be above zero, or nobody can log in".into());
        }
        if config.accepts_plain_keys && config.key_form != KeyForm::Hashed {
            return invalid(
                "this database holds plain keys, so there is nothing to accept_plain_keys for".into(),
            );
        }

        config.max_payload_bytes = self.max_payload_bytes.unwrap_or(config.max_payload_bytes);
        if config.max_payload_bytes > db.max_payload_bytes {
            return invalid(format!(
                "max_payload_bytes is {}, but this database takes at most {}",
                config.max_payload_bytes, db.max_payload_bytes
            ));
        }

        config.key_prefix = KeyPrefix::parse(&self.key_prefix).map_err(|_| {
            BuildError::Invalid("key_prefix has at most 21 characters of [A-Za-z0-9_.:-]".into())
        })?;
        if config.key_form == KeyForm::Plain && !self.key_prefix.is_empty() {
            return invalid("this database holds keys that others share, so key_prefix must be empty".into());
        }
        let needed = match config.key_form {
            KeyForm::Plain => SessionKey::GENERATED_LEN,
            _ => self.key_prefix.len() + KeyForm::HASHED_LEN,
        };
        if needed > db.max_key_bytes {
            return invalid(format!(
                "stored keys would have {needed} bytes, but this database takes at most {}; shorten key_prefix, or \
                 take another database",
                db.max_key_bytes
            ));
        }

        let shortest = config.lease_ttl.min(config.fence_ttl).min(config.max_cache_age);
        if shortest < cache.ttl_granularity {
            return invalid(format!(
                "lease_ttl, fence_ttl and max_cache_age must be at least this cache's granularity, {:?}",
                cache.ttl_granularity
            ));
        }
        // A fence counts from before it is placed. If no time were left for that, it would be over whenever it is confirmed.
        let shortest = config.longest_statement().saturating_add(config.cache_timeout);
        if config.fence_ttl < shortest {
            return invalid(format!(
                "fence_ttl must be at least {shortest:?}: cache_timeout, write_timeout, and the {:?} for which this database may go on with an abandoned statement",
                config.statement_bound
            ));
        }
        Ok(())
    }
}

impl<C: Cache, P: SubjectIndex> Builder<C, P> {
    /// How many sessions a subject can have. When one more is saved with it, the ones that were not used for the longest
    /// time are ended. By default without limit.
    ///
    /// # Behavior
    ///
    /// - Counts when a session gets its subject: by [`create`](crate::CachedDb::create), or by a save or a new key after
    ///   [`set_subject`](crate::Session::set_subject). Not by [`update`](crate::CachedDb::update) of a record of the
    ///   application's own making.
    /// - When a session was last used is as fresh as the [`touch_interval`](Self::touch_interval) makes it, and by the
    ///   clocks of the nodes. The session that has just got its subject is never ended, whatever the clocks say.
    /// - Sessions of another [key prefix](Self::key_prefix) are another application's, and do not count.
    /// - Of two that log in at the same time, on nodes whose clocks differ, both may live on until the next login.
    /// - If the database does not answer then, the session is saved all the same, with an event; the next login of the
    ///   subject makes up for it.
    pub fn max_sessions_per_subject(mut self, limit: usize) -> Self {
        self.subject_limit = Some(SubjectLimit::new(limit));
        self
    }
}
