//! Deleting expired sessions among few rows and among many.

use std::str::FromStr as _;
use std::time::SystemTime;

use db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use db_backends::sqlx::{self};
use session_cached_db::SqlitePersistence;
use session_cached_db::session_core::{Persistence as _, Timestamp};

use crate::Effort;
use crate::figure::{Aim, Report, Times};

const BATCH: u32 = 100;

pub(crate) async fn measure(effort: Effort, report: &mut Report) {
    let few = Table::new(10_000).await;
    eprintln!("reap: making {} rows", effort.million);
    let many = Table::new(effort.million).await;
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let (mut among_few, mut among_many) = (Times::default(), Times::default());
        for _ in 0..3 {
            among_few.time(few.reap()).await;
            among_many.time(many.reap()).await;
        }
        rounds.push(among_many.median() / among_few.median());
    }
    let what = "time per expired row deleted among 1,000,000 rows, against among 10,000, in SQLite";
    report.add("reap", Aim::AtMost(1.5), what, rounds);
}

struct Table {
    db: SqlitePersistence,
    _dir: tempfile::TempDir,
}

impl Table {
    /// Makes this many rows of 1 KB, of which 5,000 have expired, scattered among the others.
    async fn new(rows: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/bench.db", dir.path().display());
        let db = SqlitePersistence::connect(&url).await.unwrap();
        db.migrate().await.unwrap();
        // A large page cache makes the rows fast. The measurement uses the store's own connections.
        let options = SqliteConnectOptions::from_str(&url).unwrap().pragma("cache_size", "-1000000");
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        let now = Timestamp::from(SystemTime::now()).as_micros();
        let every = rows / 5_000;
        let insert = sqlx::query(
            "WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row WHERE n + 1 < ?)
             INSERT INTO sessions (key, payload, created_at, expires_at, last_seen_at, version, subject)
             SELECT lower(hex(randomblob(21))), zeroblob(1000), 0,
                    CASE n % ? WHEN 0 THEN ? - abs(random() % 1000000000) ELSE ? + abs(random() % 1000000000) END,
                    0, random(), NULL
             FROM row",
        );
        let insert = insert.bind(rows as i64).bind(every as i64).bind(now).bind(now + 3_600_000_000);
        insert.execute(&pool).await.unwrap();
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&pool).await.unwrap();
        pool.close().await;
        Self { db, _dir: dir }
    }

    async fn reap(&self) {
        let deleted = self.db.delete_expired(SystemTime::now().into(), BATCH).await.unwrap().count;
        assert_eq!(deleted, u64::from(BATCH));
    }
}
