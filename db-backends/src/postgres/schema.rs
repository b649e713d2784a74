//! Postgres' tables: made, described and migrated.

use std::time::Duration;

use session_core::{PersistenceError, SchemaProblem};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Postgres, SqlStr, query, query_as,
    query_scalar, raw_sql,
};

use super::error::ERRORS;
use crate::sql::columns::Kind;
use crate::sql::schema::{self, Change, FoundColumn, Migrated, MigratesElsewhere, Schema, SchemaCheck};
use crate::sql::table::TableName;

impl Schema for Postgres {
    /// Text in the collation `C` is compared byte by byte. The version of a row is the bit pattern of 64
    /// random bits; instants are microseconds since 1970 in UTC.
    ///
    /// A page keeps room for the next version of a row (`fillfactor`), so that an update that changes no index
    /// stays on the page (HOT), and the old version is removed without a vacuum. The table is vacuumed and
    /// analyzed when 2 % of it have changed, not 20 %: a table of millions would collect dead rows for days.
    const CHANGES: &'static [Change] = &[
        Change::Run(r#"CREATE TABLE IF NOT EXISTS "{table}_schema" (version INTEGER NOT NULL PRIMARY KEY)"#),
        Change::Run(
            r#"CREATE TABLE IF NOT EXISTS "{table}" (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    payload BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    version BIGINT NOT NULL,
    subject TEXT COLLATE "C",
    reap_at BIGINT NOT NULL DEFAULT 0
)"#,
        ),
        Change::Column {
            name: "reap_at",
            sql: r#"ALTER TABLE "{table}" ADD COLUMN reap_at BIGINT NOT NULL DEFAULT 0"#,
        },
        Change::Run(
            r#"ALTER TABLE "{table}" SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02)"#,
        ),
        Change::Index {
            name: "{table}_reap_at",
            sql: r#"CREATE INDEX IF NOT EXISTS "{table}_reap_at" ON "{table}" (reap_at)"#,
        },
        Change::Index {
            name: "{table}_subject_key",
            sql: r#"CREATE INDEX IF NOT EXISTS "{table}_subject_key" ON "{table}" (subject, key) WHERE subject IS NOT NULL"#,
        },
        Change::OldIndex { name: "{table}_expires_at", sql: r#"DROP INDEX IF EXISTS "{table}_expires_at""# },
        Change::OldIndex { name: "{table}_subject", sql: r#"DROP INDEX IF EXISTS "{table}_subject""# },
    ];

    const RECORD: &'static str =
        r#"INSERT INTO "{table}_schema" (version) VALUES (1), (-2) ON CONFLICT DO NOTHING"#;

    const ROTATIONS: &'static [&'static str] = &[
        r#"CREATE TABLE IF NOT EXISTS "{table}_rotations" (
    old_key TEXT COLLATE "C" NOT NULL,
    new_key TEXT COLLATE "C" NOT NULL,
    masked_key BYTEA NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (old_key, new_key)
)"#,
        r#"CREATE INDEX IF NOT EXISTS "{table}_rotations_end" ON "{table}_rotations" (expires_at)"#,
    ];

    fn type_of(kind: Kind) -> &'static str {
        match kind {
            Kind::Text => "text",
            Kind::Bytes => "bytea",
            Kind::Integer => "bigint",
        }
    }

    /// Describes the table that statements mean by this name.
    async fn columns(connection: &mut PgConnection, table: &str) -> sqlx::Result<Vec<FoundColumn>> {
        let columns = query_as::<_, (String, String, bool, bool)>(
            "SELECT attname::text, format_type(atttypid, NULL), NOT attnotnull, EXISTS (
                 SELECT FROM pg_index WHERE indrelid = attrelid AND indisprimary AND attnum = ANY (indkey))
             FROM pg_attribute
             WHERE attrelid = to_regclass(quote_ident($1)) AND attnum > 0 AND NOT attisdropped",
        );
        let columns = columns.bind(table).persistent(false).fetch_all(connection).await?;
        Ok(columns.into_iter().map(FoundColumn::from).collect())
    }

    async fn indexes(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Vec<String>> {
        Ok(indexes(connection, table).await?.into_iter().map(|(name, _)| name).collect())
    }

    async fn versions(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Vec<i64>> {
        let versions = table.sql(r#"SELECT version::bigint FROM "{table}_schema""#);
        query_scalar(versions).persistent(false).fetch_all(connection).await
    }

    /// In a transaction, because a pooler may run each statement outside of one on another connection.
    async fn check(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<SchemaCheck> {
        let mut transaction = connection.begin().await?;
        let checked = schema::check::<Self>(&mut transaction, table).await;
        transaction.rollback().await?;
        checked
    }

    async fn run(connection: &mut PgConnection, sql: SqlStr) -> sqlx::Result<()> {
        query(sql).persistent(false).execute(connection).await.map(|_| ())
    }

    /// A table that is not there is made in one transaction. One of an older version may have millions of rows and
    /// be in use: its columns are added in a transaction that gives way to others, and its indexes are made without
    /// keeping others from writing.
    async fn migrate(connection: &mut PgConnection, table: &TableName) -> Migrated {
        match make_tables(connection, table).await? {
            Ok(Progress::Done) => return Ok(Ok(())),
            Ok(Progress::LacksIndexes) => {}
            Err(error) => return Ok(Err(error)),
        }
        let Some(turn) = Turn::begin(connection, table).await? else {
            return Ok(Err(PersistenceError::Busy(Box::new(MigratesElsewhere))));
        };
        let made = make_indexes(connection, table, &turn).await;
        turn.end(connection).await?;
        if !made? {
            return Ok(Err(PersistenceError::Busy(Box::new(MigratesElsewhere))));
        }
        Self::run(connection, table.sql(Self::RECORD)).await.map(Ok)
    }
}

/// The number of times to try again while other clients are in the way.
const ATTEMPTS: u32 = 600;

/// The time between two attempts: at least as long as others may have to wait for one.
const PAUSE: Duration = Duration::from_secs(1);

/// Begins a transaction that waits for another node's migration.
const BEGIN: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 60000";

/// Takes the lock that changing the table needs beside others that use it, for which a vacuum gives way after a second.
const LOCK: &str = r#"LOCK TABLE "{table}" IN SHARE UPDATE EXCLUSIVE MODE"#;

/// Adding a column waits until those are done that use the table, and everyone else waits behind it.
const GIVE_WAY: &str = "SET LOCAL lock_timeout = 300";

/// The state of the tables after the first part of a migration.
enum Progress {
    Done,
    LacksIndexes,
}

/// Makes the tables, or adds what an older version lacks, but for indexes.
async fn make_tables(
    connection: &mut PgConnection,
    table: &TableName,
) -> sqlx::Result<Result<Progress, PersistenceError>> {
    let mut attempts = 0;
    loop {
        let mut transaction = connection.begin_with(BEGIN).await?;
        let made = make_tables_once(&mut transaction, table).await;
        // At once, also after an error: a dropped transaction would keep a pooler's connection until the next use.
        match made {
            Ok(Ok(_)) => transaction.commit().await?,
            _ => transaction.rollback().await?,
        }
        match made {
            Err(error) if ERRORS.is_busy(&error) && attempts < ATTEMPTS => attempts += 1,
            made => return Ok(made?.map_err(Into::into)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn make_tables_once(
    connection: &mut PgConnection,
    table: &TableName,
) -> sqlx::Result<Result<Progress, SchemaProblem>> {
    // Several nodes may be here. The lock goes with the transaction.
    query("SELECT pg_advisory_xact_lock(hashtext($1))")
        .bind(table.schema_table())
        .persistent(false)
        .execute(&mut *connection)
        .await?;
    match schema::check::<Postgres>(connection, table).await? {
        Err(SchemaProblem::Outdated { .. }) => {}
        _ => {
            let made = schema::make_changes::<Postgres>(connection, table).await?;
            return Ok(made.map(|()| Progress::Done));
        }
    }
    Postgres::run(connection, table.sql(LOCK)).await?;
    connection.execute(raw_sql(GIVE_WAY)).await?;
    for change in Postgres::CHANGES {
        if matches!(change, Change::Run(_) | Change::Column { .. }) {
            schema::make_change::<Postgres>(connection, table, *change).await?;
        }
    }
    Ok(Ok(Progress::LacksIndexes))
}

/// The right to make indexes, which one node has at a time: two that make indexes of one table at the same time wait
/// for each other, and the server ends one of them.
struct Turn {
    /// The connection is our own, and leads to the server. Over a pooler, neither a lock nor a setting would stay with
    /// it; over an application's pool, there may be a pooler.
    is_own: bool,
}

impl Turn {
    /// Waits for the turn. Returns `None` if another node has it for too long.
    async fn begin(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Option<Self>> {
        let is_own = "SELECT coalesce(current_setting('sessions.connection', true), '') <> ''";
        let is_own: bool = query_scalar(is_own).persistent(false).fetch_one(&mut *connection).await?;
        if !is_own {
            return Ok(Some(Self { is_own }));
        }
        // Asked for again and again: a statement that waits has a snapshot, for whose end the other node would wait.
        let lock = "SELECT pg_try_advisory_lock(hashtext($1))";
        for _ in 0..ATTEMPTS {
            let lock = query_scalar::<_, bool>(lock).bind(table.schema_table()).persistent(false);
            if lock.fetch_one(&mut *connection).await? {
                connection.execute(raw_sql("SET statement_timeout = 0; SET lock_timeout = 0")).await?;
                return Ok(Some(Self { is_own }));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    async fn end(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        if self.is_own {
            let end = "SELECT pg_advisory_unlock_all(); RESET statement_timeout; RESET lock_timeout";
            connection.execute(raw_sql(end)).await?;
        }
        Ok(())
    }
}

/// Makes and drops indexes. Returns `false` if another node is at it for too long.
async fn make_indexes(connection: &mut PgConnection, table: &TableName, turn: &Turn) -> sqlx::Result<bool> {
    for change in Postgres::CHANGES {
        let (Change::Index { name, sql } | Change::OldIndex { name, sql }) = *change else { continue };
        let index = Index {
            name: table.fill(name),
            is_wanted: matches!(change, Change::Index { .. }),
            sql: table.fill(&concurrently(sql)),
        };
        if !index.make(connection, table, turn).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The number of times to wait for another client that may make the same index.
const WAITS: u32 = 60;

struct Index {
    name: String,
    is_wanted: bool,
    /// The statement that makes it, or drops it if it is not wanted.
    sql: String,
}

impl Index {
    /// Makes the index, or drops it. Returns `false` if another node is at it for too long.
    async fn make(
        &self,
        connection: &mut PgConnection,
        table: &TableName,
        turn: &Turn,
    ) -> sqlx::Result<bool> {
        for attempt in 0..ATTEMPTS {
            let indexes = indexes(connection, table).await?;
            let is_valid = indexes.iter().find(|(name, _)| *name == self.name).map(|(_, is_valid)| *is_valid);
            if is_valid == self.is_wanted.then_some(true) {
                return Ok(true);
            }
            // Without a turn, another node may be at it. A vacuum looks the same.
            if !turn.is_own && attempt < WAITS && is_being_changed(connection, table).await? {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // The rest of an attempt that was cut off has to go before the next one.
            let sql = if self.is_wanted && is_valid == Some(false) {
                format!(r#"DROP INDEX CONCURRENTLY IF EXISTS "{}""#, self.name)
            } else {
                self.sql.clone()
            };
            // Safe, because it is text of this crate and the name of the table.
            match connection.execute(raw_sql(AssertSqlSafe(sql))).await {
                // Another node came first, and was at it for longer than one waits.
                Err(error) if ERRORS.is_undone(&error) || ERRORS.is_busy(&error) => {
                    tokio::time::sleep(PAUSE.mul_f64(fastrand::f64())).await;
                }
                done => {
                    done?;
                }
            }
        }
        Ok(false)
    }
}

/// Returns the statement in the form that lets others write meanwhile.
fn concurrently(sql: &str) -> String {
    sql.replacen("INDEX", "INDEX CONCURRENTLY", 1)
}

/// Returns the names of the indexes of the session table, and whether each can be used.
async fn indexes(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Vec<(String, bool)>> {
    let indexes = query_as(
        "SELECT relname::text, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
         WHERE indrelid = to_regclass(quote_ident($1))",
    );
    indexes.bind(table.as_str()).persistent(false).fetch_all(connection).await
}

/// Returns `true` if another client makes or drops an index of the session table, or vacuums it.
async fn is_being_changed(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<bool> {
    let is_being_changed = query_scalar(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = to_regclass(quote_ident($1)) AND granted
             AND mode = 'ShareUpdateExclusiveLock' AND pid <> pg_backend_pid())",
    );
    is_being_changed.bind(table.as_str()).persistent(false).fetch_one(connection).await
}
