use std::time::Duration;

use session_core::{
    Cache, CacheProperties, Expiry, InvalidKey, KeyForm, KeyPrefix, NearSource, PersistenceProperties, Scope,
    SessionKey, StoreId, StoredKey, Timestamp,
};

use crate::BuildError;
use crate::coherence::{CoherenceSettings, WriteOperation};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// The shortest [freshness bound](session_core::Near::freshness_bound) of a near cache: the clock of a hit may be behind by half of
/// it.
pub const SHORTEST_FRESHNESS_BOUND: Duration = Duration::from_millis(20);

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns `true` if the cache is memory that the database tells of changes.
pub(super) fn is_told_by_database(cache: &impl Cache) -> bool {
    cache.near().is_some_and(|near| near.source() == NearSource::Database)
}

/// The longest grace after a rotation.
const MAX_GRACE: Duration = Duration::from_secs(60);

/// The schedule by which expired sessions are deleted in the background: in bounded batches, so that no statement locks the
/// table for long, and at random moments, so that the nodes do not all start at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reaper {
    /// The time between two rounds, give or take a quarter. Defaults to 10 minutes.
    pub interval: Duration,
    /// The number of sessions that one statement deletes at most. Defaults to 1,000.
    pub batch: u32,
    /// The shortest time between two batches of one round. After a batch that took longer than a ninth of it, the reaper
    /// waits nine times as long as the batch took, to leave the database to requests. Defaults to 100 ms.
    pub pause: Duration,
}

impl Default for Reaper {
    fn default() -> Self {
        Self { interval: Duration::from_secs(600), batch: 1_000, pause: Duration::from_millis(100) }
    }
}

impl Reaper {
    /// Sets the time between two rounds.
    #[must_use]
    pub const fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the number of sessions that one statement deletes at most.
    #[must_use]
    pub const fn with_batch(mut self, batch: u32) -> Self {
        self.batch = batch;
        self
    }

    /// Sets the time between two batches.
    #[must_use]
    pub const fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}

/// The settings as a [`Builder`](super::Builder) collects them, which has their defaults. `None` leaves the choice to
/// [`resolve`](Self::resolve).
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) name: String,
    pub(super) key_prefix: String,
    pub(super) accepts_plain_keys: bool,
    pub(super) max_payload_bytes: Option<usize>,
    pub(super) max_keys: Option<usize>,
    pub(super) idle_timeout: Duration,
    pub(super) absolute_timeout: Option<Duration>,
    pub(super) touch_interval: Option<Duration>,
    pub(super) expire_at_browser_close: bool,
    pub(super) max_cache_age: Option<Duration>,
    pub(super) is_sole_process: bool,
    /// The database tells the cache of other processes' writes.
    pub(super) is_notified: bool,
    pub(super) lease_ttl: Duration,
    pub(super) fence_ttl: Duration,
    pub(super) clock_slack: Duration,
    pub(super) cache_timeout: Duration,
    pub(super) read_timeout: Duration,
    pub(super) write_timeout: Duration,
    pub(super) breaker_threshold: u32,
    pub(super) probe_interval: Duration,
    pub(super) repair_capacity: usize,
    pub(super) single_flight_capacity: usize,
    pub(super) max_waiting_writes: usize,
    pub(super) max_sessions_per_subject: Option<usize>,
    pub(super) conflict_policy: ConflictPolicy,
    pub(super) fail_closed: Vec<WriteOperation>,
    pub(super) strict: Vec<WriteOperation>,
    pub(super) reaper: Option<Reaper>,
    pub(super) rotation_grace: Option<Duration>,
}

/// The defaults that depend on other settings.
impl Options {
    fn max_cache_age(&self, cache: &CacheProperties, db: &PersistenceProperties) -> Duration {
        let has_others = cache.scope == Scope::Process && !self.is_notified || db.has_other_writers;
        let is_blind = has_others && !self.is_sole_process;
        self.max_cache_age.unwrap_or(if is_blind { 5 * SECOND } else { 300 * SECOND })
    }

