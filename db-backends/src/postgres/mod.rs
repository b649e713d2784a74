//! Postgres.
//!
//! A statement whose caller has gone is seen to its end by a task, so that its connection can be used again. The task has
//! one second. Then the connection is closed, and what the server still does is bounded:
//!
//! | a statement whose caller has gone | is bounded by |
//! |---|---|
//! | waits for a lock | that second, and `lock_timeout`, 3 s |
//! | waits or runs | that second, `statement_timeout`, 5 s, and the time of its commit |
//! | over a pool of the application's | that second: nothing commits its transaction later |

mod builder;
mod inspect;
mod schema;

use std::sync::Arc;

use session_core::PersistenceError;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgQueryResult, PgRow};
use sqlx::{ConnectOptions as _, PgPool, Postgres, Row as _, SqlStr};

pub use builder::PostgresBuilder;

use crate::Inspection;
use crate::sql::connections::{Link, Numbered};
use crate::sql::error::{Dialect, Meaning};
use crate::sql::remote::Remote;
use crate::sql::row::{Corrupt, Row};
use crate::sql::table::TableName;
use crate::sql::{Backend, Query, SqlPersistence, Statements, Value};

/// Sessions in a Postgres database.
///
/// # Cancel safety
///
/// Dropping a future does not stop a statement that was sent: a task sees it to its end, for one second, and gives the
/// connection back. A statement that takes longer loses its connection, and ends within the bounds of
/// [this module](self). Outside of a tokio runtime there is no such task, and the connection is closed at once.
pub type PostgresPersistence = SqlPersistence<Postgres>;

impl PostgresPersistence {
    /// Connects to the database of `url` with the defaults. See [`PostgresBuilder::connect`].
    ///
    /// ```no_run
    /// # use db_backends::postgres::PostgresPersistence;
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use session_core::Persistence as _;
    ///
    /// let db = PostgresPersistence::connect("postgres://app:password@localhost/app").await?;
    /// db.migrate().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`PostgresBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a connection that is still opened by a task, and then closed.
    pub async fn connect(url: &str) -> Result<Self, PersistenceError> {
        Self::builder().connect(url).await
    }

    /// Another table name, other timeouts, another number of connections, or a pool that is there already.
    pub const fn builder() -> PostgresBuilder {
        PostgresBuilder::new()
    }

    /// Over a pool that the application has, in the table `sessions`. See [`PostgresBuilder::on_pool`], which takes
    /// another name.
    #[must_use]
    pub fn from_pool(pool: PgPool) -> Self {
        PostgresBuilder::new().on_pool_with(pool, TableName::default())
    }
}

fn statements(table: &TableName) -> Statements {
    Statements {
        load: table.sql(
            r#"SELECT key, payload, created_at, expires_at, last_seen_at, version, subject
               FROM "{table}" WHERE key = $1 AND expires_at > $2"#,
        ),
        insert: table.sql(
            r#"INSERT INTO "{table}" (key, payload, created_at, expires_at, last_seen_at, version, subject)
               VALUES ($1, $2, $3, $4, $5, $6, $7)"#,
        ),
        update: table.sql(
            r#"UPDATE "{table}"
               SET payload = $1, subject = $2, last_seen_at = $3, version = $4,
                   expires_at = greatest($5, least($6, expires_at))
               WHERE key = $7 AND expires_at > $8 AND version = coalesce($9, version)"#,
        ),
        touch: table.sql(
            r#"UPDATE "{table}"
               SET expires_at = greatest($1, expires_at), last_seen_at = greatest($2, last_seen_at)
               WHERE key = $3 AND expires_at > $4 AND last_seen_at <= $5"#,
        ),
        rename: table.sql(
            r#"UPDATE "{table}"
               SET payload = $1, subject = $2, last_seen_at = $3, version = $4,
                   expires_at = greatest($5, least($6, expires_at)), key = $7
               WHERE key = $8 AND expires_at > $9 AND version = coalesce($10, version)"#,
        ),
        is_there: table.sql(r#"SELECT 1 FROM "{table}" WHERE key = $1 AND expires_at > $2"#),
        delete: table.sql(r#"DELETE FROM "{table}" WHERE key = $1"#),
        // What others have locked, they delete or write. An array, because the planner might join a subquery with the
        // whole table.
        delete_expired: table.sql(
            r#"DELETE FROM "{table}" WHERE key = ANY (ARRAY(
                   SELECT key FROM "{table}" WHERE expires_at <= $1
                   ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))"#,
        ),
        count_expired: table.sql(r#"SELECT count(*) FROM "{table}" WHERE expires_at <= $1"#),
        // Materialized, because the planner might go through the whole table in the order of its keys.
        list_by_subject: table.sql(
            r#"WITH mine AS MATERIALIZED (
                   SELECT key, created_at, expires_at, last_seen_at
                   FROM "{table}" WHERE subject = $1 AND expires_at > $3)
               SELECT key, created_at, expires_at, last_seen_at FROM mine WHERE key >= $2 ORDER BY key LIMIT $4"#,
        ),
        scan: table.sql(
            r#"SELECT key, payload, created_at, expires_at, last_seen_at, version, subject
               FROM "{table}" WHERE key >= $1 ORDER BY key LIMIT $2"#,
        ),
        now: SqlStr::from_static("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"),
    }
}

