//! SQLite: a file, or in memory.
//!
//! | a statement whose caller has gone | is bounded by |
//! |---|---|
//! | waits for another writer | `busy_timeout`, 5 s |
//! | runs | the process: nothing goes on after it has ended |

mod builder;
mod connections;
mod schema;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use session_core::{
    ExpiryWrite, Persistence, PersistenceError, PersistenceProperties, Record, StoredKey, Subject,
    SubjectIndex, Timestamp, Version,
};
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row as _, SqlStr, Sqlite, SqlitePool, query};

pub use builder::SqliteBuilder;

use self::connections::Connections;
use crate::error::{Dialect, Meaning};
use crate::row::{self, Corrupt, MAX_PAYLOAD_BYTES, Row};
use crate::table::TableName;

/// Sessions in a SQLite database.
///
/// # Cancel safety
///
/// A statement runs in the connection's own thread: once it was sent there, dropping the future does not stop it. It
/// then has its effect, or fails, within `busy_timeout` and the time that it takes.
pub struct SqlitePersistence {
    connections: Connections,
    table: TableName,
    sql: Statements,
    busy_timeout: Duration,
}

struct Statements {
    load: SqlStr,
    insert: SqlStr,
    update: SqlStr,
    touch: SqlStr,
    rename: SqlStr,
    is_there: SqlStr,
    delete: SqlStr,
    delete_expired: SqlStr,
    list_by_subject: SqlStr,
}

