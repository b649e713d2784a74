//! Postgres' tables: made, described and migrated.

use sqlx::{Connection as _, PgConnection, Postgres, SqlStr, query, query_as, query_scalar};

use crate::sql::columns::Kind;
use crate::sql::schema::{self, FoundColumn, Migrated, Schema, SchemaCheck, Step};
use crate::sql::table::TableName;

impl Schema for Postgres {
    /// Text in the collation `C` is compared byte by byte. The version of a row is the bit pattern of 64
    /// random bits; instants are microseconds since 1970 in UTC.
    const STEPS: &'static [Step] = &[&[
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

    const ROTATIONS: Step = &[
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

    async fn last_step(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Option<i64>> {
        let last = table.sql(r#"SELECT max(version)::bigint FROM "{table}_schema""#);
        query_scalar(last).persistent(false).fetch_one(connection).await
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

    async fn migrate(connection: &mut PgConnection, table: &TableName) -> Migrated {
        // Making an index can take longer than a session's statement may.
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 60000";
        let mut transaction = connection.begin_with(begin).await?;
        let migrated = run_steps(&mut transaction, table).await;
        // At once, also after an error: a dropped transaction would keep a pooler's connection until the next use.
        match migrated {
            Ok(Ok(())) => transaction.commit().await?,
            _ => transaction.rollback().await?,
        }
        Ok(migrated?.map_err(Into::into))
    }
}

/// Makes the steps that are left to make, within a transaction.
async fn run_steps(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<SchemaCheck> {
    // Several nodes may be here. The lock goes with the transaction.
    query("SELECT pg_advisory_xact_lock(hashtext($1))")
        .bind(table.schema_table())
        .persistent(false)
        .execute(&mut *connection)
        .await?;
    schema::run_steps::<Postgres>(connection, table).await
}
