//! A table of many sessions, filled by the database itself, in chunks.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use db_backends::sqlx::mysql::MySqlPoolOptions;
use db_backends::sqlx::postgres::PgPoolOptions;
use db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use db_backends::sqlx::{AssertSqlSafe, MySqlPool, PgPool, SqlitePool, query_scalar, raw_sql};
use session_cached_db::db_backends;
use session_cached_db::session_core::{
    Codec as _, DynDatabase, JsonCodec, Persistence as _, SessionData, StoredKey, Timestamp,
};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The number of sessions that one statement adds.
const CHUNK: u64 = 100_000;

/// The distance between the numbers in keys: they are spread over all of ten digits' range.
const STEP: u64 = 977;

/// The name of Postgres with a table that is partitioned by the hash of the key.
pub(crate) const HASHED: &str = "postgres-hash";

/// The number of its partitions.
const PARTITIONS: u32 = 16;

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Returns the key of the session with this number.
pub(crate) fn key(number: u64) -> StoredKey {
    StoredKey::parse(&format!("{:012}{}", number * STEP, "k".repeat(31))).unwrap()
}

/// Returns a payload of ten keys and about 1 KB.
pub(crate) fn payload(number: u64) -> Vec<u8> {
    let mut data = SessionData::new();
    for field in 0..10 {
        data.insert(&format!("field-{field}"), format!("\"{number:08}{}\"", "x".repeat(80))).unwrap();
    }
    JsonCodec::default().encode(&StoredKey::PROBE, &data).unwrap().to_vec()
}

/// A connection past the store.
#[derive(Clone)]
pub(crate) enum Raw {
    Postgres(PgPool),
    MySql(MySqlPool),
    Sqlite(SqlitePool),
}

/// A table in a database.
pub(crate) struct Table {
    url: String,
    pub(crate) name: String,
    pub(crate) raw: Raw,
}

/// Sessions to add. In the texts of SQL, `n` is the number of the session.
pub(crate) struct Rows<'a> {
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// The key, instead of that of [`key`].
    pub(crate) key_prefix: Option<&'a str>,
    /// The number behind `user-`.
    pub(crate) subject: String,
    pub(crate) expires_at: Timestamp,
}

impl Table {
    /// Connects to `database` and makes the table, unless it is there.
    pub(crate) async fn open(database: &str, name: &str) -> Self {
        let url = url(database, name);
        let raw = match database {
            "postgres" | HASHED => {
                Raw::Postgres(PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap())
            }
            "sqlite" => {
                let options = SqliteConnectOptions::from_str(&url).unwrap().create_if_missing(true);
                // A file that an outage damages is filled again.
                let options = options.pragma("cache_size", "-1000000").pragma("synchronous", "OFF");
                let options = options.busy_timeout(Duration::from_secs(600));
                // The store makes the file, with settings of its own.
                drop(connect(&url, name).await);
                Raw::Sqlite(SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap())
            }
            _ => Raw::MySql(MySqlPoolOptions::new().max_connections(1).connect(&url).await.unwrap()),
        };
        let table = Self { url, name: name.to_owned(), raw };
        let db = table.db().await;
        if database == HASHED && db.check_schema().await.is_err() {
            table.run(&partitioned(&db.schema_sql(), name)).await;
        }
        db.migrate().await.unwrap();
        table
    }

    /// Opens the table as the store does.
    pub(crate) async fn db(&self) -> Arc<dyn DynDatabase> {
        connect(&self.url, &self.name).await
    }

    /// Runs statements, in which `{t}` is the table, and `{key}` the column.
    pub(crate) async fn run(&self, sql: &str) {
        let sql = AssertSqlSafe(self.filled(sql));
        match &self.raw {
            Raw::Postgres(pool) => drop(raw_sql(sql).execute(pool).await.unwrap()),
            Raw::MySql(pool) => drop(raw_sql(sql).execute(pool).await.unwrap()),
            Raw::Sqlite(pool) => drop(raw_sql(sql).execute(pool).await.unwrap()),
        }
    }