impl Statements {
    fn new(table: &TableName) -> Self {
        Self {
            load: table.sql(
                r#"SELECT key, payload, created_at, expires_at, last_seen_at, version, subject
                   FROM "{table}" WHERE key = ?1 AND expires_at > ?2"#,
            ),
            insert: table.sql(
                r#"INSERT INTO "{table}" (key, payload, created_at, expires_at, last_seen_at, version, subject)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"#,
            ),
            update: table.sql(
                r#"UPDATE "{table}"
                   SET payload = ?3, subject = ?4, last_seen_at = ?5, version = ?6,
                       expires_at = CASE WHEN ?8 THEN max(expires_at, ?7) ELSE ?7 END
                   WHERE key = ?1 AND expires_at > ?2 AND (?9 IS NULL OR version = ?9)"#,
            ),
            touch: table.sql(
                r#"UPDATE "{table}"
                   SET expires_at = max(expires_at, ?3), last_seen_at = max(last_seen_at, ?2)
                   WHERE key = ?1 AND expires_at > ?2"#,
            ),
            rename: table.sql(
                r#"UPDATE "{table}"
                   SET payload = ?3, subject = ?4, last_seen_at = ?5, version = ?6,
                       expires_at = CASE WHEN ?8 THEN max(expires_at, ?7) ELSE ?7 END, key = ?10
                   WHERE key = ?1 AND expires_at > ?2 AND (?9 IS NULL OR version = ?9)"#,
            ),
            is_there: table.sql(r#"SELECT 1 FROM "{table}" WHERE key = ?1 AND expires_at > ?2"#),
            delete: table.sql(r#"DELETE FROM "{table}" WHERE key = ?1"#),
            delete_expired: table.sql(
                r#"DELETE FROM "{table}" WHERE rowid IN
                   (SELECT rowid FROM "{table}" WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)"#,
            ),
            list_by_subject: table.sql(
                r#"SELECT key, payload, created_at, expires_at, last_seen_at, version, subject
                   FROM "{table}" WHERE subject = ?1 AND expires_at > ?2"#,
            ),
        }
    }
}

impl SqlitePersistence {
    /// Opens the database of `url` with the defaults, and makes the file if there is none. See
    /// [`SqliteBuilder::connect`].
    ///
    /// ```
    /// # use db_backends::sqlite::SqlitePersistence;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use session_core::Persistence as _;
    ///
    /// let db = SqlitePersistence::connect("sqlite::memory:").await?;
    /// db.migrate().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`SqliteBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// As [`SqliteBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, PersistenceError> {
        Self::builder().connect(url).await
    }

    /// Another table name, other timeouts, another number of connections, or a pool that is there already.
    pub fn builder() -> SqliteBuilder {
        SqliteBuilder::new()
    }

    /// Over a pool that the application has, in the table `sessions`. See [`SqliteBuilder::on_pool`], which takes
    /// another name.
    #[must_use]
    pub fn from_pool(pool: SqlitePool) -> Self {
        SqliteBuilder::new().on_pool_with(pool, TableName::default())
    }

    fn new(connections: Connections, table: TableName, busy_timeout: Duration) -> Self {
        Self { connections, sql: Statements::new(&table), table, busy_timeout }
    }

    /// Waits for the statements that run, and closes the file; not a pool of the application's. Calls that come later
    /// fail with [`PersistenceError::Unavailable`].
    ///
    /// Without it, the file is closed soon after this was dropped.
    pub async fn close(&self) {
        self.connections.close().await;
    }

    /// Runs a statement that writes; how many rows it matched.
    async fn write(&self, query: Query) -> Result<u64, PersistenceError> {
        let mut lease = self.connections.writer().await?;
        let done = query.execute(lease.connection().await?).await;
        let done = done.map_err(|error| ERRORS.writing(&error, &self.table))?;
        lease.finish();
        Ok(done.rows_affected())
    }

    /// Runs a statement that reads at most one row.
    async fn read(&self, query: Query) -> Result<Option<SqliteRow>, PersistenceError> {
        let mut lease = self.connections.reader().await?;
        let row = query.fetch_optional(lease.connection().await?).await;
        let row = row.map_err(|error| ERRORS.reading(&error, &self.table))?;
        lease.finish();
        Ok(row)
    }

    /// Refuses a pool of the application's that waits longer for locks than this was told: an abandoned statement would
    /// outlive its bound.
    async fn check_busy_timeout(&self) -> Result<(), PersistenceError> {
        let row = self.read(query("PRAGMA busy_timeout")).await?;
        let millis: i64 = row.and_then(|row| row.try_get(0).ok()).unwrap_or(0);
        let found = Duration::from_millis(millis.unsigned_abs());
        if found <= self.busy_timeout {
            return Ok(());
        }
        Err(PersistenceError::Config(format!(
            "the pool's connections have a busy_timeout of {found:?}, longer than the {:?} that this was told; \
             pass it to SqliteBuilder::busy_timeout",
            self.busy_timeout
        )))
    }

    /// Why a write that expected a version matched no row.
    async fn why_unmatched(
        &self,
        key: &StoredKey,
        expected: Option<Version>,
        now: Timestamp,
    ) -> Result<PersistenceError, PersistenceError> {
        if expected.is_none() {
            return Ok(PersistenceError::NotFound);
        }
        let query = query(self.sql.is_there.clone()).bind(key.as_str()).bind(now.as_micros());
        Ok(match self.read(query).await? {
            Some(_) => PersistenceError::Conflict,
            None => PersistenceError::NotFound,
        })
    }
}

type Query = query::Query<'static, Sqlite, SqliteArguments>;

impl Persistence for SqlitePersistence {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        let query = query(self.sql.load.clone()).bind(key.as_str()).bind(now.as_micros());
        match self.read(query).await? {
            Some(row) => columns(&row)?.record_of(key).map(Some),
            None => Ok(None),
        }
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        row::check_size(record)?;
        let version = row::fresh_version();
        let query = query(self.sql.insert.clone())
            .bind(key.as_str())
            .bind(&**record.payload())
            .bind(record.created_at().as_micros())
            .bind(record.expires_at().as_micros())
            .bind(record.last_seen_at().as_micros())
            .bind(version.as_u64().cast_signed())
            .bind(record.subject().map(Subject::as_str));
        self.write(query).await?;
        Ok(version)
    }

