//! The tables in MySQL and MariaDB: made, described and migrated.

use std::time::Duration;

use session_core::PersistenceError;
use sqlx::{AssertSqlSafe, MySql, MySqlConnection, Row as _, SqlStr, query, query_as, query_scalar, raw_sql};

use super::error::ERRORS;
use crate::sql::columns::Kind;
use crate::sql::schema::{
    self, Change, FoundColumn, Migrated, MigratesElsewhere, Schema, SchemaCheck, make_changes,
};
use crate::sql::table::TableName;

/// The number of times to ask for the lock that another node has, each time for a second: less than
/// `max_statement_time`.
const ATTEMPTS: u32 = 600;

/// The time between two attempts to change a table that is in use.
const PAUSE: Duration = Duration::from_millis(500);

/// Returns `true` if the server is a node of a Galera cluster.
async fn is_galera(connection: &mut MySqlConnection) -> sqlx::Result<bool> {
    let wsrep = "SHOW GLOBAL VARIABLES WHERE Variable_name = 'wsrep_on'";
    let wsrep = raw_sql(wsrep).fetch_optional(connection).await?;
    Ok(match wsrep {
        Some(row) => row.try_get_unchecked::<String, _>(1)?.eq_ignore_ascii_case("on"),
        None => false,
    })
}

/// Migrates without a lock: those of `get_lock` are on one node only, and some clusters refuse it. The steps can
/// be repeated, and the cluster makes tables on all nodes in one order.
async fn migrate_on_galera(connection: &mut MySqlConnection, table: &TableName) -> Migrated {
    let mut attempts = 0;
    loop {
        match make_changes::<MySql>(connection, table).await {
            // Another node made the same step.
            Err(error) if ERRORS.is_undone(&error) && attempts < ATTEMPTS => attempts += 1,
            migrated => return Ok(migrated?.map_err(Into::into)),
        }
    }
}

