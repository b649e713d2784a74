//! Reports of changed keys, from servers that send them, send others, or send none.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use session_core::{CacheError, NoticeChannel as _, NoticeListener, NoticeSource as _, StoredKey};

use crate::server::{Reply, Server, hello, nil, ok, text};
use crate::{key, to};

/// The reports so far, `None` about all keys, and the number of those that were ignored.
#[derive(Debug, Default)]
struct Reports(Mutex<Vec<Option<StoredKey>>>, AtomicUsize);

impl NoticeListener for Reports {
    fn changed(&self, key: &StoredKey) {
        self.0.lock().unwrap().push(Some(*key));
    }

    fn all_changed(&self) {
        self.0.lock().unwrap().push(None);
    }

    fn ignored(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

fn report(keys: &str) -> String {
    format!(">2\r\n$10\r\ninvalidate\r\n{keys}")
}

fn report_of(key: &str) -> String {
    report(&format!("*1\r\n${}\r\n{key}\r\n", key.len()))
}

/// Starts a server that sends `reports` before each answer to a ping.
async fn server(reports: &'static [&'static str]) -> Server {
    let reports: String = reports.iter().map(|key| report_of(key)).collect();
    Server::start(move |command| match text(&command[0]).as_str() {
        "PING" => Reply::Bytes(format!("{reports}+PONG\r\n").into_bytes()),
        "SET" => ok(),
        _ => nil(),
    })
    .await
}

#[tokio::test]
async fn server_that_reports_nothing_cannot_be_used() {
    let server = server(&[]).await;
    let cache = to(&server).build().unwrap();
    let error = cache.open_channel(Arc::new(Reports::default())).await.unwrap_err();
    assert!(matches!(&error, CacheError::Unusable(_)), "{error}");
    assert!(error.to_string().contains("reports no changes"), "{error}");
}

#[tokio::test]
async fn server_that_stops_reporting_fails_the_channel_after_a_while() {
    let is_first = Mutex::new(true);
    let server = Server::start(move |command| match text(&command[0]).as_str() {
        "PING" if std::mem::take(&mut *is_first.lock().unwrap()) => {
            Reply::Bytes(format!("{}+PONG\r\n", report_of("session:~near")).into_bytes())
        }
        "PING" => Reply::Bytes(b"+PONG\r\n".to_vec()),
        "SET" => ok(),
        _ => nil(),
    })
    .await;
    let cache = to(&server).build().unwrap();
    let channel = cache.open_channel(Arc::new(Reports::default())).await.unwrap();
    let mut pings = 0;
    let error = loop {
        match channel.ping().await {
            Ok(()) => pings += 1,
            Err(error) => break error,
        }
        assert!(pings < 100, "it was not noticed");
    };
    assert!(error.to_string().contains("reports no changes"), "{error}");
}

#[tokio::test]
async fn reports_come_before_the_answer_and_other_keys_are_ignored() {
    let server = server(&[
        "session:~near",
        "session:the-stored-key",
        "session:é",
        "another:key",
        "session:",
        "",
        "session:9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a0",
    ])
    .await;
    let (cache, reports) = (to(&server).build().unwrap(), Arc::new(Reports::default()));
    let channel = cache.open_channel(Arc::clone(&reports) as _).await.unwrap();
    reports.0.lock().unwrap().clear();
    let before = reports.1.load(Ordering::SeqCst);
    channel.ping().await.unwrap();
    assert_eq!(*reports.0.lock().unwrap(), [Some(key())]);
    assert_eq!(reports.1.load(Ordering::SeqCst) - before, 5);
    assert_eq!(channel.get(&key()).await.unwrap(), None);
}

#[tokio::test]
async fn flush_and_reports_that_are_not_understood_are_about_all_keys() {
    for strange in ["_\r\n", "*1\r\n:5\r\n", "+what\r\n"] {
        let all = report(strange);
        let server = Server::start(move |command| match text(&command[0]).as_str() {
            "PING" => Reply::Bytes(format!("{}{all}+PONG\r\n", report_of("session:~near")).into_bytes()),
            "SET" => ok(),
            _ => nil(),
        })
        .await;
        let (cache, reports) = (to(&server).build().unwrap(), Arc::new(Reports::default()));
        let channel = cache.open_channel(Arc::clone(&reports) as _).await.unwrap();
        channel.ping().await.unwrap();
        assert!(reports.0.lock().unwrap().contains(&None), "{strange:?}");
    }
}

#[tokio::test]
async fn connection_that_is_closed_fails_the_channel_for_good() {
    let pings = Mutex::new(0);
    let server = Server::start(move |command| match text(&command[0]).as_str() {
        "PING" => {
            let mut pings = pings.lock().unwrap();
            *pings += 1;
            let answer = format!("{}+PONG\r\n", report_of("session:~near")).into_bytes();
            if *pings == 1 { Reply::Bytes(answer) } else { Reply::Close(answer) }
        }
        "SET" => ok(),
        _ => nil(),
    })
    .await;
    let cache = to(&server).build().unwrap();
    let channel = cache.open_channel(Arc::new(Reports::default())).await.unwrap();
    let _ = channel.ping().await;
    for _ in 0..2 {
        assert!(channel.ping().await.is_err());
        assert!(channel.get(&key()).await.is_err());
    }
}

#[tokio::test]
async fn server_that_becomes_a_replica_fails_the_channel() {
    let is_replica = Arc::new(AtomicBool::new(false));
    let role = Arc::clone(&is_replica);
    let role = move || if role.load(Ordering::SeqCst) { "replica" } else { "master" };
    let answer = |command: &Vec<Vec<u8>>| match text(&command[0]).as_str() {
        "PING" => Reply::Bytes(format!("{}+PONG\r\n", report_of("session:~near")).into_bytes()),
        "SET" => ok(),
        _ => nil(),
    };
    let server = Server::start_with_hello(move || hello("redis", "8.0.2", role()), answer).await;
    let cache = to(&server).build().unwrap();
    let channel = cache.open_channel(Arc::new(Reports::default())).await.unwrap();
    channel.ping().await.unwrap();
    is_replica.store(true, Ordering::SeqCst);
    // It answers as before, and hears of changes late.
    let error = channel.ping().await.unwrap_err();
    assert!(error.to_string().contains("replica"), "{error}");
}