    fn touch_interval(&self) -> Duration {
        self.touch_interval.unwrap_or((self.idle_timeout / 4).min(300 * SECOND))
    }

    fn max_payload_bytes(&self, db: &PersistenceProperties) -> usize {
        self.max_payload_bytes.unwrap_or(db.max_payload_bytes.min(1 << 20))
    }

    fn longest_statement(&self, db: &PersistenceProperties) -> Duration {
        self.write_timeout.saturating_add(db.statement_bound)
    }
}

impl Options {
    /// Fills in the defaults, and refuses settings that contradict each other or do not fit the cache or the database.
    pub(super) fn resolve(
        self,
        cache: &CacheProperties,
        db: &PersistenceProperties,
        store_id: StoreId,
    ) -> Result<Settings, BuildError> {
        self.check_times()?;
        self.check_limits(db)?;
        self.check_protocol(cache, db)?;
        let key_prefix = self.check_keys(db)?;
        let touch_interval = self.touch_interval();
        let longest_statement = self.longest_statement(db);
        // With a grace, the new key is noted by a statement before the one that moves the session.
        let note = self.rotation_grace.map_or(Duration::ZERO, |_| self.write_timeout);
        let coherence = CoherenceSettings {
            store_id,
            max_cache_age: self.max_cache_age(cache, db),
            lease_ttl: self.lease_ttl,
            fence_ttl: self.fence_ttl,
            clock_slack: self.clock_slack,
            cache_timeout: self.cache_timeout,
            write_timeout: self.write_timeout,
            longest_statement,
            breaker_threshold: self.breaker_threshold,
            probe_interval: self.probe_interval,
            repair_capacity: self.repair_capacity,
            fail_closed: self.fail_closed.clone(),
            strict: self.strict.clone(),
        };
        Ok(Settings {
            max_payload_bytes: self.max_payload_bytes(db),
            key_form: db.key_form,
            max_key_bytes: db.max_key_bytes,
            name: self.name,
            key_prefix,
            max_keys: self.max_keys,
            accepts_plain_keys: self.accepts_plain_keys,
            idle_timeout: self.idle_timeout,
            absolute_timeout: self.absolute_timeout,
            touch_interval,
            expire_at_browser_close: self.expire_at_browser_close,
            clock_slack: self.clock_slack,
            read_timeout: self.read_timeout,
            write_timeout: self.write_timeout,
            // The waits for the turns of its subject and its session, the tries to get ahead of other processes, and the last
            // statement.
            longest_write: self
                .write_timeout
                .saturating_mul(if self.max_sessions_per_subject.is_some() { 3 } else { 2 })
                .saturating_add(longest_statement)
                .saturating_add(note),
            longest_load: self.read_timeout.saturating_add(self.cache_timeout.saturating_mul(2)),
            single_flight_capacity: self.single_flight_capacity,
            max_waiting_writes: self.max_waiting_writes,
            conflict_policy: self.conflict_policy,
            reap_batch: self.reaper.unwrap_or_default().batch,
            rotation_grace: self.rotation_grace,
            coherence,
        })
    }

