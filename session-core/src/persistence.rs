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
/// - `now` is the caller's. No method asks the database's clock.
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

    /// Notes that the session under `key` is used at `now`, and lets it live until `expires_at`.
    ///
    /// # Behavior
    ///
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
        now: Timestamp,
    ) -> impl Future<Output = Result<(), PersistenceError>> + Send;

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
    /// All sessions of `subject`, in no particular order.
    ///
    /// # Behavior
    ///
    /// - Expired sessions are not listed.
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
    ) -> impl Future<Output = Result<Vec<(StoredKey, Record)>, PersistenceError>> + Send;
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
