//! The Redis cache on servers that answer as a test wants, or not at all. No Redis is needed. The conformance
//! suite tests it on real servers.
#![cfg(feature = "redis")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

#[cfg(feature = "redis-cluster")]
mod cluster;
mod credentials;
mod eviction;
mod inspect;
mod notices;
mod refusals;
mod sentinel;
mod server;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cache_backends::redis::{RedisCache, RedisCacheBuilder};
use session_core::{
    Acquired, Cache, CacheError, Entry, Exchange, Expected, Fence, Holder, Stamp, StoredKey, Timestamp, Token,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::server::{Command, Reply, Server, bulk, error, nil, ok, one, text};

const TTL: Duration = Duration::from_secs(60);

fn key() -> StoredKey {
    StoredKey::parse("the-stored-key").unwrap()
}

fn stamp(number: u64) -> Stamp {
    Stamp(NonZeroU64::new(number).unwrap())
}

fn lease(number: u64) -> Entry {
    Entry::lease(stamp(number))
}

fn fence(number: u64) -> Entry {
    let holder =
        Holder { token: Token(NonZeroU64::new(number).unwrap()), deadline: Timestamp::from_secs(30) };
    Entry::fence(stamp(number), Fence { holders: vec![holder], dirty: false })
}

fn to(server: &Server) -> RedisCacheBuilder {
    RedisCache::builder().url(server.url())
}

fn name(command: &Command) -> String {
    text(&command[0])
}

#[tokio::test]
async fn first_call_connects_and_one_connection_serves_all_callers() {
    let server = Server::start(|_| nil()).await;
    let cache = to(&server).build().unwrap();
    tokio::task::yield_now().await;
    assert_eq!(server.connections(), 0);
    let callers = (0..100).map(|_| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get(&key()).await })
    });
    for caller in callers.collect::<Vec<_>>() {
        assert_eq!(caller.await.unwrap().unwrap(), None);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn every_call_is_one_command_with_the_prefixed_key() {
    let server = Server::start(|command| {
        let key = if name(command) == "EVALSHA" { &command[3] } else { &command[1] };
        assert_eq!(text(key), "shop:the-stored-key");
        if name(command) == "EVALSHA" { one() } else { nil() }
    })
    .await;
    let cache = to(&server).key_prefix("shop:").build().unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Placed);
    let stored = cache.compare_exchange(&key(), Expected::Stamp(stamp(1)), Some(fence(2)), TTL).await;
    assert_eq!(stored.unwrap(), Exchange::Stored);
    assert_eq!(server.commands(), ["GET", "SET", "EVALSHA"]);
}

#[tokio::test]
async fn ttl_is_sent_in_milliseconds_rounded_up() {
    let server = Server::start(|command| {
        assert_eq!(text(command.last().unwrap()), "1501");
        nil()
    })
    .await;
    let cache = to(&server).build().unwrap();
    let ttl = Duration::from_micros(1_500_001);
    assert_eq!(cache.acquire(&key(), lease(1), ttl).await.unwrap(), Acquired::Placed);
}

#[tokio::test]
async fn forgotten_script_is_sent_again() {
    let server = Server::start(|command| match name(command).as_str() {
        "EVALSHA" => error("NOSCRIPT No matching script. Please use EVAL."),
        "EVAL" => one(),
        _ => unreachable!(),
    })
    .await;
    let cache = to(&server).build().unwrap();
    let stored = cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), TTL).await.unwrap();
    assert_eq!(stored, Exchange::Stored);
    assert_eq!(server.commands(), ["EVALSHA", "EVAL"]);
}

#[tokio::test]
async fn acquire_finds_an_entry_while_the_server_refuses_writes() {
    for refusal in [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "NOREPLICAS Not enough good replicas to write.",
    ] {
        let full = Arc::new(AtomicBool::new(true));
        let occupied = Arc::clone(&full);
        let server = Server::start(move |command| match name(command).as_str() {
            "SET" => error(refusal),
            "GET" if occupied.load(Ordering::SeqCst) => bulk(&fence(7).encode(&key())),
            _ => nil(),
        })
        .await;
        let cache = to(&server).build().unwrap();
        assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Found(fence(7)));
        full.store(false, Ordering::SeqCst);
        let refused = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
        assert!(matches!(refused, CacheError::Refused(_)), "{refused}");
        let code = refusal.split(' ').next().unwrap();
        assert!(refused.to_string().contains(code), "{refused} does not say {code}");
    }
}

