use std::sync::Arc;
use std::time::{Duration, Instant};

use session_core::{Outcome, PersistenceError, RecordWrite, Timestamp};
use tokio::net::TcpListener;

use crate::proxy::Proxy;
use crate::server::{Db, NOW, Server, Settings, key, payload, record, start};

const SHORT: Duration = Duration::from_millis(500);

async fn refusal(server: &Server, url: &str) -> PersistenceError {
    let settings = Settings { acquire_timeout: SHORT, ..Settings::default() };
    server.connect_to(url, settings).await.err().unwrap()
}

pub async fn refused_login_is_unavailable_without_showing_the_password(server: Server) {
    let address = server.address();
    let (base, _) = server.url.rsplit_once('/').unwrap();
    let urls =
        [server.url_with(&address, Some(("nobody", "secret-word"))), format!("{base}/no_such_database")];
    for url in urls {
        let error = refusal(&server, &url).await;
        assert!(matches!(error, PersistenceError::Unavailable(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("nobody") || text.contains("no_such_database"), "{text}");
        assert!(!format!("{error} {error:?}").contains("secret-word"), "{error:?}");
    }
}

pub async fn connecting_to_a_dead_or_silent_server_fails_in_time(server: Server) {
    let down = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for address in [down, silent.local_addr().unwrap().to_string()] {
        let began = Instant::now();
        let error = refusal(&server, &server.url_with(&address, None)).await;
        assert!(matches!(error, PersistenceError::Unavailable(_)), "{error:?}");
        assert!(error.is_retryable());
        assert!(began.elapsed() < 4 * SHORT, "it waited for {:?}", began.elapsed());
    }
}

pub async fn waiting_for_a_connection_ends_with_busy(server: Server) {
    let settings = Settings { max_connections: 1, acquire_timeout: SHORT, ..Settings::default() };
    let db = server.database_with(settings).await;
    db.insert_dyn(&key("a"), &record("x")).await.unwrap();
    let mut other = server.program().await;
    other.lock(&server, "a").await;
    let waiting = {
        let db = Arc::clone(&db);
        tokio::spawn(async move { db.delete_dyn(&key("a")).await })
    };
    server.wait_for_busy_connections(&mut other, 1).await;
    let error = db.load_dyn(&key("a"), NOW).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Busy(_)), "{error:?}");
    other.unlock().await;
    assert!(waiting.await.unwrap().unwrap());
    assert_eq!(payload(&db, "a").await, None);
}

pub async fn broken_connection_leaves_a_write_unknown_and_is_replaced(server: Server) {
    let proxy = Proxy::to(server.address()).await;
    let url = server.url_with(&proxy.address, None);
    let db = server.connect_to(&url, Settings::default()).await.unwrap();
    db.migrate_dyn().await.unwrap();
    db.insert_dyn(&key("a"), &record("first")).await.unwrap();
    // Prepares the statement, so that sending it again waits for no answer.
    db.update_dyn(&key("a"), RecordWrite::new(&record("old")), NOW).await.unwrap();

    proxy.deafen();
    let new = record("new");
    let (k, mut write);
    k = key("a");
    write = Box::pin(db.update_dyn(&k, RecordWrite::new(&new), NOW));
    start(&mut write).await;
    // The statement arrives, but its answer does not.
    let direct = server.database().await;
    let arrives = async {
        while payload(&direct, "a").await.unwrap() != b"new" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), arrives).await.expect("the statement arrives");
    proxy.cut();
    let error = write.await.unwrap_err();
    assert!(matches!(error, PersistenceError::Unknown(_)), "{error:?}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(payload(&db, "a").await.unwrap(), b"new", "the next call has another connection");

    proxy.deafen();
    let mut read = Box::pin(db.load_dyn(&k, NOW));
    start(&mut read).await;
    proxy.cut();
    let record = read.await.expect("a load is repeated on another connection").unwrap();
    assert_eq!(&**record.payload(), b"new");
}

/// Opens several connections, and uses them.
async fn open_several(server: &Server, db: &Db, count: u8) {
    let mut locker = server.program().await;
    locker.lock(server, "a").await;
    let touches: Vec<_> = (0..count)
        .map(|_| {
            let db = Arc::clone(db);
            tokio::spawn(async move { db.touch_dyn(&key("a"), NOW, Timestamp::MAX, NOW).await })
        })
        .collect();
    server.wait_for_busy_connections(&mut locker, count.into()).await;
    locker.unlock().await;
    for touch in touches {
        touch.await.unwrap().unwrap();
    }
}

pub async fn idle_connections_that_a_firewall_forgot_cost_no_call(server: Server) {
    let proxy = Proxy::to(server.address()).await;
    let url = server.url_with(&proxy.address, None);
    let db = server.connect_to(&url, Settings::default()).await.unwrap();
    db.migrate_dyn().await.unwrap();
    db.insert_dyn(&key("a"), &record("x")).await.unwrap();
    open_several(&server, &db, 5).await;
    proxy.forget();
    // From here on, an idle connection is checked before it is used.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let began = Instant::now();
    for _ in 0..6 {
        db.touch_dyn(&key("a"), NOW, Timestamp::MAX, NOW).await.unwrap();
    }
    // The first call waits for one of the five, and the others do not.
    assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
}

pub async fn broken_idle_connections_cost_at_most_one_call(server: Server) {
    let proxy = Proxy::to(server.address()).await;
    let url = server.url_with(&proxy.address, None);
    let db = server.connect_to(&url, Settings::default()).await.unwrap();
    db.migrate_dyn().await.unwrap();
    db.insert_dyn(&key("a"), &record("x")).await.unwrap();
    open_several(&server, &db, 5).await;

    proxy.cut();
    let mut failed = 0;
    for _ in 0..10 {
        failed += usize::from(db.touch_dyn(&key("a"), NOW, Timestamp::MAX, NOW).await.is_err());
    }
    assert!(failed <= 1, "{failed} calls failed");

    // Connections that have been idle for a while cost no call.
    proxy.cut();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for _ in 0..10 {
        db.touch_dyn(&key("a"), NOW, Timestamp::MAX, NOW).await.unwrap();
    }
}