    async fn update(
        &self,
        key: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        row::check_size(record)?;
        let version = row::fresh_version();
        let query = bind_record(&self.sql.update, key, record, version, expected, expiry, now);
        match self.write(query).await? {
            0 => Err(self.why_unmatched(key, expected, now).await?),
            _ => Ok(version),
        }
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<(), PersistenceError> {
        let query = query(self.sql.touch.clone())
            .bind(key.as_str())
            .bind(now.as_micros())
            .bind(expires_at.as_micros());
        match self.write(query).await? {
            0 => Err(PersistenceError::NotFound),
            _ => Ok(()),
        }
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        if old == new {
            return Err(PersistenceError::AlreadyExists);
        }
        row::check_size(record)?;
        let version = row::fresh_version();
        let query = bind_record(&self.sql.rename, old, record, version, expected, expiry, now);
        match self.write(query.bind(new.as_str())).await? {
            0 => Err(self.why_unmatched(old, expected, now).await?),
            _ => Ok(version),
        }
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        Ok(self.write(query(self.sql.delete.clone()).bind(key.as_str())).await? > 0)
    }

    async fn delete_expired(&self, before: Timestamp, limit: u32) -> Result<u64, PersistenceError> {
        self.write(query(self.sql.delete_expired.clone()).bind(before.as_micros()).bind(limit)).await
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.check_busy_timeout().await?;
        schema::migrate(self).await
    }

    fn schema_sql(&self) -> String {
        schema::sql(&self.table)
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        self.check_busy_timeout().await?;
        schema::check(self).await
    }

    fn properties(&self) -> PersistenceProperties {
        // Beside the waiting, a statement takes some time of its own.
        PersistenceProperties::new(MAX_PAYLOAD_BYTES)
            .with_statement_bound(self.busy_timeout + Duration::from_secs(5))
    }
}

impl SubjectIndex for SqlitePersistence {
    async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
    ) -> Result<Vec<(StoredKey, Record)>, PersistenceError> {
        let query = query(self.sql.list_by_subject.clone()).bind(subject.as_str()).bind(now.as_micros());
        let mut lease = self.connections.reader().await?;
        let rows = query.fetch_all(lease.connection().await?).await;
        let rows = rows.map_err(|error| ERRORS.reading(&error, &self.table))?;
        lease.finish();
        rows.iter().map(|row| columns(row)?.key_and_record()).collect()
    }
}

/// The parameters that update and rename share, in the order of their statements.
fn bind_record(
    sql: &SqlStr,
    key: &StoredKey,
    record: &Record,
    version: Version,
    expected: Option<Version>,
    expiry: ExpiryWrite,
    now: Timestamp,
) -> Query {
    query(sql.clone())
        .bind(key.as_str())
        .bind(now.as_micros())
        .bind(&**record.payload())
        .bind(record.subject().map(Subject::as_str))
        .bind(record.last_seen_at().as_micros())
        .bind(version.as_u64().cast_signed())
        .bind(record.expires_at().as_micros())
        .bind(expiry == ExpiryWrite::Extend)
        .bind(expected.map(|version| version.as_u64().cast_signed()))
}

/// The columns of a row, in the order in which all statements ask for them.
fn columns(row: &SqliteRow) -> Result<Row<'_>, Corrupt> {
    Ok(Row {
        key: row.try_get(0).map_err(|_| Corrupt::Type("key"))?,
        payload: row.try_get(1).map_err(|_| Corrupt::Type("payload"))?,
        created_at: row.try_get(2).map_err(|_| Corrupt::Type("created_at"))?,
        expires_at: row.try_get(3).map_err(|_| Corrupt::Type("expires_at"))?,
        last_seen_at: row.try_get(4).map_err(|_| Corrupt::Type("last_seen_at"))?,
        version: row.try_get(5).map_err(|_| Corrupt::Type("version"))?,
        subject: row.try_get(6).map_err(|_| Corrupt::Type("subject"))?,
    })
}

impl fmt::Debug for SqlitePersistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlitePersistence").field("table", &self.table.as_str()).finish_non_exhaustive()
    }
}

const ERRORS: Dialect = Dialect { name: "SQLite", meaning, may_be_shown };

/// By the result code, as in <https://sqlite.org/rescode.html>; the lowest byte is the primary one.
fn meaning(error: &dyn DatabaseError) -> Meaning {
    if error.is_unique_violation() {
        return Meaning::Duplicate;
    }
    match code(error) & 0xff {
        // BUSY, LOCKED.
        5 | 6 => Meaning::Busy,
        // IOERR: whether a commit reached the disk is not known.
        10 => Meaning::Unknown,
        // CANTOPEN.
        14 => Meaning::Unavailable,
        // ERROR has no code of its own for this.
        1 if error.message().starts_with("no such table: ") => Meaning::NoTable,
        _ => Meaning::Refused,
    }
}

/// SQLite's messages name tables and columns, but quote no values. What a trigger of the application's says
/// (CONSTRAINT_TRIGGER) may.
fn may_be_shown(error: &dyn DatabaseError) -> bool {
    code(error) != 1811
}

fn code(error: &dyn DatabaseError) -> u32 {
    error.code().and_then(|code| code.parse().ok()).unwrap_or(1)
}