#[tokio::test]
async fn foreign_value_counts_as_vacant_and_only_that_value_is_replaced() {
    let foreign = b"something else".as_slice();
    let server = Server::start(move |command| match name(command).as_str() {
        "GET" | "SET" => bulk(foreign),
        "EVALSHA" if command[4] == b"raw" && command[5] == foreign => one(),
        "EVALSHA" => bulk(foreign),
        _ => unreachable!(),
    })
    .await;
    let cache = to(&server).build().unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Placed);
    let key = key();
    let exchange = |expected| cache.compare_exchange(&key, expected, Some(lease(2)), TTL);
    assert_eq!(exchange(Expected::Vacant).await.unwrap(), Exchange::Stored);
    assert_eq!(exchange(Expected::Stamp(stamp(9))).await.unwrap(), Exchange::Lost(None));
}

#[tokio::test]
async fn value_of_another_type_counts_as_vacant() {
    let server = Server::start(|command| match name(command).as_str() {
        "GET" | "SET" => error("WRONGTYPE Operation against a key holding the wrong kind of value"),
        // The script itself takes a value of another type for none.
        "EVALSHA" if command[4] == b"nothing" => one(),
        _ => unreachable!(),
    })
    .await;
    let cache = to(&server).build().unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Placed);
}

#[tokio::test]
async fn exchange_over_a_foreign_value_that_keeps_changing_is_refused() {
    let server = Server::start(|command| bulk(format!("not {}", text(&command[5])).as_bytes())).await;
    let cache = to(&server).build().unwrap();
    let refused = cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), TTL).await.unwrap_err();
    assert!(matches!(refused, CacheError::Refused(_)), "{refused}");
}

#[tokio::test]
async fn entry_of_another_key_is_an_error() {
    let other = fence(7).encode(&StoredKey::parse("another-key").unwrap());
    let server = Server::start(move |_| bulk(&other)).await;
    let cache = to(&server).build().unwrap();
    assert!(matches!(cache.get(&key()).await, Err(CacheError::WrongKey)));
    assert!(matches!(cache.acquire(&key(), lease(1), TTL).await, Err(CacheError::WrongKey)));
    let exchange = cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), TTL).await;
    assert!(matches!(exchange, Err(CacheError::WrongKey)));
}

#[tokio::test]
async fn server_that_is_down_is_unavailable_until_it_is_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let cache = RedisCache::builder().url(format!("redis://{address}/")).build().unwrap();
    for _ in 0..3 {
        let unavailable = cache.get(&key()).await.unwrap_err();
        assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
        assert!(unavailable.to_string().contains(&address.to_string()), "{unavailable}");
    }
    let _server = Server::start_on(TcpListener::bind(address).await.unwrap(), |_| nil());
    assert_eq!(cache.get(&key()).await.unwrap(), None);
}

#[tokio::test]
async fn broken_connection_leaves_the_outcome_unknown_and_is_replaced() {
    let broken = AtomicBool::new(false);
    let server = Server::start(move |_| match broken.swap(true, Ordering::SeqCst) {
        false => Reply::Close(b"$100\r\nonly the beginning".to_vec()),
        true => one(),
    })
    .await;
    let cache = to(&server).build().unwrap();
    let key = key();
    let exchange = || cache.compare_exchange(&key, Expected::Vacant, Some(lease(1)), TTL);
    let ambiguous = exchange().await.unwrap_err();
    assert!(matches!(ambiguous, CacheError::Unknown(_)), "{ambiguous}");
    assert_eq!(server.commands(), ["EVALSHA"], "it was sent again by itself");
    assert_eq!(exchange().await.unwrap(), Exchange::Stored);
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn server_that_does_not_answer_is_unknown_after_the_response_timeout() {
    let server = Server::start(|_| Reply::Silence).await;
    let cache = to(&server).response_timeout(Duration::from_millis(20)).build().unwrap();
    let ambiguous = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
    assert!(matches!(ambiguous, CacheError::Unknown(_)), "{ambiguous}");
    assert_eq!(server.commands(), ["SET"], "it was sent again by itself");
}

#[tokio::test]
async fn server_that_only_accepts_connections_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    let cache = RedisCache::builder().url(url).connect_timeout(Duration::from_millis(20)).build().unwrap();
    let unavailable = cache.get(&key()).await.unwrap_err();
    assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
}