impl Backend for Postgres {
    type Connections = Remote<PostgresLink>;

    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self> {
        match value {
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
            Value::Integer(integer) => query.bind(integer),
            Value::OptionalText(text) => query.bind(text),
            Value::OptionalInteger(integer) => query.bind(integer),
        }
    }

    /// Text cannot have a byte of zero.
    const LEAST_BYTE: u8 = 1;

    fn columns(row: &PgRow) -> Result<Row<'_>, Corrupt> {
        let text = |index, name| row.try_get(index).map(str::as_bytes).map_err(|_| Corrupt::Type(name));
        let integer = |index, name| row.try_get(index).map_err(|_| Corrupt::Type(name));
        let subject: Option<&str> = row.try_get(6).map_err(|_| Corrupt::Type("subject"))?;
        Ok(Row {
            key: text(0, "key")?,
            payload: row.try_get(1).map_err(|_| Corrupt::Type("payload"))?,
            created_at: integer(2, "created_at")?,
            expires_at: integer(3, "expires_at")?,
            last_seen_at: integer(4, "last_seen_at")?,
            version: integer(5, "version")?,
            subject: subject.map(str::as_bytes),
        })
    }

    fn key(row: &PgRow) -> Option<&[u8]> {
        row.try_get_raw(0).ok()?.as_bytes().ok()
    }

    fn integer(row: &PgRow, index: usize) -> Option<i64> {
        row.try_get(index).ok()
    }

    async fn write(db: &PostgresPersistence, query: Query<Self>) -> Result<u64, PersistenceError> {
        db.connections.write(query, &db.table).await
    }

    async fn read(db: &PostgresPersistence, query: Query<Self>) -> Result<Option<PgRow>, PersistenceError> {
        db.connections.lease().await?.read(query, &db.table).await
    }

    async fn read_all(db: &PostgresPersistence, query: Query<Self>) -> Result<Vec<PgRow>, PersistenceError> {
        db.connections.lease().await?.read_all(query, &db.table).await
    }

    async fn migrate(db: &PostgresPersistence) -> Result<(), PersistenceError> {
        schema::migrate(db).await
    }

    fn schema_sql(table: &TableName) -> String {
        schema::sql(table)
    }

    async fn check_schema(db: &PostgresPersistence) -> Result<(), PersistenceError> {
        schema::check(db).await
    }

    async fn inspect(db: &PostgresPersistence) -> Result<Inspection, PersistenceError> {
        inspect::inspect(db).await
    }

    async fn close(connections: &Self::Connections) {
        connections.close().await;
    }
}

/// How to reach the server.
pub(crate) struct PostgresLink(Arc<PgConnectOptions>);

impl Link for PostgresLink {
    type Database = Postgres;
    const DIALECT: Dialect = DIALECT;
    const IS_REMOTE: bool = true;

    async fn open(&self) -> sqlx::Result<Numbered<Self>> {
        Ok(Numbered { connection: self.0.connect().await?, number: 0 })
    }

    fn rows_affected(done: &PgQueryResult) -> u64 {
        done.rows_affected()
    }
}

const DIALECT: Dialect = Dialect {
    name: "Postgres",
    meaning,
    may_be_shown,
    advice: "TLS to Postgres needs the feature postgres-tls of db-backends; with it, check the certificates that the URL \
             names",
};

/// By SQLSTATE, as in <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn meaning(error: &dyn DatabaseError) -> Meaning {
    if error.is_unique_violation() {
        return Meaning::Duplicate;
    }
    let code = error.code().unwrap_or_default();
    match &*code {
        "42P01" => Meaning::NoTable,
        // Serialization failure, deadlock, lock timeout, statement timeout.
        "40001" | "40P01" | "55P03" | "57014" => Meaning::Busy,
        // Too many connections; cannot connect now.
        "53300" | "57P03" => Meaning::Unavailable,
        _ => match code.get(..2) {
            // Not authorized; no such database.
            Some("28" | "3D") => Meaning::Unavailable,
            // Connections, transactions, operators, system, internal. A server that is shut down may say so between a
            // commit and its answer.
            Some("08" | "40" | "57" | "58" | "XX") => Meaning::Unknown,
            _ => Meaning::Refused,
        },
    }
}

/// Messages about connections, transactions, authorization, databases, privileges and names, resources, limits, states
/// and operators quote no values. Those about data and constraints may, and so may what a trigger says.
fn may_be_shown(error: &dyn DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    matches!(code.get(..2), Some("08" | "25" | "28" | "3D" | "3F" | "40" | "42" | "53" | "54" | "55" | "57"))
}
