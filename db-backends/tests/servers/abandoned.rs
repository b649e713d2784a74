use std::sync::Arc;
use std::time::{Duration, Instant};

use session_core::{RecordWrite, Timestamp};

use crate::proxy::Proxy;
use crate::server::{Db, Kind, NOW, Program, Server, Settings, key, payload, record, start};

/// The time that a statement gets to finish after its future was dropped.
const GRACE: Duration = Duration::from_secs(1);

/// Starts a write that waits for a lock, and drops it.
async fn abandon_a_write(server: &Server, db: &Db, observer: &mut Program) {
    let (k, new) = (key("a"), record("new"));
    let mut write = Box::pin(db.update_dyn(&k, RecordWrite::new(&new), NOW));
    start(&mut write).await;
    tokio::select! {
        _ = &mut write => panic!("the row is locked"),
        () = server.wait_for_busy_connections(observer, 1) => {}
    }
}

pub async fn abandoned_write_is_ended_by_the_server(server: Server) {
    // Postgres ends the statement by its timeout. The others have a long one here, and must be asked to end
    // it.
    let statement_timeout = Duration::from_secs(if server.kind == Kind::Postgres { 1 } else { 600 });
    let lock_timeout = Duration::from_secs(600);
    let db = server.database_with(Settings { statement_timeout, lock_timeout, ..Settings::default() }).await;
    db.insert_dyn(&key("a"), &record("kept")).await.unwrap();
    let (mut other, mut observer) = (server.program().await, server.program().await);
    other.lock(&server, "a").await;
    abandon_a_write(&server, &db, &mut observer).await;
    let gone_at = Instant::now();
    // The row is still locked.
    server.wait_for_busy_connections(&mut other, 0).await;
    assert!(gone_at.elapsed() < GRACE + Duration::from_secs(4), "it went on for {:?}", gone_at.elapsed());
    other.unlock().await;
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept");
    db.update_dyn(&key("a"), RecordWrite::new(&record("later")), NOW).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"later");
}

pub async fn abandoned_write_over_an_applications_pool_is_not_committed(server: Server) {
    server.database().await.insert_dyn(&key("a"), &record("kept")).await.unwrap();
    let proxy = Proxy::to(server.address()).await;
    let (db, _pool) = server.through(&proxy).pooled(1, "SELECT 1").await;
    let (mut other, mut observer) = (server.program().await, server.program().await);
    other.lock(&server, "a").await;
    abandon_a_write(&server, &db, &mut observer).await;
    // When the grace period is over, the pool gives up its only connection, and this read gets another one.
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept");
    assert_eq!(proxy.accepted(), 2);
    // Now the statement gets its lock, and runs.
    other.unlock().await;
    server.wait_for_busy_connections(&mut other, 0).await;
    // This touch waits for the transaction of the statement to end.
    db.touch_dyn(&key("a"), NOW, Timestamp::MAX, NOW).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept");
}

pub async fn abandoned_write_that_ends_within_the_grace_keeps_its_connection(server: Server) {
    server.database().await.insert_dyn(&key("a"), &record("old")).await.unwrap();
    let proxy = Proxy::to(server.address()).await;
    let through = server.through(&proxy);
    let settings = Settings { max_connections: 1, ..Settings::default() };
    let own = through.connect(settings).await.unwrap();
    let (pooled, _pool) = through.pooled(1, "SELECT 1").await;
    for db in [own, pooled] {
        let before = proxy.accepted();
        db.update_dyn(&key("a"), RecordWrite::new(&record("old")), NOW).await.unwrap();
        let (mut other, mut observer) = (server.program().await, server.program().await);
        other.lock(&server, "a").await;
        abandon_a_write(&server, &db, &mut observer).await;
        other.unlock().await;
        // This read waits for the only connection, on which the write ends first.
        assert_eq!(payload(&db, "a").await.unwrap(), b"new");
        assert_eq!(proxy.accepted(), before, "the connection is kept, and the statement is not killed");
    }
}

pub async fn dropped_loads_open_no_more_connections_than_the_maximum(server: Server) {
    const CONNECTIONS: u16 = 4;
    server.database().await.insert_dyn(&key("a"), &record("a")).await.unwrap();
    let proxy = Proxy::to(server.address()).await;
    let through = server.through(&proxy);
    let settings = Settings { max_connections: CONNECTIONS, ..Settings::default() };
    let own = through.connect(settings).await.unwrap();
    let (pooled, _pool) = through.pooled(CONNECTIONS.into(), "SELECT 1").await;
    for db in [own, pooled] {
        let before = proxy.accepted();
        let mut dropped = 0;
        for round in 0..12 {
            let loads: Vec<_> = (0..16)
                .map(|n| {
                    let db = Arc::clone(&db);
                    let wait = Duration::from_micros((round * 16 + n) * 37 % 2_000);
                    tokio::spawn(async move {
                        tokio::time::timeout(wait, db.load_dyn(&key("a"), NOW)).await.is_err()
                    })
                })
                .collect();
            for load in loads {
                dropped += u32::from(load.await.unwrap());
            }
        }
        assert!(dropped > 16, "{dropped} of 192 were dropped");
        assert_eq!(payload(&db, "a").await.unwrap(), b"a");
        // One connection was there before. Killing a statement takes one, too.
        let opened = proxy.accepted() - before;
        assert!(opened < CONNECTIONS.into(), "{opened} more connections for {dropped} dropped loads");
    }
}

pub async fn close_waits_for_statements_whose_callers_have_gone(server: Server) {
    let db = server.database().await;
    db.insert_dyn(&key("a"), &record("old")).await.unwrap();
    let (db, close) = server.closable(Settings::default()).await;
    let (mut other, mut observer) = (server.program().await, server.program().await);
    other.lock(&server, "a").await;
    abandon_a_write(&server, &db, &mut observer).await;
    let mut closing = tokio::spawn(close);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut closing).await;
    assert!(early.is_err(), "the statement still runs");
    other.unlock().await;
    closing.await.unwrap();
    assert_eq!(server.busy_connections(&mut other).await, 0);
    assert_eq!(payload(&server.database().await, "a").await.unwrap(), b"new");
}

/// The future is dropped at any time: while the statement is prepared, sent, or answered.
pub async fn connection_of_a_gone_caller_gives_no_answer_to_the_next(server: Server) {
    let own = server.database_with(Settings { max_connections: 2, ..Settings::default() }).await;
    let (pooled, _pool) = server.pooled(2, "SELECT 1").await;
    for db in [own, pooled] {
        for name in ["a", "b"] {
            db.delete_dyn(&key(name)).await.unwrap();
            db.insert_dyn(&key(name), &record(name)).await.unwrap();
        }
        for micros in 0..200 {
            let (k, wait) = (key("a"), Duration::from_micros(micros * 20));
            let _ = tokio::time::timeout(wait, db.load_dyn(&k, NOW)).await;
            // The answer to the previous statement would be an error, or another session.
            assert_eq!(payload(&db, "b").await.unwrap(), b"b");
            let _ = tokio::time::timeout(wait, db.touch_dyn(&k, NOW, Timestamp::MAX, NOW)).await;
            assert!(!db.delete_dyn(&key("none")).await.unwrap());
        }
    }
}