#[tokio::test]
async fn connection_attempt_outlives_its_caller() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    let cache = RedisCache::builder().url(url).build().unwrap();
    // The operating system accepts the connection, but no server answers on it yet.
    let impatient = tokio::time::timeout(Duration::from_millis(1), cache.get(&key())).await;
    impatient.expect_err("no server answers yet");
    let server = Server::start_on(listener, |_| nil());
    // No caller waits for the connection, and yet it is made, and used for `INFO`.
    eventually(&server.asked_for_info).await;
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn wrong_password_is_refused_until_it_is_right_and_never_shown() {
    let known = Arc::new(AtomicBool::new(false));
    let right = Arc::clone(&known);
    let server = Server::start(move |command| match name(command).as_str() {
        "AUTH" if !right.load(Ordering::SeqCst) => error("WRONGPASS invalid username-password pair"),
        "AUTH" => ok(),
        _ => nil(),
    })
    .await;
    let url = format!("redis://user:s3cr3t@127.0.0.1:{}/", server.port);
    let builder = RedisCache::builder().url(url);
    let cache = builder.clone().build().unwrap();
    let refused = cache.get(&key()).await.unwrap_err();
    assert!(matches!(refused, CacheError::Unusable(_)), "{refused}");
    let shown = format!("{refused} {refused:?} {builder:?} {cache:?}");
    assert!(shown.contains("authentication") && shown.contains("check the user and the password"), "{shown}");
    assert!(!shown.contains("s3cr3t"), "{shown}");
    known.store(true, Ordering::SeqCst);
    assert_eq!(cache.get(&key()).await.unwrap(), None);
}

#[tokio::test]
async fn errors_show_neither_key_nor_payload() {
    for answer in [
        "ERR unknown command 'GET', with args beginning with: 'session:the-stored-key' ",
        "NOPERM User app has no permissions to run the 'get' command",
    ] {
        let server = Server::start(move |_| error(answer)).await;
        let refused = to(&server).build().unwrap().get(&key()).await.unwrap_err();
        assert!(matches!(refused, CacheError::Unusable(_)), "{refused}");
        assert!(!format!("{refused} {refused:?}").contains("the-stored-key"), "{refused:?}");
    }
    let server = Server::start(|_| Reply::Bytes(b"?the-payload\r\n".to_vec())).await;
    let ambiguous = to(&server).build().unwrap().get(&key()).await.unwrap_err();
    assert!(matches!(ambiguous, CacheError::Unknown(_)), "{ambiguous}");
    assert!(!format!("{ambiguous} {ambiguous:?}").contains("the-payload"), "{ambiguous:?}");
}

#[tokio::test]
async fn unexpected_reply_leaves_the_outcome_unknown_and_names_the_command() {
    let server = Server::start(|_| Reply::Bytes(b":5\r\n".to_vec())).await;
    let cache = to(&server).build().unwrap();
    let got = cache.get(&key()).await.unwrap_err();
    let acquired = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
    let exchanged = cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), TTL).await.unwrap_err();
    for (error, command) in [(got, "GET"), (acquired, "SET"), (exchanged, "the script")] {
        assert!(matches!(error, CacheError::Unknown(_)), "{error}");
        assert!(error.to_string().contains(&format!("unexpected reply to {command}")), "{error}");
    }
}

#[tokio::test]
async fn server_that_is_not_ready_is_unavailable() {
    for answer in [
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script.",
        "CLUSTERDOWN The cluster is down",
        "MASTERDOWN Link with MASTER is down",
    ] {
        let server = Server::start(move |_| error(answer)).await;
        let unavailable = to(&server).build().unwrap().acquire(&key(), lease(1), TTL).await.unwrap_err();
        assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
    }
}

