//! The tables: made, checked and brought up to date.

use session_core::PersistenceError;
use sqlx::{Connection as _, Row as _, SqliteConnection, query, query_scalar};

use super::{DIALECT, SqlitePersistence};
use crate::sql::schema::{Column, Columns, Found, Step, Verdict, judge, statements_after};
use crate::sql::table::TableName;

/// A table with a rowid, because a row of 1 KB would not fit into a page of a `WITHOUT ROWID` table's B-tree, and each
/// would take another page. The version of a row is the bit pattern of 64 random bits; instants are microseconds since
/// 1970 in UTC.
const STEPS: &[Step] = &[&[
    r#"CREATE TABLE IF NOT EXISTS "{table}_schema" (version INTEGER NOT NULL PRIMARY KEY) STRICT"#,
    r#"CREATE TABLE IF NOT EXISTS "{table}" (
    key TEXT NOT NULL COLLATE BINARY PRIMARY KEY,
    payload BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    last_seen_at INTEGER NOT NULL,
    version INTEGER NOT NULL,
    subject TEXT COLLATE BINARY
) STRICT"#,
    r#"CREATE INDEX IF NOT EXISTS "{table}_expires_at" ON "{table}" (expires_at)"#,
    r#"CREATE INDEX IF NOT EXISTS "{table}_subject" ON "{table}" (subject) WHERE subject IS NOT NULL"#,
    r#"INSERT OR IGNORE INTO "{table}_schema" (version) VALUES (1)"#,
]];

const NEEDED: u32 = 1;

const COLUMNS: Columns = [
    ("key", "TEXT", false),
    ("payload", "BLOB", false),
    ("created_at", "INTEGER", false),
    ("expires_at", "INTEGER", false),
    ("last_seen_at", "INTEGER", false),
    ("version", "INTEGER", false),
    ("subject", "TEXT", true),
];

pub(super) fn sql(table: &TableName) -> String {
    STEPS.iter().copied().flatten().map(|statement| table.fill(statement) + ";\n").collect()
}

pub(super) async fn check(db: &SqlitePersistence) -> Result<(), PersistenceError> {
    db.connections.check().await?;
    let table = db.table.clone();
    let state = db
        .connections
        .reader()
        .await?
        .perform(move |connection| Box::pin(async move { state(connection, &table).await }))
        .await;
    Ok(state.map_err(|error| DIALECT.reading(&error, &db.table))??)
}

pub(super) async fn migrate(db: &SqlitePersistence) -> Result<(), PersistenceError> {
    db.connections.check().await?;
    let table = db.table.clone();
    let migrated = db
        .connections
        .writer()
        .await?
        .perform(move |connection| Box::pin(async move { bring_up_to_date(connection, &table).await }))
        .await;
    Ok(migrated.map_err(|error| DIALECT.writing(&error, &db.table))??)
}

async fn bring_up_to_date(connection: &mut SqliteConnection, table: &TableName) -> sqlx::Result<Verdict> {
    // Without the lock at first: most starts find everything done, and some may not write.
    if state(connection, table).await?.is_ok() {
        return Ok(Ok(()));
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
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
async fn state(connection: &mut SqliteConnection, table: &TableName) -> sqlx::Result<Verdict> {
    // In this order: whoever makes both makes them visible at once, so a session table that is seen has its versions.
    let sessions = columns(connection, table.as_str()).await?;
    let versions = columns(connection, &table.schema_table()).await?;
    let mut found = Found { sessions, versions, version: None };
    if found.has_versions() {
        let last = table.sql(r#"SELECT max(version) FROM "{table}_schema""#);
        found.version = query_scalar(last).fetch_one(connection).await?;
    }
    Ok(judge(table, &found, NEEDED, &COLUMNS))
}

async fn columns(connection: &mut SqliteConnection, table: &str) -> sqlx::Result<Vec<Column>> {
    let rows = query(r#"SELECT name, type, "notnull", pk FROM pragma_table_info(?1)"#).bind(table);
    let rows = rows.fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(Column {
                name: row.try_get(0)?,
                data_type: row.try_get(1)?,
                is_nullable: !row.try_get::<bool, _>(2)?,
                is_primary_key: row.try_get::<i64, _>(3)? > 0,
            })
        })
        .collect()
}
