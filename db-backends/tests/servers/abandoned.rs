use std::time::Duration;

use session_core::{ExpiryWrite, Timestamp};

use crate::server::{Kind, NOW, Server, Settings, key, payload, record, start};

pub async fn an_abandoned_write_is_ended_by_the_server(server: Server) {
    // Postgres ends it by itself, soon; the others would not, and are told to.
    let statement_timeout = Duration::from_secs(if server.kind == Kind::Postgres { 1 } else { 600 });
    let lock_timeout = Duration::from_secs(600);
    let db = server.database_with(Settings { statement_timeout, lock_timeout, ..Settings::default() }).await;
    db.insert_dyn(&key("a"), &record("kept")).await.unwrap();
    let mut other = server.program().await;
    other.lock(&server, "a").await;
    {
        let (k, new) = (key("a"), record("new"));
        let mut write = Box::pin(db.update_dyn(&k, &new, None, ExpiryWrite::Extend, NOW));
        start(&mut write).await;
        let mut observer = server.program().await;
        tokio::select! {
            _ = &mut write => panic!("the row is locked"),
            () = server.wait_for_busy_connections(&mut observer, 1) => {}
        }
    }
    // Before anybody gives the row free.
    server.wait_for_busy_connections(&mut other, 0).await;
    other.unlock().await;
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept");
    db.update_dyn(&key("a"), &record("later"), None, ExpiryWrite::Extend, NOW).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"later");
}

pub async fn an_abandoned_write_over_the_applications_pool_is_not_committed(server: Server) {
    server.database().await.insert_dyn(&key("a"), &record("kept")).await.unwrap();
    let (db, _pool) = server.pooled(4, "SELECT 1").await;
    let mut other = server.program().await;
    other.lock(&server, "a").await;
    {
        let (k, new) = (key("a"), record("new"));
        let mut write = Box::pin(db.update_dyn(&k, &new, None, ExpiryWrite::Extend, NOW));
        start(&mut write).await;
        let mut observer = server.program().await;
        tokio::select! {
            _ = &mut write => panic!("the row is locked"),
            () = server.wait_for_busy_connections(&mut observer, 1) => {}
        }
    }
    // The statement now gets its lock, and does its work.
    other.unlock().await;
    server.wait_for_busy_connections(&mut other, 0).await;
    // This one waits for its transaction to end.
    db.touch_dyn(&key("a"), NOW, Timestamp::MAX, NOW).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept");
}

/// Whenever the user goes: while the statement is being prepared, sent, or answered.
pub async fn a_connection_is_not_used_again_after_its_user_has_gone(server: Server) {
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
            // An answer to the question before would be an error, or somebody else's session.
            assert_eq!(payload(&db, "b").await.unwrap(), b"b");
            let _ = tokio::time::timeout(wait, db.touch_dyn(&k, NOW, Timestamp::MAX, NOW)).await;
            assert!(!db.delete_dyn(&key("none")).await.unwrap());
        }
    }
}
