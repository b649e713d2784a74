//! The work of every database on Django's table.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use session_core::django::instant;
use session_core::{
    DatabaseNotices, ExpiredSessions, ExpiryWrite, KeyForm, Persistence, PersistenceError,
    PersistenceProperties, Record, RecordWrite, Rotation, Rotations, StoreId, StoredKey, Timestamp, Version,
};
use sqlx::{SqlStr, query};

use super::row::{self, MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, Row};
use super::schema;
use super::statements::{DjangoBackend, Statements};
use crate::sql::columns;
use crate::sql::connector::Query;
use crate::sql::persistence::{SqlPersistence, why_unmatched};
use crate::sql::rotations_table::RotationsTable;
use crate::sql::table::TableName;
use crate::sql::value::Value;

/// Django's `SESSION_COOKIE_AGE`, unless the site's settings change it: two weeks.
const SESSION_COOKIE_AGE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Sessions in the table of a Django site. See [the module](super) for what is different there.
///
/// # Cancel safety
///
/// The same as the database that it is [over](Self::over).
#[expect(private_bounds, reason = "implemented in this crate only")]
pub struct DjangoPersistence<B: DjangoBackend> {
    /// The connections, and the name of Django's table.
    db: SqlPersistence<B>,
    sql: Statements<SqlStr>,
    session_age: Duration,
}

#[expect(private_bounds, reason = "implemented in this crate only")]
impl<B: DjangoBackend> DjangoPersistence<B> {
    /// Uses the table `django_session` of the database that `db` is connected to, with the connections and
    /// the timeouts of `db`. The table name that `db` was built with has no effect.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), session_core::PersistenceError> {
    /// # #[cfg(feature = "sqlite")] {
    /// use std::time::Duration;
    ///
    /// use db_backends::django::DjangoPersistence;
    /// use db_backends::sqlite::SqlitePersistence;
    ///
    /// let db = SqlitePersistence::builder().busy_timeout(Duration::from_secs(2)).connect("sqlite::memory:").await?;
    /// let db = DjangoPersistence::over(db);
    /// # }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn over(db: SqlPersistence<B>) -> Self {
        Self::in_table(db, TableName::django())
    }

    /// Uses another table, for a site with a session model of its own. Its further columns must have
    /// defaults, or be nullable: they are left alone.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] unless the name is 1 to 48 characters of `[A-Za-z0-9_]`, not beginning
    /// with a digit or `sqlite_`.
    pub fn with_table(self, name: &str) -> Result<Self, PersistenceError> {
        Ok(Self { session_age: self.session_age, ..Self::in_table(self.db, TableName::parse(name)?) })
    }

    fn in_table(mut db: SqlPersistence<B>, table: TableName) -> Self {
        let sql = B::TEMPLATES.fill(&table);
        db.rotations = RotationsTable::new(&B::SYNTAX, &table);
        db.table = table;
        Self { db, sql, session_age: SESSION_COOKIE_AGE }
    }

    /// Sets how long a session lives that has no expiry of its own: the site's `SESSION_COOKIE_AGE`, and the
    /// store's `idle_timeout`. Defaults to two weeks.
    ///
    /// The only trace of a touch is a later expiry. So a session counts as last used this long before it
    /// expires, or when it was last saved, whichever is later. A touch that is to be written only if the
    /// session is idle since some instant looks at the expiry alone: it is written if the session expires
    /// this long after that instant, or before. With another value here than in the store, and for sessions
    /// with an expiry of their own, touches are written more often, or less often, than the store's
    /// `touch_interval` says.
    #[must_use]
    pub const fn session_age(mut self, session_age: Duration) -> Self {
        self.session_age = session_age;
        self
    }

    /// Waits for the running statements, including abandoned ones, and closes the connections, but not the
    /// application's pool. Later calls fail with [`PersistenceError::Unavailable`].
    pub async fn close(&self) {
        self.db.close().await;
    }
}

