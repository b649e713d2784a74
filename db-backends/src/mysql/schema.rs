//! The tables: made, checked and brought up to date.

use session_core::PersistenceError;
use sqlx::{MySqlConnection, Row as _, query, query_scalar};

use super::{DIALECT, MySqlPersistence};
use crate::sql::schema::{Column, Columns, Found, Step, Verdict, judge, statements_after};
use crate::sql::table::TableName;

/// Binary columns, so that no collation has a say. The version of a row is the bit pattern of 64 random bits; instants are
/// microseconds since 1970 in UTC.
///
/// There are no transactions for this: the table of versions comes first and its row last, so that a session table is
/// never seen without the former, and one that was cut off has no version.
const STEPS: &[Step] = &[&[
    "CREATE TABLE IF NOT EXISTS `{table}_schema` (version INT NOT NULL PRIMARY KEY) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS `{table}` (
    `key` VARBINARY(64) NOT NULL PRIMARY KEY,
    payload LONGBLOB NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    version BIGINT NOT NULL,
    subject VARBINARY(255),
    KEY `{table}_expires_at` (expires_at),
    KEY `{table}_subject` (subject)
) ENGINE = InnoDB",
    "INSERT IGNORE INTO `{table}_schema` (version) VALUES (1)",
]];

const NEEDED: u32 = 1;

const COLUMNS: Columns = [
    ("key", "varbinary", false),
    ("payload", "longblob", false),
    ("created_at", "bigint", false),
    ("expires_at", "bigint", false),
    ("last_seen_at", "bigint", false),
    ("version", "bigint", false),
    ("subject", "varbinary", true),
];

pub(super) fn sql(table: &TableName) -> String {
    STEPS.iter().copied().flatten().map(|statement| table.fill(statement) + ";\n").collect()
}

pub(super) async fn check(db: &MySqlPersistence) -> Result<(), PersistenceError> {
    let table = db.table.clone();
    let state = db
        .connections
        .lease()
        .await?
        .perform(move |connection| Box::pin(async move { state(connection, &table).await }))
        .await;
    Ok(state.map_err(|error| DIALECT.reading(&error, &db.table))??)
}

pub(super) async fn migrate(db: &MySqlPersistence) -> Result<(), PersistenceError> {
    let table = db.table.clone();
    let migrated = db
        .connections
        .lease()
        .await?
        .perform(move |connection| Box::pin(async move { bring_up_to_date(connection, &table).await }))
        .await;
    match migrated.map_err(|error| DIALECT.writing(&error, &db.table))? {
        Some(verdict) => Ok(verdict?),
        None => Err(PersistenceError::Busy(Box::new(MigratesElsewhere))),
    }
}

/// How often to ask for the lock that another node has, each time for a second: less than `max_statement_time`.
const ATTEMPTS: u32 = 60;

/// Another node did not finish its migration in time.
#[derive(Debug, thiserror::Error)]
#[error("another node migrates, and does not finish")]
struct MigratesElsewhere;

/// None when it is never this node's turn.
async fn bring_up_to_date(
    connection: &mut MySqlConnection,
    table: &TableName,
) -> sqlx::Result<Option<Verdict>> {
    // Without a lock at first: most starts find everything done, and some may not write.
    if state(connection, table).await?.is_ok() {
        return Ok(Some(Ok(())));
    }
    // Several nodes may be here. The lock goes with the connection, if not before.
    let lock = format!("sessions/{}", table.as_str());
    for _ in 0..ATTEMPTS {
        let get_lock = query_scalar::<_, bool>("SELECT get_lock(?, 1)").bind(&lock);
        if get_lock.fetch_one(&mut *connection).await? {
            let verdict = run_steps(connection, table).await;
            query("DO release_lock(?)").bind(&lock).execute(connection).await?;
            return verdict.map(Some);
        }
    }
    Ok(None)
}

async fn run_steps(connection: &mut MySqlConnection, table: &TableName) -> sqlx::Result<Verdict> {
    let statements = match statements_after(state(connection, table).await?, STEPS) {
        Ok(statements) => statements,
        Err(problem) => return Ok(Err(problem)),
    };
    for statement in statements {
        query(table.sql(statement)).execute(&mut *connection).await?;
    }
    Ok(Ok(()))
}

/// Whether the tables are as this version needs them.
async fn state(connection: &mut MySqlConnection, table: &TableName) -> sqlx::Result<Verdict> {
    let sessions = columns(connection, table.as_str()).await?;
    let versions = columns(connection, &table.schema_table()).await?;
    let mut found = Found { sessions, versions, version: None };
    if found.has_versions() {
        let last = table.sql("SELECT max(version) FROM `{table}_schema`");
        let last: Option<i32> = query_scalar(last).fetch_one(connection).await?;
        found.version = last.and_then(|last| last.try_into().ok());
    }
    Ok(judge(table, &found, NEEDED, &COLUMNS))
}

async fn columns(connection: &mut MySqlConnection, table: &str) -> sqlx::Result<Vec<Column>> {
    let rows = query(
        "SELECT CAST(column_name AS CHAR), CAST(data_type AS CHAR), is_nullable = 'YES', column_key = 'PRI'
         FROM information_schema.columns WHERE table_schema = database() AND table_name = ?",
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
