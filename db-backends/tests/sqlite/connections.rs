//! Several tasks, and callers that leave before their answer.

use std::future::Future;
use std::pin::pin;
use std::str::FromStr as _;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use session_core::{Persistence as _, PersistenceError, RecordWrite, Timestamp};
use tempfile::TempDir;

use crate::{LATER, NOW, database, key, other_program, payload, record, run, url};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_in_memory_is_the_same_for_all_tasks() {
    for readers in [0, 4] {
        let builder = SqlitePersistence::builder().readers(readers);
        let db = Arc::new(builder.connect("sqlite::memory:").await.unwrap());
        db.migrate().await.unwrap();
        let tasks: Vec<_> = (0..32)
            .map(|n| {
                let db = Arc::clone(&db);
                tokio::spawn(async move {
                    let key = key(&format!("key-{n}"));
                    db.insert(&key, &record(vec![n])).await.unwrap();
                    assert_eq!(db.load(&key, NOW).await.unwrap().unwrap().payload()[..], [n]);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(db.delete_expired(LATER, 100).await.unwrap().count, 32);
    }
    // Another connection makes another database.
    let db = SqlitePersistence::connect("sqlite://:memory:").await.unwrap();
    assert!(matches!(db.check_schema().await, Err(PersistenceError::Schema(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_one_process_never_find_the_file_busy() {
    let dir = TempDir::new().unwrap();
    database(&dir).await.close().await;
    // No waiting for SQLite's lock at all, for our own connections and for an application's pool.
    let own = SqlitePersistence::builder().busy_timeout(Duration::ZERO).connect(&url(&dir)).await.unwrap();
    let options = SqliteConnectOptions::from_str(&url(&dir)).unwrap().busy_timeout(Duration::ZERO);
    let pooled = SqlitePersistence::from_pool(SqlitePoolOptions::new().connect_lazy_with(options));
    for db in [own, pooled] {
        let db = Arc::new(db);
        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let db = Arc::clone(&db);
                tokio::spawn(async move {
                    for n in 0..20 {
                        let key = key(&format!("{task}-{n}"));
                        db.insert(&key, &record("x")).await.unwrap();
                        db.load(&key, NOW).await.unwrap().unwrap();
                        assert!(db.delete(&key).await.unwrap());
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        db.close().await;
    }
}

#[tokio::test]
async fn abandoned_write_ends_before_the_next_write_is_sent() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::builder()
        .acquire_timeout(Duration::from_millis(50))
        .connect(&url(&dir))
        .await
        .unwrap();
    db.migrate().await.unwrap();
    db.insert(&key("a"), &record("old")).await.unwrap();
    let mut other = other_program(&dir).await;
    run(&mut other, "BEGIN IMMEDIATE").await;

    // The first poll sends the write, which is then dropped.
    {
        let (key, abandoned) = (key("a"), record("abandoned"));
        let write = pin!(db.update(&key, RecordWrite::new(&abandoned), NOW));
        assert!(write.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let error = db.delete(&key("a")).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Busy(_)), "{error:?}");
    assert_eq!(payload(&db, "a").await.unwrap(), b"old");

    run(&mut other, "ROLLBACK").await;
    while db.touch(&key("a"), LATER, Timestamp::MAX, NOW).await.is_err() {}
    assert_eq!(payload(&db, "a").await.unwrap(), b"abandoned", "the abandoned write took effect as a whole");
}

#[tokio::test]
async fn close_waits_for_a_write_whose_caller_has_gone() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    db.insert(&key("a"), &record("old")).await.unwrap();
    let mut other = other_program(&dir).await;
    run(&mut other, "BEGIN IMMEDIATE").await;
    {
        let (key, abandoned) = (key("a"), record("abandoned"));
        let write = pin!(db.update(&key, RecordWrite::new(&abandoned), NOW));
        assert!(write.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let mut close = pin!(db.close());
    let early = tokio::time::timeout(Duration::from_millis(50), &mut close).await;
    assert!(early.is_err(), "the write still waits");
    run(&mut other, "ROLLBACK").await;
    close.await;
    assert_eq!(payload(&database(&dir).await, "a").await.unwrap(), b"abandoned");
}

#[test]
fn write_dropped_outside_of_a_runtime_leaves_a_usable_connection() {
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (db, mut other) = runtime.block_on(async {
        let (db, mut other) = (database(&dir).await, other_program(&dir).await);
        db.insert(&key("a"), &record("old")).await.unwrap();
        run(&mut other, "BEGIN IMMEDIATE").await;
        (db, other)
    });
    let (k, abandoned) = (key("a"), record("abandoned"));
    let mut write = Box::pin(db.update(&k, RecordWrite::new(&abandoned), NOW));
    {
        let _inside = runtime.enter();
        assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    drop(write);
    runtime.block_on(async {
        run(&mut other, "ROLLBACK").await;
        db.update(&key("a"), RecordWrite::new(&record("later")), NOW).await.unwrap();
        assert_eq!(payload(&db, "a").await.unwrap(), b"later");
        db.close().await;
    });
}