impl Schema for MySql {
    /// Binary columns, so that no collation has a say. The version of a row is the bit pattern of 64 random
    /// bits; instants are microseconds since 1970 in UTC. InnoDB adds the primary key to the index of subjects.
    ///
    /// There are no transactions for this: the schema table comes first and its row last, so that a session
    /// table is never seen without it, and one whose migration was cut off has no version.
    ///
    /// An index is made and dropped in place, while others write; a column with a default is added at once. Each of
    /// them waits for the table's metadata lock, no longer than `lock_wait_timeout`.
    const CHANGES: &'static [Change] = &[
        Change::Run(
            "CREATE TABLE IF NOT EXISTS `{table}_schema` (version INT NOT NULL PRIMARY KEY) ENGINE = InnoDB",
        ),
        Change::Run(
            "CREATE TABLE IF NOT EXISTS `{table}` (
    `key` VARBINARY(64) NOT NULL PRIMARY KEY,
    payload LONGBLOB NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    version BIGINT NOT NULL,
    subject VARBINARY(255),
    reap_at BIGINT NOT NULL DEFAULT 0,
    KEY `{table}_reap_at` (reap_at),
    KEY `{table}_subject` (subject)
) ENGINE = InnoDB",
        ),
        Change::Column {
            name: "reap_at",
            sql: "ALTER TABLE `{table}` ADD COLUMN reap_at BIGINT NOT NULL DEFAULT 0",
        },
        Change::LaterIndex {
            name: "{table}_reap_at",
            sql: "ALTER TABLE `{table}` ADD KEY `{table}_reap_at` (reap_at), ALGORITHM = INPLACE, LOCK = NONE",
        },
        Change::OldIndex {
            name: "{table}_expires_at",
            sql: "ALTER TABLE `{table}` DROP KEY `{table}_expires_at`, ALGORITHM = INPLACE, LOCK = NONE",
        },
    ];

    const RECORD: &'static str = "INSERT IGNORE INTO `{table}_schema` (version) VALUES (1), (-2)";

    const ROTATIONS: &'static [&'static str] = &["CREATE TABLE IF NOT EXISTS `{table}_rotations` (
    old_key VARBINARY(64) NOT NULL,
    new_key VARBINARY(64) NOT NULL,
    masked_key LONGBLOB NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (old_key, new_key),
    KEY `{table}_rotations_end` (expires_at)
) ENGINE = InnoDB"];

    fn type_of(kind: Kind) -> &'static str {
        match kind {
            Kind::Text => "varbinary",
            Kind::Bytes => "longblob",
            Kind::Integer => "bigint",
        }
    }

    async fn columns(connection: &mut MySqlConnection, table: &str) -> sqlx::Result<Vec<FoundColumn>> {
        let columns = query_as::<_, (String, String, bool, bool)>(
            "SELECT CAST(column_name AS CHAR), CAST(data_type AS CHAR), is_nullable = 'YES', column_key = 'PRI'
             FROM information_schema.columns WHERE table_schema = database() AND table_name = ?",
        );
        let columns = columns.bind(table).fetch_all(connection).await?;
        Ok(columns.into_iter().map(FoundColumn::from).collect())
    }

    async fn indexes(connection: &mut MySqlConnection, table: &TableName) -> sqlx::Result<Vec<String>> {
        let indexes = query_scalar(
            "SELECT DISTINCT CAST(index_name AS CHAR) FROM information_schema.statistics
             WHERE table_schema = database() AND table_name = ?",
        );
        indexes.bind(table.as_str()).fetch_all(connection).await
    }

    async fn versions(connection: &mut MySqlConnection, table: &TableName) -> sqlx::Result<Vec<i64>> {
        let versions = table.sql("SELECT CAST(version AS SIGNED) FROM `{table}_schema`");
        query_scalar(versions).fetch_all(connection).await
    }

    /// Looks again if another node of a Galera cluster makes the tables at this moment, which undoes what reads them.
    async fn check(connection: &mut MySqlConnection, table: &TableName) -> sqlx::Result<SchemaCheck> {
        let mut attempts = 0;
        loop {
            match schema::check::<Self>(connection, table).await {
                Err(error) if ERRORS.is_undone(&error) && attempts < ATTEMPTS => attempts += 1,
                checked => return checked,
            }
        }
    }

    /// Tries again while a transaction of another client keeps the table from being changed: meanwhile, the writes of
    /// all others would wait as well.
    async fn run(connection: &mut MySqlConnection, sql: SqlStr) -> sqlx::Result<()> {
        // MariaDB alone reads what is in /*M! */. Making an index can take longer than a session's statement may.
        let sql = format!("/*M!100101 SET STATEMENT max_statement_time = 0 FOR */ {}", sql.as_str());
        let mut attempts = 0;
        loop {
            // Safe, because it is text of this crate and the name of the table.
            match raw_sql(AssertSqlSafe(sql.clone())).execute(&mut *connection).await {
                Err(error) if ERRORS.is_busy(&error) && attempts < ATTEMPTS => attempts += 1,
                done => return done.map(|_| ()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn migrate(connection: &mut MySqlConnection, table: &TableName) -> Migrated {
        if is_galera(connection).await? {
            return migrate_on_galera(connection, table).await;
        }
        // Several nodes may be here. The lock goes with the connection, if not before.
        let lock = format!("sessions/{}", table.as_str());
        for _ in 0..ATTEMPTS {
            let get_lock = query_scalar::<_, bool>("SELECT get_lock(?, 1)").bind(&lock);
            if get_lock.fetch_one(&mut *connection).await? {
                let migrated = make_changes::<Self>(connection, table).await;
                query("DO release_lock(?)").bind(&lock).execute(connection).await?;
                return Ok(migrated?.map_err(Into::into));
            }
        }
        Ok(Err(PersistenceError::Busy(Box::new(MigratesElsewhere))))
    }
}
