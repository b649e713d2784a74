//! The pages that the database reads for an operation.

use db_backends::sqlx::{AssertSqlSafe, Row as _, query, query_scalar, raw_sql};
use session_cached_db::db_backends;

use crate::database::{Raw, Table, key};

/// Pages, counted or for each operation.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pages {
    /// The pages that were looked at, where the database counts them.
    pub(crate) touched: Option<f64>,
    /// Those of them that were not in the database's own memory. The system may still have had them in its.
    pub(crate) read: f64,
}

/// The size of SQLite's pages.
const PAGE: f64 = 4096.0;

/// Returns the pages so far. Postgres counts for each statement instead: see [`explained`].
pub(crate) async fn count(table: &Table) -> Pages {
    match &table.raw {
        Raw::Postgres(_) => Pages::default(),
        Raw::MySql(pool) => {
            let mut pages = Pages { touched: Some(0.0), read: 0.0 };
            let status = "SHOW GLOBAL STATUS WHERE Variable_name IN
                          ('Innodb_buffer_pool_read_requests', 'Innodb_buffer_pool_reads')";
            for row in raw_sql(status).fetch_all(pool).await.unwrap() {
                let value: f64 = row.try_get_unchecked::<String, _>(1).unwrap().parse().unwrap();
                match row.try_get_unchecked::<String, _>(0).unwrap().as_str() {
                    "Innodb_buffer_pool_reads" => pages.read = value,
                    _ => pages.touched = Some(value),
                }
            }
            pages
        }
        // SQLite reads in this process, a page at a time. Sockets do not count here.
        Raw::Sqlite(_) => {
            let io = std::fs::read_to_string("/proc/self/io").unwrap();
            let bytes = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
            Pages { touched: None, read: bytes.parse::<f64>().unwrap() / PAGE }
        }
    }
}

impl Pages {
    /// Returns the pages of each of `operations` since `before`.
    pub(crate) fn since(self, before: Self, operations: usize) -> Self {
        let each = |now: f64, before: f64| (now - before) / operations.max(1) as f64;
        let touched = self.touched.zip(before.touched).map(|(now, before)| each(now, before));
        Self { touched, read: each(self.read, before.read) }
    }
}

/// The number of statements of which Postgres counts the pages.
const EXPLAINED: u64 = 50;

/// Returns the pages of the statement that Postgres runs for an operation, counted with other sessions than those that are
/// measured. Writes are rolled back. `None` for other databases, and operations without a statement.
pub(crate) async fn explained(table: &Table, operation: &str, sessions: u64) -> Option<Pages> {
    let Raw::Postgres(pool) = &table.raw else { return None };
    let sql = match operation {
        "cold load" => "SELECT * FROM {t} WHERE key = '{k}' AND expires_at > 0",
        "save" => {
            "UPDATE {t} SET payload = payload || '', last_seen_at = last_seen_at + 1, version = version + 1,
             subject = subject, expires_at = greatest(1, expires_at)
             WHERE key = '{k}' AND expires_at > 0 AND version = coalesce(NULL, version)"
        }
        "touch" => {
            "UPDATE {t} SET expires_at = greatest(1, expires_at), last_seen_at = greatest(1, last_seen_at)
             WHERE key = '{k}' AND expires_at > 0"
        }
        "create" => {
            "INSERT INTO {t} SELECT 'x{k}', payload, created_at, expires_at, last_seen_at, version, subject, reap_at
             FROM {t} WHERE key = '{k}'"
        }
        "delete" => "DELETE FROM {t} WHERE key = '{k}'",
        "list" => {
            "SELECT key, created_at, expires_at, last_seen_at FROM {t}
             WHERE subject = 'user-{s}' AND expires_at > 0 AND key >= '' ORDER BY key LIMIT 1000"
        }
        _ => return None,
    };
    let (mut hit, mut read) = (0.0, 0.0);
    let mut connection = pool.acquire().await.unwrap();
    for _ in 0..EXPLAINED {
        let number = fastrand::u64(1..=sessions);
        let sql = sql.replace("{t}", &table.name).replace("{k}", key(number).as_str());
        let sql = sql.replace("{s}", &(number % (sessions / 10)).to_string());
        query("BEGIN").execute(&mut *connection).await.unwrap();
        let explain = AssertSqlSafe(format!("EXPLAIN (ANALYZE, BUFFERS) {sql}"));
        let plan: Vec<String> = query_scalar(explain).fetch_all(&mut *connection).await.unwrap();
        query("ROLLBACK").execute(&mut *connection).await.unwrap();
        // The first such line is of the whole statement.
        let buffers = plan.iter().find(|line| line.contains("Buffers: ")).cloned().unwrap_or_default();
        for (name, sum) in [("hit=", &mut hit), ("read=", &mut read)] {
            let number = buffers.split(name).nth(1).and_then(|rest| rest.split(' ').next());
            *sum += number.and_then(|number| number.parse::<f64>().ok()).unwrap_or_default();
        }
    }
    let each = |sum: f64| sum / EXPLAINED as f64;
    Some(Pages { touched: Some(each(hit + read)), read: each(read) })
}
