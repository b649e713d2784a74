//! The space that the file and its log take.

use std::sync::Arc;

use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::{Connection as _, SqliteConnection};
use session_core::{Persistence as _, RecordWrite, Scan as _};
use tempfile::TempDir;

use crate::{NOW, key, record, run, url};

/// Returns the size of the file, once what is in the log is in it.
async fn file_size(dir: &TempDir, other: &mut SqliteConnection) -> u64 {
    run(other, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    std::fs::metadata(url(dir).trim_start_matches("sqlite://")).unwrap().len()
}

#[tokio::test]
async fn file_gives_back_space_after_reaping() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    let mut other = SqliteConnection::connect(&url(&dir)).await.unwrap();
    let fill = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10000)
         INSERT INTO sessions SELECT 'key-' || n, zeroblob(1000), 0, 1, 0, n, NULL, 1 FROM n";
    run(&mut other, fill).await;
    let full = file_size(&dir, &mut other).await;
    while db.delete_expired(NOW, 500).await.unwrap().is_unfinished(500) {}
    // An eighth of the pages may stay empty, and the last batch of them.
    let empty = file_size(&dir, &mut other).await;
    assert!(empty < full / 4, "{full} bytes before, {empty} after");

    // A file of an older version.
    run(&mut other, "PRAGMA auto_vacuum = NONE; VACUUM").await;
    run(&mut other, fill).await;
    while db.delete_expired(NOW, 500).await.unwrap().is_unfinished(500) {}
    let full = file_size(&dir, &mut other).await;
    assert!(full > 8_000_000, "it gives back nothing");
    drop(other);
    let db = db_backends::connect_to_inspect(&url(&dir)).await.unwrap();
    let condition = db.inspect().await.unwrap().condition;
    assert!(condition[0].text.contains("never gives back space"), "{condition:?}");
    assert!(db.vacuum().await.unwrap());
    let condition = db.inspect().await.unwrap().condition;
    assert!(condition[0].text.contains("0 % are empty, and gives back space"), "{condition:?}");
    let mut other = SqliteConnection::connect(&url(&dir)).await.unwrap();
    assert!(file_size(&dir, &mut other).await < full / 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_stays_small_while_something_is_always_read() {
    let dir = TempDir::new().unwrap();
    let db = Arc::new(SqlitePersistence::connect(&url(&dir)).await.unwrap());
    db.migrate().await.unwrap();
    for n in 0..200 {
        db.insert(&key(&format!("key-{n}")), &record("x")).await.unwrap();
    }
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let db = Arc::clone(&db);
            tokio::spawn(async move {
                loop {
                    db.scan(None, 100).await.unwrap();
                }
            })
        })
        .collect();
    for n in 0..6_000 {
        let (key, record) = (key(&format!("key-{}", n % 200)), record(vec![b'x'; 1_000]));
        db.update(&key, RecordWrite::new(&record), NOW).await.unwrap();
    }
    for reader in readers {
        reader.abort();
    }
    let log = format!("{}-wal", url(&dir).trim_start_matches("sqlite://"));
    let bytes = std::fs::metadata(log).unwrap().len();
    assert!(bytes < 16 << 20, "the log has {bytes} bytes");
}
