//! SQLite: a file, or in memory.
//!
//! | a statement whose caller has gone | is bounded by |
//! |---|---|
//! | waits for another writer | `busy_timeout`, 5 s |
//! | runs | the process: nothing goes on after it has ended |
//!
//! A task waits for the end of such a statement, for one second, before it gives the connection to the next call. What
//! takes longer is waited for by that call.

mod builder;
mod connections;
mod inspect;
mod schema;
#[cfg(test)]
mod tests;

use session_core::PersistenceError;
use sqlx::error::DatabaseError;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqlStr, Sqlite, SqlitePool, TypeInfo as _, ValueRef as _};

pub use builder::SqliteBuilder;

use self::connections::Connections;
use crate::Inspection;
use crate::sql::error::{Dialect, Meaning};
use crate::sql::row::{Corrupt, Row};
use crate::sql::table::TableName;
use crate::sql::{Backend, Query, SqlPersistence, Statements, Value};

/// Sessions in a SQLite database.
///
/// # Cancel safety
///
/// A statement runs in the connection's own thread. Dropping the future does not stop it once it was sent there: it has
/// its effect, or fails, within `busy_timeout` and the time that it takes.
pub type SqlitePersistence = SqlPersistence<Sqlite>;

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
    pub const fn builder() -> SqliteBuilder {
        SqliteBuilder::new()
    }

    /// Over a pool that the application has, in the table `sessions`. See [`SqliteBuilder::on_pool`], which takes
    /// another name.
    #[must_use]
    pub fn from_pool(pool: SqlitePool) -> Self {
        SqliteBuilder::new().on_pool_with(pool, TableName::default())
    }
}

fn statements(table: &TableName) -> Statements {
    Statements {
        load: table.sql(
            r#"SELECT key, payload, created_at, expires_at, last_seen_at, version, subject
               FROM "{table}" WHERE key = ? AND expires_at > ?"#,
        ),
        insert: table.sql(
            r#"INSERT INTO "{table}" (key, payload, created_at, expires_at, last_seen_at, version, subject)
               VALUES (?, ?, ?, ?, ?, ?, ?)"#,
        ),
        update: table.sql(
            r#"UPDATE "{table}"
               SET payload = ?, subject = ?, last_seen_at = ?, version = ?,
                   expires_at = max(?, min(?, expires_at))
               WHERE key = ? AND expires_at > ? AND version = coalesce(?, version)"#,
        ),
        touch: table.sql(
            r#"UPDATE "{table}" SET expires_at = max(?, expires_at), last_seen_at = max(?, last_seen_at)
               WHERE key = ? AND expires_at > ? AND last_seen_at <= ?"#,
        ),
        rename: table.sql(
            r#"UPDATE "{table}"
               SET payload = ?, subject = ?, last_seen_at = ?, version = ?,
                   expires_at = max(?, min(?, expires_at)), key = ?
               WHERE key = ? AND expires_at > ? AND version = coalesce(?, version)"#,
        ),
        is_there: table.sql(r#"SELECT 1 FROM "{table}" WHERE key = ? AND expires_at > ?"#),
        delete: table.sql(r#"DELETE FROM "{table}" WHERE key = ?"#),
        delete_expired: table.sql(
            r#"DELETE FROM "{table}" WHERE rowid IN
               (SELECT rowid FROM "{table}" WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"#,
        ),
        count_expired: table.sql(r#"SELECT count(*) FROM "{table}" WHERE expires_at <= ?"#),
        // The signs keep SQLite from using another index than that of subjects.
        list_by_subject: table.sql(
            r#"SELECT key, created_at, expires_at, last_seen_at FROM "{table}"
               WHERE subject = ? AND +key >= ? AND +expires_at > ? ORDER BY +key LIMIT ?"#,
        ),
        scan: table.sql(
            r#"SELECT key, payload, created_at, expires_at, last_seen_at, version, subject
               FROM "{table}" WHERE key >= ? ORDER BY key LIMIT ?"#,
        ),
        // To the millisecond.
        now: SqlStr::from_static("SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000"),
    }
}

impl Backend for Sqlite {
    type Connections = Connections;

    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self> {
        match value {
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
            Value::Integer(integer) => query.bind(integer),
            Value::OptionalText(text) => query.bind(text),
            Value::OptionalInteger(integer) => query.bind(integer),
        }
    }

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

    fn key(row: &SqliteRow) -> Option<&[u8]> {
        let value = row.try_get_raw(0).ok()?;
        // A table that was made by hand may have keys of other types. Those of bytes come after all text.
        if value.type_info().name() != "TEXT" {
            return None;
        }
        row.try_get(0).ok()
    }

    fn integer(row: &SqliteRow, index: usize) -> Option<i64> {
        row.try_get(index).ok()
    }

    async fn write(db: &SqlitePersistence, query: Query<Self>) -> Result<u64, PersistenceError> {
        db.connections.writer().await?.write(query, &db.table).await
    }

    async fn read(db: &SqlitePersistence, query: Query<Self>) -> Result<Option<SqliteRow>, PersistenceError> {
        db.connections.reader().await?.read(query, &db.table).await
    }

    async fn read_all(
        db: &SqlitePersistence,
        query: Query<Self>,
    ) -> Result<Vec<SqliteRow>, PersistenceError> {
        db.connections.reader().await?.read_all(query, &db.table).await
    }

    async fn migrate(db: &SqlitePersistence) -> Result<(), PersistenceError> {
        schema::migrate(db).await
    }

    fn schema_sql(table: &TableName) -> String {
        schema::sql(table)
    }

    async fn check_schema(db: &SqlitePersistence) -> Result<(), PersistenceError> {
        schema::check(db).await
    }

    async fn inspect(db: &SqlitePersistence) -> Result<Inspection, PersistenceError> {
        inspect::inspect(db).await
    }

    async fn close(connections: &Connections) {
        connections.close().await;
    }
}

const DIALECT: Dialect =
    Dialect { name: "SQLite", meaning, may_be_shown, advice: "check the options of the SQLite URL" };

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
