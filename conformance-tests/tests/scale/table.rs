//! A table of many sessions, filled by the server itself.

use std::time::{Duration, SystemTime};

use db_backends::postgres::PostgresPersistence;
use db_backends::sqlx::{AssertSqlSafe, Connection as _, PgConnection, query_scalar, raw_sql};
use session_core::{Persistence as _, StoredKey, Timestamp};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Returns the number in the environment, or `default`.
pub(crate) fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("it is a number"))
}

/// Returns the key of the session with this number.
pub(crate) fn key(number: u64) -> StoredKey {
    StoredKey::parse(&format!("{:0>43}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).unwrap()
}

/// The SQL of [`key`]. Numeric, because the product is above 64 bits.
const KEY: &str = "lpad(((n::numeric * 11400714819323198485) % 18446744073709551616)::text, 43, '0')";

/// A table in Postgres, which is dropped at the end.
pub(crate) struct Table {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Table {
    pub(crate) fn new() -> Self {
        let url = std::env::var("CONFORMANCE_POSTGRES_URL").expect("CONFORMANCE_POSTGRES_URL names a server");
        Self { url, name: format!("scale_{:016x}", fastrand::u64(..)) }
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// Runs statements, in which `{t}` is the table.
    pub(crate) async fn run(&self, sql: &str) {
        let sql = sql.replace("{t}", &self.name);
        raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection().await).await.unwrap();
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = sql.replace("{t}", &self.name);
        query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.connection().await).await.unwrap()
    }

    pub(crate) async fn open(&self) -> PostgresPersistence {
        PostgresPersistence::builder().table(&*self.name).max_connections(8).connect(&self.url).await.unwrap()
    }

    pub(crate) async fn migrated(&self) -> PostgresPersistence {
        let db = self.open().await;
        db.migrate().await.unwrap();
        db
    }

    /// Adds `rows` sessions with the expiry that this SQL makes of `n`, in no order.
    pub(crate) async fn fill(&self, rows: u64, payload_bytes: usize, expires_at: &str, subject: &str) {
        let columns = self
            .number(
                "SELECT count(*) FROM pg_attribute WHERE attrelid = '{t}'::regclass AND attname = 'reap_at'",
            )
            .await;
        let (column, value) = if columns > 0 { (", reap_at", expires_at) } else { ("", "") };
        let value = if value.is_empty() { String::new() } else { format!(", {value}") };
        let now = now().as_micros();
        self.run(&format!(
            "INSERT INTO {{t}} (key, payload, created_at, expires_at, last_seen_at, version, subject{column})
             SELECT {KEY}, decode(repeat('ab', {payload_bytes}), 'hex'), {now}, {expires_at}, {now}, n, {subject}{value}
             FROM generate_series(1, {rows}) n"
        ))
        .await;
    }

    pub(crate) async fn drop(self) {
        self.run("DROP TABLE {t}; DROP TABLE {t}_schema").await;
    }
}

/// Returns the quantile of `times`.
pub(crate) fn quantile(times: &mut [Duration], quantile: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let place = (last as f64 * quantile).round() as usize;
    times.get(place).copied().unwrap_or_default()
}
