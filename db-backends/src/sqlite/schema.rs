//! SQLite's tables: made, described and migrated.

use sqlx::{Connection as _, SqlStr, Sqlite, SqliteConnection, query, query_as, query_scalar};

use crate::sql::columns::Kind;
use crate::sql::schema::{Change, FoundColumn, Migrated, Schema, make_changes};
use crate::sql::table::TableName;

impl Schema for Sqlite {
    /// A table with a rowid, because a row of 1 KB would not fit into a page of a `WITHOUT ROWID` table's
    /// B-tree, and each would take another page. The version of a row is the bit pattern of 64 random bits;
    /// instants are microseconds since 1970 in UTC.
    const CHANGES: &'static [Change] = &[
        Change::Run(
            r#"CREATE TABLE IF NOT EXISTS "{table}_schema" (version INTEGER NOT NULL PRIMARY KEY) STRICT"#,
        ),
        Change::Run(
            r#"CREATE TABLE IF NOT EXISTS "{table}" (
    key TEXT NOT NULL COLLATE BINARY PRIMARY KEY,
    payload BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    last_seen_at INTEGER NOT NULL,
    version INTEGER NOT NULL,
    subject TEXT COLLATE BINARY,
    reap_at INTEGER NOT NULL DEFAULT 0
) STRICT"#,
        ),
        Change::Column {
            name: "reap_at",
            sql: r#"ALTER TABLE "{table}" ADD COLUMN reap_at INTEGER NOT NULL DEFAULT 0"#,
        },
        Change::Index {
            name: "{table}_reap_at",
            sql: r#"CREATE INDEX IF NOT EXISTS "{table}_reap_at" ON "{table}" (reap_at)"#,
        },
        Change::Index {
            name: "{table}_subject_key",
            sql: r#"CREATE INDEX IF NOT EXISTS "{table}_subject_key" ON "{table}" (subject, key) WHERE subject IS NOT NULL"#,
        },
        Change::OldIndex { name: "{table}_expires_at", sql: r#"DROP INDEX "{table}_expires_at""# },
        Change::OldIndex { name: "{table}_subject", sql: r#"DROP INDEX "{table}_subject""# },
    ];

    const RECORD: &'static str = r#"INSERT OR IGNORE INTO "{table}_schema" (version) VALUES (1), (-2)"#;

    const ROTATIONS: &'static [&'static str] = &[
        r#"CREATE TABLE IF NOT EXISTS "{table}_rotations" (
    old_key TEXT NOT NULL COLLATE BINARY,
    new_key TEXT NOT NULL COLLATE BINARY,
    masked_key BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (old_key, new_key)
) STRICT"#,
        r#"CREATE INDEX IF NOT EXISTS "{table}_rotations_end" ON "{table}_rotations" (expires_at)"#,
    ];

    fn type_of(kind: Kind) -> &'static str {
        match kind {
            Kind::Text => "TEXT",
            Kind::Bytes => "BLOB",
            Kind::Integer => "INTEGER",
        }
    }

    async fn columns(connection: &mut SqliteConnection, table: &str) -> sqlx::Result<Vec<FoundColumn>> {
        let columns = query_as::<_, (String, String, bool, bool)>(
            r#"SELECT name, type, "notnull" = 0, pk > 0 FROM pragma_table_info(?1)"#,
        );
        let columns = columns.bind(table).fetch_all(connection).await?;
        Ok(columns.into_iter().map(FoundColumn::from).collect())
    }

    async fn indexes(connection: &mut SqliteConnection, table: &TableName) -> sqlx::Result<Vec<String>> {
        let indexes = query_scalar("SELECT name FROM pragma_index_list(?1)");
        indexes.bind(table.as_str()).fetch_all(connection).await
    }

    async fn versions(connection: &mut SqliteConnection, table: &TableName) -> sqlx::Result<Vec<i64>> {
        query_scalar(table.sql(r#"SELECT version FROM "{table}_schema""#)).fetch_all(connection).await
    }

    async fn run(connection: &mut SqliteConnection, sql: SqlStr) -> sqlx::Result<()> {
        query(sql).execute(connection).await.map(|_| ())
    }

    /// In one transaction, in which SQLite lets no other program write. Making an index of a million rows takes seconds.
    async fn migrate(connection: &mut SqliteConnection, table: &TableName) -> Migrated {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let migrated = make_changes::<Self>(&mut transaction, table).await?;
        if migrated.is_ok() {
            transaction.commit().await?;
        }
        Ok(migrated.map_err(Into::into))
    }
}
