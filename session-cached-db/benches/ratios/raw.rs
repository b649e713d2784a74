//! The statements that every session store makes, straight through the driver.

use db_backends::sqlx::pool::PoolConnection;
use db_backends::sqlx::{self, MySql, Pool, Postgres, Sqlite};
use session_cached_db::session_core::{StoredKey, Timestamp};

/// A bare database: a pool, and the table that the store uses.
pub(crate) trait Raw: Clone + Send + Sync + 'static {
    /// A connection of the pool. When it is returned, the pool makes a round trip with it, which would
    /// disturb the next measurement.
    type Connection: Send;

    fn reading(&self) -> impl Future<Output = Self::Connection> + Send;

    fn writing(&self) -> impl Future<Output = Self::Connection> + Send;

    /// Reads all columns of a session, and returns its payload.
    fn select(connection: &mut Self::Connection, key: &StoredKey) -> impl Future<Output = Vec<u8>> + Send;

    /// Writes the columns that every store with a sliding expiry and versions has to write.
    fn update(
        connection: &mut Self::Connection,
        key: &StoredKey,
        payload: &[u8],
    ) -> impl Future<Output = ()> + Send;
}

/// The pools of a database: SQLite has one writer at a time, and a pool of more would only make them wait for locks.
#[derive(Clone)]
pub(crate) struct Pools<P> {
    pub(crate) reading: P,
    pub(crate) writing: P,
}

type Row = (Vec<u8>, i64, i64, i64, i64, Option<Vec<u8>>);
type TextRow = (Vec<u8>, i64, i64, i64, i64, Option<String>);

macro_rules! raw {
    ($database:ty, $row:ty, $bind_key:expr, $select:literal, $update:literal) => {
        impl Raw for Pools<Pool<$database>> {
            type Connection = PoolConnection<$database>;

            async fn reading(&self) -> Self::Connection {
                self.reading.acquire().await.unwrap()
            }

            async fn writing(&self) -> Self::Connection {
                self.writing.acquire().await.unwrap()
            }

            async fn select(connection: &mut Self::Connection, key: &StoredKey) -> Vec<u8> {
                let row: $row =
                    sqlx::query_as($select).bind($bind_key(key)).fetch_one(&mut **connection).await.unwrap();
                row.0
            }

            async fn update(connection: &mut Self::Connection, key: &StoredKey, payload: &[u8]) {
                let now = Timestamp::from(std::time::SystemTime::now()).as_micros();
                let updated = sqlx::query($update)
                    .bind(payload)
                    .bind(now)
                    .bind(fastrand::i64(..))
                    .bind(now + 14 * 86_400_000_000)
                    .bind($bind_key(key))
                    .bind(now)
                    .execute(&mut **connection)
                    .await
                    .unwrap();
                assert_eq!(updated.rows_affected(), 1);
            }
        }
    };
}

raw!(
    Sqlite,
    TextRow,
    StoredKey::as_str,
    "SELECT payload, created_at, expires_at, last_seen_at, version, subject FROM bench_sessions WHERE key = ?",
    "UPDATE bench_sessions SET payload = ?, last_seen_at = ?, version = ?, expires_at = max(expires_at, ?)
     WHERE key = ? AND expires_at > ?"
);
raw!(
    Postgres,
    TextRow,
    StoredKey::as_str,
    "SELECT payload, created_at, expires_at, last_seen_at, version, subject FROM bench_sessions WHERE key = $1",
    "UPDATE bench_sessions SET payload = $1, last_seen_at = $2, version = $3, expires_at = greatest(expires_at, $4)
     WHERE key = $5 AND expires_at > $6"
);
raw!(
    MySql,
    Row,
    StoredKey::as_bytes,
    "SELECT payload, created_at, expires_at, last_seen_at, version, subject FROM bench_sessions WHERE `key` = ?",
    "UPDATE bench_sessions SET payload = ?, last_seen_at = ?, version = ?, expires_at = greatest(expires_at, ?)
     WHERE `key` = ? AND expires_at > ?"
);