    /// Returns the number that a statement selects.
    pub(crate) async fn number(&self, sql: &str) -> u64 {
        let sql = AssertSqlSafe(self.filled(sql));
        let number: i64 = match &self.raw {
            Raw::Postgres(pool) => query_scalar(sql).fetch_one(pool).await.unwrap(),
            Raw::MySql(pool) => query_scalar(sql).fetch_one(pool).await.unwrap(),
            Raw::Sqlite(pool) => query_scalar(sql).fetch_one(pool).await.unwrap(),
        };
        number as u64
    }

    fn filled(&self, sql: &str) -> String {
        let key = if matches!(self.raw, Raw::MySql(_)) { "`key`" } else { "key" };
        sql.replace("{t}", &self.name).replace("{key}", key)
    }

    /// Adds sessions until there are `count`, and removes what a measurement that was cut off has left. `subject` is SQL of `n`.
    ///
    /// The indexes besides that of the keys are made afterwards, by the schema's own statements, where there are such.
    pub(crate) async fn fill(&self, count: u64, subject: &str) {
        self.run("DELETE FROM {t} WHERE {key} >= 'a'").await;
        let indexes = self.indexes().await;
        let mut present = self.last().await;
        if present < count {
            for index in &indexes {
                let name = index.split('"').nth(1).unwrap();
                self.run(&format!("DROP INDEX IF EXISTS \"{name}\"")).await;
            }
        }
        let (start, already) = (Instant::now(), present);
        while present < count {
            let chunk = CHUNK.min(count - present);
            let subject = subject.to_owned();
            let expires_at = now() + 14 * DAY;
            self.add(&Rows { first: present + 1, count: chunk, key_prefix: None, subject, expires_at }).await;
            present += chunk;
            let per_second = (present - already) as f64 / start.elapsed().as_secs_f64();
            eprintln!("{}: {present} of {count} sessions, {per_second:.0} in a second", self.name);
        }
        // Also if the table is full: an earlier run may have been cut off before this.
        if matches!(self.raw, Raw::Postgres(_)) {
            self.run("SET maintenance_work_mem = '512MB'").await;
        }
        for index in &indexes {
            self.run(index).await;
        }
        match self.raw {
            Raw::Postgres(_) => {
                self.run("VACUUM ANALYZE {t}").await;
                self.run("CHECKPOINT").await;
            }
            Raw::MySql(_) => self.run("ANALYZE TABLE {t}").await,
            Raw::Sqlite(_) => self.run("PRAGMA wal_checkpoint(TRUNCATE)").await,
        }
        eprintln!("{}: full and indexed after {:.0?}", self.name, start.elapsed());
    }

    /// Returns those statements of the schema that make an index beside the table. MySQL has none.
    async fn indexes(&self) -> Vec<String> {
        let schema = self.db().await.schema_sql();
        let statements = schema.split_terminator(";\n").filter(|sql| sql.starts_with("CREATE INDEX "));
        statements.map(str::to_owned).collect()
    }

    /// Returns the number of the last session, which is their count: they are added in order. Counting the rows of a large
    /// table takes minutes.
    async fn last(&self) -> u64 {
        let integer = if matches!(self.raw, Raw::MySql(_)) { "SIGNED" } else { "BIGINT" };
        let last = format!("SELECT coalesce(CAST(substr(max({{key}}), 1, 12) AS {integer}), 0) FROM {{t}}");
        self.number(&last).await / STEP
    }