#[tokio::test]
async fn connection_of_the_application_is_used() {
    let server = Server::start(|_| nil()).await;
    let client = cache_backends::redis::driver::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let cache = RedisCache::builder().connection(connection).build().unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(server.connections(), 1);
}

#[test]
fn wrong_urls_are_refused_without_showing_them() {
    for (url, says) in [
        ("ftp://user:s3cr3t@host/", "ftp"),
        ("redis:s3cr3t", "redis://"),
        ("redis://:s3cr3t@host:port/", "URL"),
        ("redis://:s3cr3t@host/database", "database"),
        ("redis://:s3?cr3t@host/", "unknown parameter"),
        ("redis://:s3cr3t@a,b/", "redis+cluster"),
        ("redis://host/?response_timeout_ms=s3cr3t", "response_timeout_ms"),
        ("redis://host/?pass=s3cr3t", "redis+unix"),
        ("redis://host/?db=1", "redis+unix"),
    ] {
        let error = RedisCache::builder().url(url).build().unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(says), "{shown}");
        assert!(!shown.contains("cr3t"), "{shown}");
    }
}

#[tokio::test]
async fn server_at_an_ipv6_address_is_reached() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        eprintln!("NOT TESTED: this machine has no IPv6");
        return;
    };
    let server = Server::start_on(listener, |_| nil());
    let url = format!("redis://[::1]:{}/", server.port);
    assert_eq!(RedisCache::builder().url(url).build().unwrap().get(&key()).await.unwrap(), None);
}

#[cfg(feature = "redis-tls")]
#[test]
fn root_certificates_that_are_no_certificates_are_refused() {
    let error = RedisCache::builder().url("rediss://host/").root_certificates("none").build().unwrap_err();
    assert!(error.to_string().contains("root_certificates"), "{error}");
}

#[cfg(not(feature = "redis-tls"))]
#[test]
fn error_for_a_tls_url_names_the_disabled_feature() {
    let error = RedisCache::builder().url("rediss://host/").build().unwrap_err();
    assert!(error.to_string().contains("redis-tls"), "{error}");
}

#[cfg(not(feature = "redis-cluster"))]
#[test]
fn error_for_a_cluster_url_names_the_disabled_feature() {
    let error = RedisCache::builder().url("redis+cluster://a,b/").build().unwrap_err();
    assert!(error.to_string().contains("redis-cluster"), "{error}");
}

#[tokio::test]
async fn silent_connection_is_replaced_even_if_no_caller_waits() {
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = Arc::clone(&is_silent);
    let server =
        Server::start(move |_| if silent.load(Ordering::SeqCst) { Reply::Silence } else { nil() }).await;
    let cache = to(&server).response_timeout(Duration::from_millis(100)).build().unwrap();
    let key = key();
    let patient = || tokio::time::timeout(Duration::from_millis(40), cache.get(&key));
    assert!(patient().await.is_err());
    // The first connection never gets an answer, neither to the command that was sent nor to later ones.
    is_silent.store(false, Ordering::SeqCst);
    let begun = Instant::now();
    while patient().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it waits on a connection without answers");
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn failed_attempt_to_connect_is_not_shown_to_a_later_caller() {
    // It accepts connections and sends nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("redis://127.0.0.1:{port}/");
    let limit = Duration::from_millis(100);
    let cache = RedisCache::builder().url(url).connect_timeout(limit).build().unwrap();
    assert!(tokio::time::timeout(limit / 10, cache.get(&key())).await.is_err());
    let (mut first, _) = listener.accept().await.unwrap();
    // The attempt fails after its caller has dropped the future.
    first.read_to_end(&mut Vec::new()).await.unwrap();
    let _server = Server::start_on(listener, |_| nil());
    assert_eq!(cache.get(&key()).await.unwrap(), None);
}

/// Waits for an event in another task.
async fn eventually(happened: &Notify) {
    tokio::time::timeout(Duration::from_secs(10), happened.notified()).await.expect("it did not happen");
}
