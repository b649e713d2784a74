use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::{
    DatabaseNotices, PersistenceError, PersistenceProperties, Record, RecordWrite, StoredKey, Subject,
    Timestamp, Version,
};

/// A database of sessions, which is the truth.
///
/// Insert, update and touch are separate on purpose: nothing here upserts, so nothing can bring a deleted
/// session back.
///
/// # Behavior
///
/// - What one call has committed, every later call sees, on every node: reads go to the primary.
/// - Every write is one statement or one short transaction: it happens completely or not at all.
/// - A record comes back as it was written: payload and subject byte for byte, instants to the microsecond,
///   in any time zone of the session, the server or the process.
/// - Keys are compared byte for byte: `a` is not `A`, and trailing spaces do not exist.
/// - `now` is the caller's. No method but [`now`](Self::now) asks the database's clock.
/// - A row whose `expires_at` is not after `now` is absent for every method that is given `now`.
/// - A payload above [`PersistenceProperties::max_payload_bytes`] is [`PersistenceError::TooLarge`], before
///   any I/O.
/// - An error says whether a write may have happened ([`PersistenceError::outcome`]). No method repeats a
///   write whose outcome is unknown.
/// - A statement whose client has given up goes on for at most [`PersistenceProperties::statement_bound`]; a
///   backend documents by what it is bounded.
///
/// # Cancel safety
///
/// The call of a future that is dropped may have been applied, or may be applied later, within that bound.
///
/// # Errors
///
/// Besides the errors that a method names, each of them can return
/// [`Unavailable`](PersistenceError::Unavailable), [`Busy`](PersistenceError::Busy),
/// [`Refused`](PersistenceError::Refused) and [`Unknown`](PersistenceError::Unknown).
///
/// # Example
///
/// A store calls a database as here, and knows what each error means:
///
/// ```
/// use std::time::Duration;
///
/// use session_core::{Persistence, PersistenceError, Record, RecordWrite, StoredKey, Timestamp};
///
/// const HOUR: Duration = Duration::from_secs(3_600);
///
/// /// Adds a session, changes it if no other writer has, and ends it.
/// async fn add_change_and_end(
///     db: &impl Persistence,
///     key: &StoredKey,
///     now: Timestamp,
/// ) -> Result<(), PersistenceError> {
///     let version = db.insert(key, &Record::new("{}".into(), now, now + HOUR)).await?;
///     let changed = Record::new(r#"{"cart":[1]}"#.into(), now, now + HOUR);
///     match db.update(key, RecordWrite::new(&changed).with_expected(version), now).await {
///         Ok(_) => {}
///         Err(PersistenceError::Conflict) => println!("another writer was faster"),
///         Err(PersistenceError::NotFound) => println!("the session has ended"),
///         Err(error) => return Err(error),
///     }
///     assert!(db.delete(key).await?);
///     assert_eq!(db.load(key, now).await?, None);
///     Ok(())
/// }
/// ```
///
/// [`MemoryPersistence`] in the crate `conformance-tests` is a whole implementation in memory, and
/// [`conformance-tests`] runs this contract against any other.
///
/// [`MemoryPersistence`]: https://docs.rs/conformance-tests/latest/conformance_tests/reference/struct.MemoryPersistence.html
/// [`conformance-tests`]: https://docs.rs/conformance-tests
pub trait Persistence: Send + Sync + fmt::Debug + 'static {
    /// Returns the session under `key`, or `None` if there is none.
    ///
    /// # Behavior
    ///
    /// - Reads committed state, in a snapshot that was taken after the call began.
    ///
    /// # Errors
    ///
    /// Returns [`PersistenceError::CorruptRow`] if the row cannot be read. The row stays.
    fn load(
        &self,
        key: &StoredKey,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Record>, PersistenceError>> + Send;

    /// Adds a session and returns its version. The record's own version does not count.
    ///
    /// # Behavior
    ///
    /// - A row that is there, expired or not, is left as it is: [`PersistenceError::AlreadyExists`].
    /// - The version is one that this key has never had.
    ///
    /// # Errors
    ///
    /// Returns [`PersistenceError::AlreadyExists`] if the key has a row, and [`PersistenceError::TooLarge`]
    /// if the payload is too large.
    fn insert(
        &self,
        key: &StoredKey,
        record: &Record,
    ) -> impl Future<Output = Result<Version, PersistenceError>> + Send;

    /// Replaces payload, subject, expiry and last use of the session under `key`, and returns its new
    /// version. `created_at` stays.
    ///
    /// # Behavior
    ///
    /// - With an expected version, only if the session has it: [`PersistenceError::Conflict`] otherwise.
    /// - The new version is one that this key has never had.
    /// - A session that is absent or expired is never written: [`PersistenceError::NotFound`].
    /// - [`ExpiryWrite::Extend`] never makes the expiry earlier.
    ///
    /// # Errors
    ///
    /// Returns [`PersistenceError::NotFound`] if the session is absent or expired,
    /// [`PersistenceError::Conflict`] if it has another version than the expected one, and
    /// [`PersistenceError::TooLarge`] if the payload is too large.
    ///
    /// [`ExpiryWrite::Extend`]: crate::ExpiryWrite::Extend
    fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Version, PersistenceError>> + Send;

    /// Notes that the session under `key` is used at `now`, and lets it live until `expires_at`, if it was
    /// last used at `idle_since` or earlier. Returns `false`, and changes nothing, if it was used since,
    /// because another node has noted that use.
    ///
    /// # Behavior
    ///
    /// - With [`Timestamp::MAX`] as `idle_since`, every touch is written.
    /// - Neither the payload nor the version changes.
    /// - Never makes the expiry earlier, nor the last use.
    /// - A session that is absent or expired stays so: [`PersistenceError::NotFound`].
    ///
    /// # Errors
    ///
    /// Returns [`PersistenceError::NotFound`] if the session is absent or expired.
    fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, PersistenceError>> + Send;

    /// Changes the key of the session under `old` to `new`, and writes a record to it, in one statement.
    /// Returns its new version.
    ///
    /// # Behavior
    ///
    /// - As [`update`](Self::update), and the session is under `new` afterwards and not under `old`. There is
    ///   no moment at which it is under both, or under neither.
    /// - When there is a row under `new`, expired or not, nothing changes:
    ///   [`PersistenceError::AlreadyExists`].
    ///
    /// # Errors
    ///
    /// Returns the errors of [`update`](Self::update), and [`PersistenceError::AlreadyExists`] if the key
    /// `new` has a row.
    fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Version, PersistenceError>> + Send;

    /// Removes the session under `key`, expired or not. Returns `true` if there was one.
    ///
    /// # Errors
    ///
    /// Returns a [`PersistenceError`] that every method can return: see [`Persistence`](Persistence#errors).
    fn delete(&self, key: &StoredKey) -> impl Future<Output = Result<bool, PersistenceError>> + Send;

    /// Removes the sessions under `keys`, expired or not, and returns the keys of those that existed. Called with at most a few
    /// hundred keys, each of them once. Without keys, makes no call to the database.
    ///
    /// Provided: deletes one after another. A backend that can remove all in one statement, or in one short transaction,
    /// overrides it, and says so in its [properties](PersistenceProperties::deletes_together).
    ///
    /// # Behavior
    ///
    /// - Each removed session is returned by one call that ends it, in no particular order.
    ///
    /// # Errors
    ///
    /// Returns a [`PersistenceError`] that every method can return: see [`Persistence`](Persistence#errors). The provided
    /// method returns [`PersistenceError::Unknown`] if it fails when a session is gone already.
    fn delete_all(
        &self,
        keys: &[StoredKey],
    ) -> impl Future<Output = Result<Vec<StoredKey>, PersistenceError>> + Send {
        async move {
            let mut removed = Vec::new();
            for key in keys {
                match self.delete(key).await {
                    Ok(true) => removed.push(*key),
                    Ok(false) => {}
                    Err(error) if removed.is_empty() => return Err(error),
                    Err(error) => return Err(PersistenceError::Unknown(Box::new(error))),
                }
            }
            Ok(removed)
        }
    }

    /// Removes at most `limit` sessions that expired at `before` or earlier, and returns which ones it removed. A database that
    /// keeps notes of rotations [removes expired ones](crate::Rotations#behavior), too.
    ///
    /// # Behavior
    ///
    /// - Each removed session is returned by one call, with its key and its subject.
    /// - A row whose key is no stored key is removed and counted. A subject that cannot be read is left out.
    /// - Fewer than `limit`, without [`has_more`](ExpiredSessions::has_more), means that, at some moment during
    ///   the call, no more were left.
    /// - A session whose expiry was changed since it was inserted is removed at its present expiry, not at an
    ///   earlier one and not later.
    /// - Calling again while there is more comes to an end.
    /// - Uses an index, not a scan of the table. Passes over rows that other nodes are removing, where the
    ///   database can.
    /// - May be run by several nodes at once.
    ///
    /// # Errors
    ///
    /// Returns a [`PersistenceError`] that every method can return: see [`Persistence`](Persistence#errors).
    fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> impl Future<Output = Result<ExpiredSessions, PersistenceError>> + Send;

    /// Returns what the database's own clock shows, to the millisecond or better, so that a node whose clock
    /// is wrong can notice it before it deletes anything.
    ///
    /// # Errors
    ///
    /// Returns a [`PersistenceError`] that every method can return: see [`Persistence`](Persistence#errors).
    fn now(&self) -> impl Future<Output = Result<Timestamp, PersistenceError>> + Send;

    /// Creates the table and its indexes, or brings them up to date.
    ///
    /// # Behavior
    ///
    /// - Doing it again changes nothing; several nodes may do it at once.
    /// - Touches no table but its own, and not the application's own migrations.
    ///
    /// # Errors
    ///
    /// Returns [`PersistenceError::Schema`] if the table is newer than this program, or is no session table.
    fn migrate(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send;

    /// Returns the statements that [`migrate`](Self::migrate) runs on an empty database, for applications
    /// that run their migrations themselves.
    fn schema_sql(&self) -> String;

    /// Checks that the table exists and is as this version needs it. Changes nothing.
    ///
    /// # Errors
    ///
    /// Returns [`PersistenceError::Schema`], which says what to do, if the table is missing or different.
    fn check_schema(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send;

    /// Returns the properties of this database. They are the same at every call.
    fn properties(&self) -> PersistenceProperties;

    /// Makes every later write by this handle report the keys that it changes, and returns the source of all writers'
    /// reports, so that a process can keep sessions in memory although others write. Makes no call. Defaults to a refusal.
    ///
    /// # Errors
    ///
    /// Returns the reason if this database cannot report changes, or if the source that an earlier call has returned is
    /// still in use: what a handle has written is not reported to its own source, so two stores need two handles.
    fn notify(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str> {
        Err("the database reports no changes to a cache in memory; Postgres does")
    }
}

/// A [`Persistence`] that lists the sessions of a subject, for "log out everywhere" and a user's list of
/// sessions. The table of another program may not allow it.
pub trait SubjectIndex: Persistence {
    /// Returns at most `limit` sessions of `subject` whose keys come after `after`, or the first ones, in the
    /// order of their keys: keys and times only, never payloads.
    ///
    /// # Behavior
    ///
    /// - Expired sessions are not listed.
    /// - Fewer than `limit` means that no more came after them.
    /// - A row whose times cannot be read is listed with [`PersistenceError::CorruptRow`] in its place; the
    ///   others are listed all the same. A row whose key is no stored key is passed over, with a warning in
    ///   the log.
    /// - Subjects are compared byte for byte.
    /// - Uses an index, not a scan of the table.
    ///
    /// # Errors
    ///
    /// Returns a [`PersistenceError`] that every method can return: see [`Persistence`](Persistence#errors).
    fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Row<SessionTimes>>, PersistenceError>> + Send;
}

/// The expired sessions that [`Persistence::delete_expired`] has removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpiredSessions {
    /// The number of rows that were removed.
    pub count: u64,
    /// The sessions in these rows, in no particular order, without the rows whose keys are no stored keys.
    pub sessions: Vec<ExpiredSession>,
    /// `true` if more may be left that has expired, although fewer sessions than the limit were removed: the call also
    /// looked at sessions that turned out to live on, or removed notes of rotations. Defaults to `false`.
    pub has_more: bool,
}

impl ExpiredSessions {
    /// Returns the sessions that were in `count` rows.
    #[must_use]
    pub const fn new(count: u64, sessions: Vec<ExpiredSession>) -> Self {
        Self { count, sessions, has_more: false }
    }

    /// Sets whether more expired sessions may be left.
    #[must_use]
    pub const fn with_more(mut self, has_more: bool) -> Self {
        self.has_more = has_more;
        self
    }

    /// Returns `true` if a caller that removes all expired sessions, at most `limit` at a time, has to call
    /// again.
    #[must_use]
    pub const fn is_unfinished(&self, limit: u32) -> bool {
        self.has_more || self.count >= limit as u64
    }
}

/// A session that has expired and was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpiredSession {
    /// The key that the session was stored under.
    pub key: StoredKey,
    /// The subject of the session, if it had one that could be read.
    pub subject: Option<Subject>,
}

impl ExpiredSession {
    /// Creates the description of a removed session.
    #[must_use]
    pub const fn new(key: StoredKey, subject: Option<Subject>) -> Self {
        Self { key, subject }
    }
}

/// One row of a page: its key, and the requested contents, if they can be read.
#[derive(Debug)]
#[non_exhaustive]
pub struct Row<T> {
    /// The key that the session is stored under. It is enough to end the session, even if nothing else can be
    /// read.
    pub key: StoredKey,
    /// The requested contents of the row, or [`PersistenceError::CorruptRow`].
    pub contents: Result<T, PersistenceError>,
}

impl<T> Row<T> {
    /// Creates a row.
    #[must_use]
    pub const fn new(key: StoredKey, contents: Result<T, PersistenceError>) -> Self {
        Self { key, contents }
    }
}

/// The instants at which a session began, was last used, and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimes {
    /// The instant at which the session began.
    pub created_at: Timestamp,
    /// The instant at which the session ends.
    pub expires_at: Timestamp,
    /// The instant of last use, as fresh as the touch throttle makes it.
    pub last_seen_at: Timestamp,
}

impl From<&Record> for SessionTimes {
    fn from(record: &Record) -> Self {
        Self {
            created_at: record.created_at(),
            expires_at: record.expires_at(),
            last_seen_at: record.last_seen_at(),
        }
    }
}