impl<B: DjangoBackend> fmt::Debug for DjangoPersistence<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DjangoPersistence")
            .field("database", &B::NAME)
            .field("table", &self.db.table.as_str())
            .finish_non_exhaustive()
    }
}

/// A parameter.
enum Parameter<'a> {
    /// The key that a row is looked for by.
    Key(&'a StoredKey),
    Text(&'a str),
    OptionalText(Option<&'a str>),
    /// An instant that expiries are compared with, or the cap of one.
    Instant(Timestamp),
    /// An expiry to be stored.
    Expiry(Timestamp),
}

fn statement<'a, B: DjangoBackend>(
    sql: &SqlStr,
    parameters: impl IntoIterator<Item = Parameter<'a>>,
) -> Query<B> {
    parameters.into_iter().fold(query(sql.clone()), |query, parameter| match parameter {
        Parameter::Key(key) => B::bind_key(query, key.as_str()),
        Parameter::Text(text) => B::bind_text(query, Some(text)),
        Parameter::OptionalText(text) => B::bind_text(query, text),
        Parameter::Instant(instant) => B::bind_text(query, Some(&instant::format(instant))),
        Parameter::Expiry(instant) => B::bind_text(query, Some(&B::expiry(instant))),
    })
}

/// Returns up to where the statements look at the expiry that the row has: they write the later one of that
/// and the record's.
pub(super) const fn expiry_cap(expiry: ExpiryWrite) -> Timestamp {
    match expiry {
        ExpiryWrite::Extend => Timestamp::MAX,
        ExpiryWrite::Replace => Timestamp::from_micros(i64::MIN),
    }
}

#[expect(private_bounds, reason = "implemented in this crate only")]
impl<B: DjangoBackend> DjangoPersistence<B> {
    /// Returns the row under `key`, if it has not expired.
    async fn row(&self, key: &StoredKey, now: Timestamp) -> Result<Option<B::Row>, PersistenceError> {
        let parameters = [Parameter::Key(key), Parameter::Instant(now)];
        self.db.read(statement::<B>(&self.sql.load, parameters)).await
    }

    /// Returns the data of the session under `key`, which must have the version `expected`, so that a write
    /// can demand that they are still there.
    async fn data_of(
        &self,
        key: &StoredKey,
        expected: Option<Version>,
        now: Timestamp,
    ) -> Result<Option<String>, PersistenceError> {
        let Some(expected) = expected else { return Ok(None) };
        let found = self.row(key, now).await?.ok_or(PersistenceError::NotFound)?;
        let row = Row::read::<B>(&found)?;
        if !row.has_key(key) {
            return Err(PersistenceError::NotFound);
        }
        if row.version() != expected {
            return Err(PersistenceError::Conflict);
        }
        Ok(Some(row.data().to_owned()))
    }

    /// Returns `true` if there is a session under `key` that has not expired.
    async fn is_there(&self, key: &StoredKey, now: Timestamp) -> Result<bool, PersistenceError> {
        let parameters = [Parameter::Key(key), Parameter::Instant(now)];
        Ok(self.db.read(statement::<B>(&self.sql.is_there, parameters)).await?.is_some())
    }
}

impl<B: DjangoBackend> Persistence for DjangoPersistence<B> {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        let Some(found) = self.row(key, now).await? else { return Ok(None) };
        let row = Row::read::<B>(&found)?;
        Ok(row.has_key(key).then(|| row.record(now, self.session_age)))
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        let payload = row::payload(record)?;
        let parameters =
            [Parameter::Text(key.as_str()), Parameter::Text(payload), Parameter::Expiry(record.expires_at())];
        self.db.write(statement::<B>(&self.sql.insert, parameters)).await?;
        Ok(row::version(key.as_str(), record.payload()))
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        let payload = row::payload(write.record)?;
        let data = self.data_of(key, write.expected, now).await?;
        let parameters = [
            Parameter::Text(payload),
            Parameter::Expiry(write.record.expires_at()),
            Parameter::Instant(expiry_cap(write.expiry)),
            Parameter::Key(key),
            Parameter::Instant(now),
            Parameter::OptionalText(data.as_deref()),
        ];
        match self.db.write(statement::<B>(&self.sql.update, parameters)).await? {
            0 => Err(why_unmatched(write.expected, self.is_there(key, now)).await?),
            _ => Ok(row::version(key.as_str(), write.record.payload())),
        }
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        // The only trace of a touch is a later expiry: see `session_age`.
        let due_until = idle_since + self.session_age;
        let parameters = [
            Parameter::Expiry(expires_at),
            Parameter::Key(key),
            Parameter::Instant(now),
            Parameter::Instant(due_until),
        ];
        match self.db.write(statement::<B>(&self.sql.touch, parameters)).await? {
            0 if self.is_there(key, now).await? => Ok(false),
            0 => Err(PersistenceError::NotFound),
            _ => Ok(true),
        }
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        if old == new {
            return Err(PersistenceError::AlreadyExists);
        }
        let payload = row::payload(write.record)?;
        let data = self.data_of(old, write.expected, now).await?;
        let parameters = [
            Parameter::Text(payload),
            Parameter::Expiry(write.record.expires_at()),
            Parameter::Instant(expiry_cap(write.expiry)),
            Parameter::Text(new.as_str()),
            Parameter::Key(old),
            Parameter::Instant(now),
            Parameter::OptionalText(data.as_deref()),
        ];
        match self.db.write(statement::<B>(&self.sql.rename, parameters)).await? {
            0 => Err(why_unmatched(write.expected, self.is_there(old, now)).await?),
            _ => Ok(row::version(new.as_str(), write.record.payload())),
        }
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        Ok(self.db.write(statement::<B>(&self.sql.delete, [Parameter::Key(key)])).await? > 0)
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        let has_notes_left = self.db.remove_notes(before, limit).await?;
        let statements = &self.sql.delete_expired;
        let rows = statement::<B>(&statements.rows, [Parameter::Instant(before)]);
        let rows = B::bind(rows, Value::Integer(limit.into()));
        let removed = self.db.remove(rows, statements.rest(before)).await?;
        let removed = columns::expired::<B>(removed.iter()).with_more(has_notes_left);
        self.db.rotations.note_batch(removed.is_unfinished(limit));
        Ok(removed)
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        self.db.now().await
    }

    /// Makes nothing, because the table is the site's. Does the same as [`check_schema`](Self::check_schema),
    /// so that a store with defaults can be built.
    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.check_schema().await
    }

    /// Returns the statements that `manage.py migrate sessions` runs, for databases that no site has ever
    /// used.
    fn schema_sql(&self) -> String {
        self.db.table.fill(B::SCHEMA)
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        schema::check(&self.db, &self.sql).await
    }

    fn properties(&self) -> PersistenceProperties {
        PersistenceProperties::new(MAX_PAYLOAD_BYTES)
            .with_name(B::NAME)
            .with_keys(KeyForm::Plain, MAX_KEY_BYTES)
            .with_statement_bound(self.db.properties().statement_bound)
            .with_table_id(StoreId::of([self.db.table.as_str()]).0)
            .with_other_writers()
            .without_created_at()
    }

    fn notify(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str> {
        Err(
            "Django's own writers report no changes to a cache in memory; its table allows memory alone within max_cache_age",
        )
    }
}

/// The notes are in a table of their own, `django_session_rotations`, which Django does not know and leaves alone.
impl<B: DjangoBackend> Rotations for DjangoPersistence<B> {
    async fn note_rotation(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
        self.db.note_rotation(rotation).await
    }

    async fn rotations(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Rotation>, PersistenceError> {
        self.db.rotations(old, now, limit).await
    }

    async fn migrate_rotations(&self) -> Result<(), PersistenceError> {
        self.db.migrate_rotations().await
    }

    fn rotations_sql(&self) -> String {
        self.db.rotations_sql()
    }

    async fn check_rotations(&self) -> Result<(), PersistenceError> {
        self.db.check_rotations().await
    }
}
