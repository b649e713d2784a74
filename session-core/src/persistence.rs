use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::{KeyForm, PersistenceError, Record, StoredKey, Subject, Timestamp, Version};

/// The truth.
///
/// Insert, update and touch are separate on purpose: nothing here upserts, so nothing can bring a deleted session back.
///
/// # Behavior
///
/// - What one call has committed, every later call sees, on every node: reads go to the primary.
/// - Every write is one statement or one short transaction: it happens completely or not at all.
/// - A record comes back as it was written: payload and subject byte for byte, instants to the microsecond, in any time
///   zone of the session, the server or the process.
/// - Keys are compared byte for byte: `a` is not `A`, and trailing spaces do not exist.
/// - `now` is the caller's. No method but [`now`](Self::now) asks the database's clock.
/// - A row whose `expires_at` is not after `now` is absent for every method that is given `now`.
/// - A payload above [`PersistenceProperties::max_payload_bytes`] is [`PersistenceError::TooLarge`], before any I/O.
/// - An error says whether a write may have happened ([`PersistenceError::outcome`]). No method repeats a write whose
///   outcome is unknown.
/// - A statement whose client has given up goes on for at most [`PersistenceProperties::statement_bound`]; a backend
///   documents by what it is bounded.
///
/// # Cancel safety
///
/// A future that is dropped may have had its effect, or may have it later, within that bound.
pub trait Persistence: Send + Sync + fmt::Debug + 'static {
    /// The session under `key`, or `None`.
    ///
    /// # Behavior
    ///
    /// - Reads committed state, in a snapshot that was taken after the call began.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::CorruptRow`] when the row cannot be read; the row stays.
    fn load(
        &self,
        key: &StoredKey,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Record>, PersistenceError>> + Send;

    /// Adds a session, and tells its version. The record's own version does not count.
    ///
    /// # Behavior
    ///
    /// - A row that is there, expired or not, is left as it is: [`PersistenceError::AlreadyExists`].
    /// - The version is one that this key has never had.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::AlreadyExists`], or as every write.
    fn insert(
        &self,
        key: &StoredKey,
        record: &Record,
    ) -> impl Future<Output = Result<Version, PersistenceError>> + Send;

    /// Replaces payload, subject, expiry and last use of the session under `key`, and tells its new version.
    /// `created_at` stays.
    ///
    /// # Behavior
    ///
    /// - With `expected`, only if the session has that version: [`PersistenceError::Conflict`] otherwise.
    /// - The new version is one that this key has never had.
    /// - A session that is absent or expired is never written: [`PersistenceError::NotFound`].
    /// - [`ExpiryWrite::Extend`] never makes the expiry earlier.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::NotFound`], [`PersistenceError::Conflict`], or as every write.
    fn update(
        &self,
        key: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> impl Future<Output = Result<Version, PersistenceError>> + Send;

    /// Notes that the session under `key` is used at `now`, and lets it live until `expires_at`, if it was last used at
    /// `idle_since` or earlier. Returns `false`, and changes nothing, if it was used since: another node has noted it.
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
    /// [`PersistenceError::NotFound`], or as every write.
    fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, PersistenceError>> + Send;

    /// Gives the session under `old` the key `new`, and writes `record` to it, in one statement.
    ///
    /// # Behavior
    ///
    /// - As [`update`](Self::update), and the session is under `new` afterwards and not under `old`. There is no moment
    ///   at which it is under both, or under neither.
    /// - When there is a row under `new`, expired or not, nothing changes: [`PersistenceError::AlreadyExists`].
    ///
    /// # Errors
    ///
    /// [`PersistenceError::NotFound`], [`PersistenceError::Conflict`], [`PersistenceError::AlreadyExists`], or as every
    /// write.
    fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> impl Future<Output = Result<Version, PersistenceError>> + Send;

    /// Removes the session under `key`, expired or not; whether there was one.
    ///
    /// # Errors
    ///
    /// As every write.
    fn delete(&self, key: &StoredKey) -> impl Future<Output = Result<bool, PersistenceError>> + Send;

    /// Removes at most `limit` sessions that expired at `before` or earlier; how many.
    ///
    /// # Behavior
    ///
    /// - Fewer than `limit` means that, at some moment during the call, no more were left.
    /// - Uses an index, not a scan of the table.
    /// - May be run by several nodes at once.
    ///
    /// # Errors
    ///
    /// As every write.
    fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> impl Future<Output = Result<u64, PersistenceError>> + Send;

    /// Returns what the database's own clock shows, to the millisecond or better, so that a node whose clock is wrong can
    /// notice it before it deletes anything.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    fn now(&self) -> impl Future<Output = Result<Timestamp, PersistenceError>> + Send;

    /// Makes the table and its indexes, or brings them up to date.
    ///
    /// # Behavior
    ///
    /// - Doing it again changes nothing; several nodes may do it at once.
    /// - Touches no table but its own, and not the application's own migrations.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Schema`] when the table is newer than this program, or not a session table.
    fn migrate(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send;

    /// What [`migrate`](Self::migrate) would run on an empty database, for those who keep migrations in their own hands.
    fn schema_sql(&self) -> String;

    /// Whether the table is there and as this version needs it. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Schema`] says what to do.
    fn check_schema(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send;

    /// What this database is and can do. The same at every call.
    fn properties(&self) -> PersistenceProperties;
}

/// What "log out everywhere" and a list of one's sessions need. A table that is not ours may lack it.
pub trait SubjectIndex: Persistence {
    /// Returns at most `limit` sessions of `subject` whose keys come after `after`, or the first ones, in the order of
    /// their keys: keys and times only, never payloads.
    ///
    /// # Behavior
    ///
    /// - Expired sessions are not listed.
    /// - Fewer than `limit` means that no more came after them.
    /// - A row whose times cannot be read is listed with [`PersistenceError::CorruptRow`] in its place; the others are
    ///   listed all the same. A row whose key is no stored key is passed over, with a warning in the log.
    /// - Subjects are compared byte for byte.
    /// - Uses an index, not a scan of the table.
    ///
    /// # Errors
    ///
    /// As [`load`](Persistence::load).
    fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Row<SessionTimes>>, PersistenceError>> + Send;
}

/// One row of a page: its key, and what was asked of it, if that can be read.
#[derive(Debug)]
#[non_exhaustive]
pub struct Row<T> {
    /// The key that the session is stored under. Enough to end the session, also when nothing else can be read.
    pub key: StoredKey,
    /// What the row holds, or [`PersistenceError::CorruptRow`].
    pub contents: Result<T, PersistenceError>,
}

impl<T> Row<T> {
    /// A row as it was read.
    #[must_use]
    pub const fn new(key: StoredKey, contents: Result<T, PersistenceError>) -> Self {
        Self { key, contents }
    }
}

/// When a session began, was last used, and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimes {
    /// When it began.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was last used, as fresh as the touch throttle makes it.
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

/// What a write does to a session's expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryWrite {
    /// The later one of the row's and the record's stays: a write that was prepared before somebody else's touch does
    /// not undo it.
    Extend,
    /// The record's, also when it is earlier: the application has chosen it.
    Replace,
}

/// What a database is and can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PersistenceProperties {
    /// How keys are stored.
    pub key_form: KeyForm,
    /// The longest stored key, in bytes.
    pub max_key_bytes: usize,
    /// The largest payload, in bytes.
    pub max_payload_bytes: usize,
    /// How long a statement whose client has given up may go on before it commits or is ended. By default 10 s.
    pub statement_bound: Duration,
    /// Whether other programs write to the table, which know nothing of the cache in front of it. By default not.
    pub has_other_writers: bool,
    /// Whether a record's `created_at` comes back as it was inserted. By default so.
    pub keeps_created_at: bool,
    /// What it is called in metrics: `SQLite`, for instance. By default `database`.
    pub name: &'static str,
    /// A number that differs between tables, so that stores over two tables do not trust each other's cached values:
    /// [`StoreId::of`](crate::StoreId::of) the table's name, for instance. Defaults to 0.
    pub table_id: u64,
}

impl PersistenceProperties {
    /// Hashed keys of any length that a [`StoredKey`] can have.
    #[must_use]
    pub const fn new(max_payload_bytes: usize) -> Self {
        Self {
            key_form: KeyForm::Hashed,
            max_key_bytes: StoredKey::MAX_LEN,
            max_payload_bytes,
            statement_bound: Duration::from_secs(10),
            has_other_writers: false,
            keeps_created_at: true,
            name: "database",
            table_id: 0,
        }
    }

    /// The same with another bound on abandoned statements.
    #[must_use]
    pub const fn with_statement_bound(mut self, statement_bound: Duration) -> Self {
        self.statement_bound = statement_bound;
        self
    }

    /// The same under another name.
    #[must_use]
    pub const fn with_name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Sets the number that tells this table from others.
    #[must_use]
    pub const fn with_table_id(mut self, table_id: u64) -> Self {
        self.table_id = table_id;
        self
    }

    /// The same with another form and length of keys.
    #[must_use]
    pub const fn with_keys(mut self, key_form: KeyForm, max_key_bytes: usize) -> Self {
        self.key_form = key_form;
        self.max_key_bytes = max_key_bytes;
        self
    }

    /// The same for a table that other programs write to.
    #[must_use]
    pub const fn with_other_writers(mut self) -> Self {
        self.has_other_writers = true;
        self
    }

    /// The same for a table that does not keep when a session began.
    #[must_use]
    pub const fn without_created_at(mut self) -> Self {
        self.keeps_created_at = false;
        self
    }
}