    pub(crate) async fn add(&self, rows: &Rows<'_>) {
        let Rows { first, count, key_prefix, subject, expires_at } = rows;
        let (last, now, expires_at) = (first + count - 1, now().as_micros(), expires_at.as_micros());
        let hex: String = payload(0).iter().map(|byte| format!("{byte:02x}")).collect();
        let (prefix, tail) = (key_prefix.unwrap_or_default(), "k".repeat(31));
        let (with, from) = match self.raw {
            Raw::Postgres(_) => (String::new(), format!("generate_series({first}, {last}) AS series(n)")),
            _ => (
                format!(
                    "WITH RECURSIVE series(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM series WHERE n < {last})"
                ),
                "series".to_owned(),
            ),
        };
        let (key, payload, subject) = match self.raw {
            Raw::Postgres(_) => (
                format!("'{prefix}' || lpad((n::bigint * {STEP})::text, 12, '0') || '{tail}'"),
                format!(r"'\x{hex}'::bytea"),
                format!("'user-' || ({subject})"),
            ),
            Raw::MySql(_) => (
                format!("concat('{prefix}', lpad(n * {STEP}, 12, '0'), '{tail}')"),
                format!("x'{hex}'"),
                format!("concat('user-', {subject})"),
            ),
            Raw::Sqlite(_) => (
                format!("'{prefix}' || printf('%012d', n * {STEP}) || '{tail}'"),
                format!("x'{hex}'"),
                format!("'user-' || ({subject})"),
            ),
        };
        let columns = "{key}, payload, created_at, expires_at, last_seen_at, version, subject, reap_at";
        let select = format!(
            "SELECT {key}, {payload}, {now}, {expires_at} + n, {now}, n, {subject}, {expires_at} + n FROM {from}"
        );
        match self.raw {
            Raw::MySql(_) => {
                let sql = format!(
                    "SET SESSION cte_max_recursion_depth = {CHUNK}; INSERT INTO {{t}} ({columns}) {with} {select}"
                );
                self.run(&sql).await;
            }
            _ => self.run(&format!("{with} INSERT INTO {{t}} ({columns}) {select}")).await,
        }
    }

    /// Returns the sizes of the table and of its indexes, in bytes; of the whole file for SQLite.
    pub(crate) async fn sizes(&self) -> (u64, u64) {
        match self.raw {
            Raw::Postgres(_) => (
                self.number(&of_partitions("pg_table_size")).await,
                self.number(&of_partitions("pg_indexes_size")).await,
            ),
            Raw::MySql(_) => {
                let size = |column| {
                    format!(
                        "SELECT CAST({column} AS SIGNED) FROM information_schema.tables
                         WHERE table_schema = database() AND table_name = '{{t}}'"
                    )
                };
                (self.number(&size("data_length")).await, self.number(&size("index_length")).await)
            }
            Raw::Sqlite(_) => {
                let pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
                (self.number(pages).await, 0)
            }
        }
    }
}

/// Returns the statements of a schema with a table in [`PARTITIONS`] by the hash of the key.
fn partitioned(schema: &str, table: &str) -> String {
    let make = format!("CREATE TABLE IF NOT EXISTS \"{table}\" (");
    let alter = format!("ALTER TABLE \"{table}\" ");
    let mut sql = String::new();
    for statement in schema.split_terminator(";\n") {
        if let Some(settings) = statement.strip_prefix(&alter) {
            // Each partition has the settings that a whole table would have.
            for number in 0..PARTITIONS {
                sql += &format!("ALTER TABLE \"{table}_{number}\" {settings};\n");
            }
            continue;
        }
        sql += statement;
        if statement.starts_with(&make) {
            sql += " PARTITION BY HASH (key);\n";
            for number in 0..PARTITIONS {
                sql += &format!(
                    "CREATE TABLE \"{table}_{number}\" PARTITION OF \"{table}\"
                     FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
                );
                sql += ";\n";
            }
        } else {
            sql += ";\n";
        }
    }
    sql
}

/// Returns SQL for the sum of a size over the partitions of a table, or for the table that has none.
fn of_partitions(size: &str) -> String {
    format!(
        "SELECT coalesce(sum({size}(relid)), {size}('{{t}}'))::bigint FROM pg_partition_tree('{{t}}') WHERE isleaf"
    )
}

async fn connect(url: &str, table: &str) -> Arc<dyn DynDatabase> {
    let separator = if url.contains('?') { '&' } else { '?' };
    db_backends::connect(&format!("{url}{separator}table={table}")).await.unwrap()
}

/// Returns the URL of a database: from its variable, or of a file for each table.
fn url(database: &str, table: &str) -> String {
    if database == "sqlite" {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench");
        std::fs::create_dir_all(directory).unwrap();
        return format!("sqlite://{directory}/{table}.db");
    }
    variable(database.trim_end_matches("-hash"))
}

/// Returns the URL of a server.
pub(crate) fn variable(server: &str) -> String {
    let variable = format!("CONFORMANCE_{}_URL", server.to_uppercase());
    std::env::var(&variable).unwrap_or_else(|_| panic!("{variable} names no server"))
}
