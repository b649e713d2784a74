//! The tables: made, checked and brought up to date.

use session_core::PersistenceError;
use sqlx::{Connection as _, PgConnection, Row as _, query, query_scalar};

use super::{DIALECT, PostgresPersistence};
use crate::sql::schema::{Column, Columns, Found, Step, Verdict, judge, statements_after};
use crate::sql::table::TableName;

/// Text in the collation `C` is compared byte by byte. The version of a row is the bit pattern of 64 random bits; instants
/// are microseconds since 1970 in UTC.
const STEPS: &[Step] = &[&[
    r#"CREATE TABLE IF NOT EXISTS "{table}_schema" (version INTEGER NOT NULL PRIMARY KEY)"#,
    r#"CREATE TABLE IF NOT EXISTS "{table}" (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    payload BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    version BIGINT NOT NULL,
    subject TEXT COLLATE "C"
)"#,
    r#"CREATE INDEX IF NOT EXISTS "{table}_expires_at" ON "{table}" (expires_at)"#,
    r#"CREATE INDEX IF NOT EXISTS "{table}_subject" ON "{table}" (subject) WHERE subject IS NOT NULL"#,
    r#"INSERT INTO "{table}_schema" (version) VALUES (1) ON CONFLICT DO NOTHING"#,
]];

const NEEDED: u32 = 1;

const COLUMNS: Columns = [
    ("key", "text", false),
    ("payload", "bytea", false),
    ("created_at", "bigint", false),
    ("expires_at", "bigint", false),
    ("last_seen_at", "bigint", false),
    ("version", "bigint", false),
    ("subject", "text", true),
];

pub(super) fn sql(table: &TableName) -> String {
    STEPS.iter().copied().flatten().map(|statement| table.fill(statement) + ";\n").collect()
}

pub(super) async fn check(db: &PostgresPersistence) -> Result<(), PersistenceError> {
    let table = db.table.clone();
    let state = db
        .connections
        .lease()
        .await?
        .perform(move |connection| Box::pin(async move { state(connection, &table).await }))
        .await;
    Ok(state.map_err(|error| DIALECT.reading(&error, &db.table))??)
}

pub(super) async fn migrate(db: &PostgresPersistence) -> Result<(), PersistenceError> {
    let table = db.table.clone();
    let migrated = db
        .connections
        .lease()
        .await?
        .perform(move |connection| Box::pin(async move { bring_up_to_date(connection, &table).await }))
        .await;
    Ok(migrated.map_err(|error| DIALECT.writing(&error, &db.table))??)
}

async fn bring_up_to_date(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Verdict> {
    // Without a lock at first: most starts find everything done, and some may not write.
    if state(connection, table).await?.is_ok() {
        return Ok(Ok(()));
    }
    // Making an index can take longer than a session's statement may.
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 60000";
    let mut transaction = connection.begin_with(begin).await?;
    // Several nodes may be here. The lock goes with the transaction.
    query("SELECT pg_advisory_xact_lock(hashtext($1))")
        .bind(table.schema_table())
        .execute(&mut *transaction)
        .await?;
    let statements = match statements_after(state(&mut transaction, table).await?, STEPS) {
        Ok(statements) => statements,
        Err(problem) => return Ok(Err(problem)),
    };
    for statement in statements {
        query(table.sql(statement)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(Ok(()))
}

/// Whether the tables are as this version needs them.
async fn state(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Verdict> {
    // In this order: whoever makes both makes them visible at once, so a session table that is seen has its versions.
    let sessions = columns(connection, table.as_str()).await?;
    let versions = columns(connection, &table.schema_table()).await?;
    let mut found = Found { sessions, versions, version: None };
    if found.has_versions() {
        let last = table.sql(r#"SELECT max(version) FROM "{table}_schema""#);
        let last: Option<i32> = query_scalar(last).fetch_one(connection).await?;
        found.version = last.and_then(|last| last.try_into().ok());
    }
    Ok(judge(table, &found, NEEDED, &COLUMNS))
}

/// Those of the table that statements mean by this name.
async fn columns(connection: &mut PgConnection, table: &str) -> sqlx::Result<Vec<Column>> {
    let rows = query(
        "SELECT attname::text, format_type(atttypid, NULL), NOT attnotnull, EXISTS (
             SELECT FROM pg_index WHERE indrelid = attrelid AND indisprimary AND attnum = ANY (indkey))
         FROM pg_attribute
         WHERE attrelid = to_regclass(quote_ident($1)) AND attnum > 0 AND NOT attisdropped",
    );
    let rows = rows.bind(table).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(Column {
                name: row.try_get(0)?,
                data_type: row.try_get(1)?,
                is_nullable: row.try_get(2)?,
                is_primary_key: row.try_get(3)?,
            })
        })
        .collect()
}