    /// Refuses a near cache that can never be told of changes, or whose freshness bound does not fit.
    pub(super) fn check_near(
        &mut self,
        cache: &impl Cache,
        db: &PersistenceProperties,
    ) -> Result<(), BuildError> {
        let Some(near) = cache.near() else { return Ok(()) };
        self.is_notified = is_told_by_database(cache);
        if let Some(refusal) = near.refusal() {
            return invalid(refusal);
        }
        let (bound, longest) = (near.freshness_bound(), self.max_cache_age(&cache.properties(), db));
        if bound < SHORTEST_FRESHNESS_BOUND || bound > longest {
            return invalid(format!(
                "the near cache's freshness bound is {bound:?}; it must be at least {SHORTEST_FRESHNESS_BOUND:?}, and at most \
                 max_cache_age, {longest:?}"
            ));
        }
        // A final write holds its session for the bound, and the next write of that session would be told that it is busy.
        if bound >= self.write_timeout {
            return invalid(format!(
                "the near cache's freshness bound is {bound:?}; it must be below write_timeout, {:?}, because a final write \
                 waits for it",
                self.write_timeout
            ));
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), BuildError> {
        for (name, time) in [
            ("idle_timeout", Some(self.idle_timeout)),
            ("absolute_timeout", self.absolute_timeout),
            ("max_cache_age", self.max_cache_age),
            ("lease_ttl", Some(self.lease_ttl)),
            ("fence_ttl", Some(self.fence_ttl)),
            ("cache_timeout", Some(self.cache_timeout)),
            ("read_timeout", Some(self.read_timeout)),
            ("write_timeout", Some(self.write_timeout)),
            ("probe_interval", Some(self.probe_interval)),
            ("the reaper's interval", self.reaper.map(|reaper| reaper.interval)),
            ("rotation_grace", self.rotation_grace),
        ] {
            if time.is_some_and(|time| time.is_zero()) {
                return invalid(format!("{name} must be above zero"));
            }
        }
        if self.rotation_grace.is_some_and(|grace| grace > MAX_GRACE) {
            return invalid(format!(
                "rotation_grace must be at most {MAX_GRACE:?}: a key that was stolen before a rotation is good for that long"
            ));
        }
        if self.touch_interval() >= self.idle_timeout {
            return invalid("touch_interval must be shorter than idle_timeout, or sessions in use expire");
        }
        Ok(())
    }

    fn check_limits(&self, db: &PersistenceProperties) -> Result<(), BuildError> {
        if self.reaper.is_some_and(|reaper| reaper.batch == 0) {
            return invalid("the reaper's batch must be above zero, or it never comes to an end");
        }
        if self.absolute_timeout.is_some() && !db.keeps_created_at {
            return invalid(
                "absolute_timeout counts from when a session began, which this database does not keep",
            );
        }
        if self.max_waiting_writes == 0 {
            return invalid("max_waiting_writes must be above zero, or nothing can be written");
        }
        if self.breaker_threshold == 0 {
            return invalid("breaker_threshold must be above zero, or the cache is never used");
        }
        if self.max_sessions_per_subject == Some(0) {
            return invalid("max_sessions_per_subject must be above zero, or no user can log in");
        }
        let max_payload_bytes = self.max_payload_bytes(db);
        if max_payload_bytes > db.max_payload_bytes {
            return invalid(format!(
                "max_payload_bytes is {max_payload_bytes}, but this database takes at most {}",
                db.max_payload_bytes
            ));
        }
        Ok(())
    }

    fn check_keys(&self, db: &PersistenceProperties) -> Result<KeyPrefix, BuildError> {
        if self.accepts_plain_keys && db.key_form != KeyForm::Hashed {
            return invalid("this database holds plain keys only; leave accept_plain_keys out");
        }
        let Ok(key_prefix) = KeyPrefix::parse(&self.key_prefix) else {
            return invalid("key_prefix has at most 21 characters of [A-Za-z0-9_.:-]");
        };
        if db.key_form == KeyForm::Plain && !self.key_prefix.is_empty() {
            return invalid("this database holds keys that others share, so key_prefix must be empty");
        }
        let needed = match db.key_form {
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
        Ok(key_prefix)
    }

    fn check_protocol(&self, cache: &CacheProperties, db: &PersistenceProperties) -> Result<(), BuildError> {
        let shortest = self.lease_ttl.min(self.fence_ttl).min(self.max_cache_age(cache, db));
        if shortest < cache.ttl_granularity {
            return invalid(format!(
                "lease_ttl, fence_ttl and max_cache_age must be at least this cache's granularity, {:?}",
                cache.ttl_granularity
            ));
        }
        // A fence counts from before it is placed. Without time for that, it would have expired whenever it is confirmed.
        let shortest = self.longest_statement(db).saturating_add(self.cache_timeout);
        if self.fence_ttl < shortest {
            return invalid(format!(
                "fence_ttl must be at least {shortest:?}: cache_timeout, write_timeout, and the {:?} for which this database may go on with an abandoned statement",
                db.statement_bound
            ));
        }
        Ok(())
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T, BuildError> {
    Err(BuildError::Invalid(text.into()))
}

/// The settings that a store works with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The store's name in metrics.
    pub(crate) name: String,
    pub(crate) key_form: KeyForm,
    pub(crate) key_prefix: KeyPrefix,
    pub(crate) max_key_bytes: usize,
    pub(crate) max_payload_bytes: usize,
    pub(crate) max_keys: Option<usize>,
    /// Sessions may still be stored under plain keys, although new ones are not.
    pub(crate) accepts_plain_keys: bool,
    pub(crate) idle_timeout: Duration,
    pub(crate) absolute_timeout: Option<Duration>,
    pub(crate) touch_interval: Duration,
    pub(crate) expire_at_browser_close: bool,
    pub(crate) clock_slack: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    /// The time after which a write that was begun can no longer be applied.
    pub(crate) longest_write: Duration,
    /// The time that a load may take: the cache's answer, the database's, and the cache's once more.
    pub(crate) longest_load: Duration,
    pub(crate) single_flight_capacity: usize,
    pub(crate) max_waiting_writes: usize,
    pub(crate) conflict_policy: ConflictPolicy,
    /// The number of sessions that one statement of the reaper deletes at most.
    pub(crate) reap_batch: u32,
    /// The time for which the old key of a session leads to its new one. `None` if it never does.
    pub(crate) rotation_grace: Option<Duration>,
    pub(crate) coherence: CoherenceSettings,
}

impl Settings {
    /// Returns the shortest time between two touches of a session that chose `expiry`, which is short enough that a session
    /// in use does not expire in between.
    pub(crate) fn touch_interval(&self, expiry: Option<Expiry>) -> Duration {
        match expiry {
            Some(Expiry::After(lifetime)) => self.touch_interval.min(lifetime / 4),
            _ => self.touch_interval,
        }
    }

    /// Returns when a session ends that chose `expiry`, or left it to the store, and is used at `now`.
    pub(crate) fn expires_at(
        &self,
        expiry: Option<Expiry>,
        created_at: Timestamp,
        now: Timestamp,
    ) -> Timestamp {
        let idle_end = expiry.unwrap_or(Expiry::After(self.idle_timeout)).instant(now, self.idle_timeout);
        self.absolute_timeout.map_or(idle_end, |lifetime| idle_end.min(created_at + lifetime))
    }

    pub(crate) fn stored_key(&self, key: &SessionKey) -> Result<StoredKey, InvalidKey> {
        let stored = StoredKey::derive(key, self.key_form, &self.key_prefix)?;
        if stored.as_bytes().len() > self.max_key_bytes { Err(InvalidKey) } else { Ok(stored) }
    }

    /// Returns `true` if the session under `key` is one of this store's, and not of another application with another prefix.
    pub(crate) fn owns(&self, key: &StoredKey) -> bool {
        key.belongs_to(self.key_form, &self.key_prefix) || self.accepts_plain_keys && self.is_plain(key)
    }

    /// Returns `true` if the session under `key` may be stored under a plain key, which has no prefix.
    pub(crate) fn is_plain(&self, key: &StoredKey) -> bool {
        SessionKey::parse(key.as_str()).is_ok_and(|key| self.may_be_plain(&key))
    }

    /// Returns `true` if a session may be stored under `key` as it is. From 43 characters on, it may be a hashed key behind
    /// the prefix of any application, which could be presented by any client that has read the table.
    pub(crate) fn may_be_plain(&self, key: &SessionKey) -> bool {
        key.expose().len() < KeyForm::HASHED_LEN && !self.looks_stored(key)
    }

    /// Returns `true` if `key` looks like a stored key.
    pub(crate) fn looks_stored(&self, key: &SessionKey) -> bool {
        self.key_form == KeyForm::Hashed
            && key
                .expose()
                .strip_prefix(self.key_prefix.as_str())
                .is_some_and(|rest| rest.len() == KeyForm::HASHED_LEN)
    }
}

/// The choice between two values when another request has changed the session since it was opened.
///
/// Changes of different keys are merged under either policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConflictPolicy {
    /// If both changed the same key, the value of this save stays.
    #[default]
    LastWrite,
    /// If both changed the same key, this save fails with [`Error::Conflict`](crate::Error::Conflict).
    Reject,
}

/// The treatment of the session table when a store is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schema {
    /// Creates the table, or brings it up to date.
    #[default]
    Migrate,
    /// Leaves the table to the application, and fails if it is not as it should be.
    Check,
    /// Leaves the table to the application, unchecked.
    Trust,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(scope: Scope) -> CacheProperties {
        CacheProperties::new(scope)
    }

    fn database() -> PersistenceProperties {
        PersistenceProperties::new(1 << 30)
    }

    fn resolve(options: Options, scope: Scope) -> Result<Settings, BuildError> {
        options.resolve(&cache(scope), &database(), StoreId(1))
    }

    #[test]
    fn cache_age_is_short_where_other_processes_write_unseen() {
        let age = |scope, is_sole_process| {
            let options = Options { is_sole_process, ..Options::default() };
            resolve(options, scope).unwrap().coherence.max_cache_age
        };
        assert_eq!(age(Scope::Shared, false), 300 * SECOND);
        assert_eq!(age(Scope::Process, false), 5 * SECOND);
        assert_eq!(age(Scope::Process, true), 300 * SECOND);
        let chosen = Options { max_cache_age: Some(7 * SECOND), ..Options::default() };
        assert_eq!(resolve(chosen, Scope::Process).unwrap().coherence.max_cache_age, 7 * SECOND);
    }

    #[test]
    fn touch_interval_is_a_quarter_of_a_short_idle_timeout() {
        let interval = |idle_timeout, touch_interval| {
            let options = Options { idle_timeout, touch_interval, ..Options::default() };
            resolve(options, Scope::Shared).map(|settings| settings.touch_interval)
        };
        assert_eq!(interval(14 * DAY, None).unwrap(), 300 * SECOND);
        assert_eq!(interval(60 * SECOND, None).unwrap(), 15 * SECOND);
        assert_eq!(interval(60 * SECOND, Some(59 * SECOND)).unwrap(), 59 * SECOND);
        assert!(interval(60 * SECOND, Some(60 * SECOND)).is_err());
    }

    #[test]
    fn payloads_are_limited_by_the_smaller_of_default_and_database() {
        let limit = |chosen, of_database| {
            let options = Options { max_payload_bytes: chosen, ..Options::default() };
            let database = PersistenceProperties::new(of_database);
            options
                .resolve(&cache(Scope::Shared), &database, StoreId(1))
                .map(|settings| settings.max_payload_bytes)
        };
        assert_eq!(limit(None, 1 << 30).unwrap(), 1 << 20);
        assert_eq!(limit(None, 100).unwrap(), 100);
        assert_eq!(limit(Some(50), 100).unwrap(), 50);
        assert!(limit(Some(101), 100).is_err());
    }

    #[test]
    fn fence_covers_every_statement_and_a_call_of_the_cache() {
        let options = |fence_ttl| Options { fence_ttl, ..Options::default() };
        let database = PersistenceProperties::new(1 << 30).with_statement_bound(19_900 * SECOND / 1_000);
        let resolve = |fence_ttl| options(fence_ttl).resolve(&cache(Scope::Shared), &database, StoreId(1));
        assert_eq!(resolve(30 * SECOND).unwrap().coherence.longest_statement, 29_900 * SECOND / 1_000);
        let error = resolve(30 * SECOND - Duration::from_nanos(1)).unwrap_err().to_string();
        assert!(error.contains("fence_ttl must be at least 30s"), "{error}");
    }
}
