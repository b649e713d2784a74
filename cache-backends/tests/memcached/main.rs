//! The memcached cache on servers that answer as a test wants, or not at all. No memcached is needed. The
//! conformance suite tests it on real servers.
#![cfg(feature = "memcached")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod inspect;
mod server;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cache_backends::memcached::{MemcachedCache, MemcachedCacheBuilder};
use session_core::bytes::{Bytes, BytesMut};
use session_core::{
    Acquired, Cache, CacheError, Entry, Exchange, Expected, Fence, Holder, Record, Stamp, StoreId, StoredKey,
    Timestamp, Token, Value,
};
use tokio::net::TcpListener;

use crate::server::{Reply, Server, item, line};

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

fn value(number: u64, payload_len: usize) -> Entry {
    let record = Record::new(vec![b'x'; payload_len].into(), Timestamp::from_secs(0), Timestamp::MAX);
    Entry::value(
        stamp(number),
        Value { record: Arc::new(record), made_at: Timestamp::from_secs(0), store: StoreId(1) },
    )
}

fn encoded(entry: &Entry, key: &StoredKey) -> Bytes {
    let mut bytes = BytesMut::new();
    entry.state.encode(key, &mut bytes);
    bytes.freeze()
}

fn found(entry: &Entry) -> Reply {
    item(&encoded(entry, &key()), entry.stamp.0.get())
}

fn to(server: &Server) -> MemcachedCacheBuilder {
    MemcachedCache::builder().servers([&server.address])
}

#[tokio::test]
async fn nothing_is_connected_before_the_first_call() {
    let server = Server::start(|_| line("EN")).await;
    let cache = to(&server).build().unwrap();
    tokio::task::yield_now().await;
    assert_eq!(server.connections(), 0);
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn get_and_exchange_send_one_command_each() {
    let server = Server::start(|command| {
        assert_eq!(command.key(), "shop:the-stored-key");
        match command.name() {
            "mg" => found(&fence(7)),
            "ms" => {
                assert_eq!((command.flag('C'), command.flag('E')), (Some("7"), Some("8")));
                assert_eq!(command.data, encoded(&lease(8), &key()));
                line("HD")
            }
            "md" => {
                assert_eq!(command.flag('C'), Some("8"));
                line("HD")
            }
            _ => unreachable!(),
        }
    })
    .await;
    let cache = to(&server).key_prefix("shop:").build().unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), Some(fence(7)));
    let replaced = cache.compare_exchange(&key(), Expected::Stamp(stamp(7)), Some(lease(8)), TTL).await;
    assert_eq!(replaced.unwrap(), Exchange::Stored);
    let removed = cache.compare_exchange(&key(), Expected::Stamp(stamp(8)), None, TTL).await;
    assert_eq!(removed.unwrap(), Exchange::Stored);
    assert_eq!(server.commands(), ["mg", "ms", "md"]);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn acquire_takes_one_round_trip_on_a_vacant_and_on_an_occupied_key() {
    let vacant = Server::start_for_batches_of(2, |command| match command.name() {
        "mg" => line("EN"),
        _ => {
            assert_eq!((command.flag('M'), command.flag('E')), (Some("E"), Some("1")));
            line("HD")
        }
    });
    let cache = to(&vacant.await).build().unwrap();
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Placed);
    let occupied = Server::start_for_batches_of(2, |command| match command.name() {
        "mg" => found(&fence(7)),
        _ => line("NS"),
    });
    let cache = to(&occupied.await).build().unwrap();
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Found(fence(7)));
}

#[tokio::test]
async fn acquire_places_a_lease_that_was_added_after_the_get_found_an_entry() {
    let server = Server::start(|command| match command.name() {
        "mg" => found(&fence(7)),
        _ => line("HD"),
    })
    .await;
    let cache = to(&server).build().unwrap();
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Placed);
}

#[tokio::test]
async fn acquire_finds_an_entry_that_came_between_its_two_commands() {
    let gets = AtomicUsize::new(0);
    let server = Server::start(move |command| match command.name() {
        "mg" if gets.fetch_add(1, Ordering::SeqCst) == 0 => line("EN"),
        "mg" => found(&fence(7)),
        _ => line("NS"),
    })
    .await;
    let cache = to(&server).build().unwrap();
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Found(fence(7)));
}

#[tokio::test]
async fn lost_exchange_returns_the_entry_that_is_there() {
    let server = Server::start(|command| match (command.name(), command.flag('M')) {
        ("mg", _) => found(&fence(7)),
        ("ms", Some(_)) => line("NS"),
        _ => line("EX"),
    })
    .await;
    let cache = to(&server).build().unwrap();
    for (expected, new) in [
        (Expected::Vacant, Some(lease(1))),
        (Expected::Vacant, None),
        (Expected::Stamp(stamp(1)), Some(lease(2))),
        (Expected::Stamp(stamp(1)), None),
    ] {
        let lost = cache.compare_exchange(&key(), expected, new, TTL).await.unwrap();
        assert_eq!(lost, Exchange::Lost(Some(fence(7))));
    }
}

#[tokio::test]
async fn exchange_lost_to_a_vacant_key_sends_no_second_command() {
    let server = Server::start(|_| line("NF")).await;
    let cache = to(&server).build().unwrap();
    for new in [Some(lease(2)), None] {
        let lost = cache.compare_exchange(&key(), Expected::Stamp(stamp(1)), new, TTL).await.unwrap();
        assert_eq!(lost, Exchange::Lost(None));
    }
    assert_eq!(server.commands(), ["ms", "md"]);
}

#[tokio::test]
async fn foreign_item_counts_as_vacant_and_only_that_item_is_replaced() {
    for foreign in [b"something else".as_slice(), b"", b"1"] {
        let server = Server::start(move |command| match (command.name(), command.flag('C')) {
            ("mg", _) => item(foreign, 5),
            ("ms", Some("5")) => line("HD"),
            ("ms", None) => line("NS"),
            _ => line("EX"),
        })
        .await;
        let (cache, key) = (to(&server).build().unwrap(), key());
        assert_eq!(cache.get(&key).await.unwrap(), None);
        assert_eq!(cache.acquire(&key, lease(1), TTL).await.unwrap(), Acquired::Placed);
        let exchange = |expected, new| cache.compare_exchange(&key, expected, new, TTL);
        assert_eq!(exchange(Expected::Vacant, Some(lease(2))).await.unwrap(), Exchange::Stored);
        assert_eq!(exchange(Expected::Vacant, None).await.unwrap(), Exchange::Stored);
        assert_eq!(exchange(Expected::Stamp(stamp(9)), Some(lease(2))).await.unwrap(), Exchange::Lost(None));
    }
}

#[tokio::test]
async fn exchange_over_an_item_that_keeps_changing_is_lost() {
    let server = Server::start(|command| line(if command.name() == "mg" { "EN" } else { "NS" })).await;
    let cache = to(&server).build().unwrap();
    let lost = cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), TTL).await.unwrap();
    assert_eq!(lost, Exchange::Lost(None));
    // A load has nothing to show and no lease, so it is told of the failure.
    let refused = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
    assert!(matches!(refused, CacheError::Refused(_)), "{refused}");
}

#[tokio::test]
async fn entry_of_another_key_is_an_error() {
    let other = encoded(&fence(7), &StoredKey::parse("another-key").unwrap());
    let server = Server::start(move |command| match command.name() {
        "mg" => item(&other, 7),
        _ => line("NS"),
    })
    .await;
    let cache = to(&server).build().unwrap();
    assert!(matches!(cache.get(&key()).await, Err(CacheError::WrongKey)));
    assert!(matches!(cache.acquire(&key(), lease(1), TTL).await, Err(CacheError::WrongKey)));
    let exchange = cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), TTL).await;
    assert!(matches!(exchange, Err(CacheError::WrongKey)));
}

#[tokio::test]
async fn ttl_is_sent_in_whole_seconds_and_never_too_short() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    const MONTH: u64 = 30 * 24 * 60 * 60;
    for (ttl, relative) in [
        (Duration::from_millis(1), Some(2)),
        (Duration::from_secs(60), Some(61)),
        (Duration::from_micros(60_000_001), Some(62)),
        (Duration::from_secs(MONTH - 1), Some(MONTH)),
        (Duration::from_secs(MONTH), None),
        (Duration::MAX, None),
    ] {
        let server = Server::start(move |command| {
            let sent: u64 = command.flag('T').unwrap().parse().unwrap();
            match relative {
                Some(seconds) => assert_eq!(sent, seconds),
                // memcached reads a TTL of more than thirty days as an instant.
                None => assert!(sent > now() + MONTH && u32::try_from(sent).is_ok(), "{sent}"),
            }
            line("HD")
        })
        .await;
        let cache = to(&server).build().unwrap();
        let stored = cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), ttl).await.unwrap();
        assert_eq!(stored, Exchange::Stored);
    }
}

#[tokio::test]
async fn ttl_of_zero_is_never_sent() {
    let server = Server::start(|command| match command.name() {
        "mg" => line("EN"),
        "md" => line("HD"),
        _ => panic!("to memcached, a TTL of zero means forever"),
    })
    .await;
    let cache = to(&server).build().unwrap();
    assert_eq!(cache.acquire(&key(), lease(1), Duration::ZERO).await.unwrap(), Acquired::Placed);
    for expected in [Expected::Vacant, Expected::Stamp(stamp(1))] {
        let stored = cache.compare_exchange(&key(), expected, Some(lease(2)), Duration::ZERO).await.unwrap();
        assert_eq!(stored, Exchange::Stored);
    }
}

#[tokio::test]
async fn too_large_entry_is_not_sent_and_the_entry_before_is_removed() {
    let server = Server::start(|command| match (command.name(), command.flag('C')) {
        ("mg", _) => found(&fence(8)),
        ("md", Some("7")) => line("HD"),
        ("md", _) => line("EX"),
        _ => panic!("a server that receives too large an item drops the one before"),
    })
    .await;
    let (cache, key) = (to(&server).max_entry_bytes(1000).build().unwrap(), key());
    assert_eq!(cache.properties().max_entry_bytes, 1000);
    let exchange = |expected| cache.compare_exchange(&key, expected, Some(value(9, 1000)), TTL);
    for expected in [Expected::Stamp(stamp(7)), Expected::Vacant] {
        let refused = exchange(expected).await.unwrap_err();
        assert!(matches!(refused, CacheError::Refused(_)), "{refused}");
    }
    // Another writer's fence stays.
    assert_eq!(exchange(Expected::Stamp(stamp(6))).await.unwrap(), Exchange::Lost(Some(fence(8))));
    assert_eq!(server.commands(), ["md", "md", "mg"]);
}

#[tokio::test]
async fn error_of_the_server_is_a_refusal_of_this_call_or_of_all() {
    for (answer, says, concerns_every_call) in [
        ("SERVER_ERROR out of memory storing object", "out of memory", false),
        ("CLIENT_ERROR invalid flag", "1.6.27", true),
        ("CLIENT_ERROR unauthenticated", "without -Y", true),
        ("ERROR", "1.6.27", true),
    ] {
        let server = Server::start(move |command| match command.name() {
            "mg" => line("EN"),
            _ => Reply::Close(format!("{answer}\r\n").into_bytes()),
        })
        .await;
        let cache = to(&server).build().unwrap();
        let exchange = cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), TTL).await;
        for refused in [exchange.unwrap_err(), cache.acquire(&key(), lease(1), TTL).await.unwrap_err()] {
            let is_expected = match refused {
                CacheError::Refused(_) => !concerns_every_call,
                CacheError::Unusable(_) => concerns_every_call,
                _ => false,
            };
            assert!(is_expected, "{refused:?}");
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }
}

#[tokio::test]
async fn server_that_knows_no_command_is_unusable_for_loads_too() {
    let server = Server::start_for_batches_of(2, |_| Reply::Close(b"ERROR\r\n".to_vec())).await;
    let refused = to(&server).build().unwrap().acquire(&key(), lease(1), TTL).await.unwrap_err();
    assert!(matches!(refused, CacheError::Unusable(_)), "{refused:?}");
    assert!(refused.to_string().contains("1.6.27"), "{refused}");
}

#[tokio::test]
async fn error_for_the_get_of_an_acquire_leaves_its_outcome_unknown() {
    let server =
        Server::start_for_batches_of(2, |_| Reply::Close(b"SERVER_ERROR no memory\r\n".to_vec())).await;
    let cache = to(&server).build().unwrap();
    let ambiguous = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
    assert!(matches!(ambiguous, CacheError::Unknown(_)), "{ambiguous}");
}

#[tokio::test]
async fn broken_connection_leaves_the_outcome_unknown_and_is_replaced() {
    let broken = AtomicBool::new(false);
    let server = Server::start(move |_| match broken.swap(true, Ordering::SeqCst) {
        false => Reply::Close(b"H".to_vec()),
        true => line("HD"),
    })
    .await;
    let (cache, key) = (to(&server).build().unwrap(), key());
    let exchange = || cache.compare_exchange(&key, Expected::Vacant, Some(lease(1)), TTL);
    let ambiguous = exchange().await.unwrap_err();
    assert!(matches!(ambiguous, CacheError::Unknown(_)), "{ambiguous}");
    assert_eq!(server.commands(), ["ms"], "it was sent again by itself");
    assert_eq!(exchange().await.unwrap(), Exchange::Stored);
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn server_that_does_not_answer_is_unknown_after_the_response_timeout() {
    let server = Server::start(|_| Reply::Silence).await;
    let cache = to(&server).response_timeout(Duration::from_millis(20)).build().unwrap();
    let ambiguous = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
    assert!(matches!(ambiguous, CacheError::Unknown(_)), "{ambiguous}");
    let unanswered = cache.get(&key()).await.unwrap_err();
    for error in [ambiguous, unanswered] {
        assert!(!format!("{error} {error:?}").contains("the-stored-key"), "{error:?}");
    }
}

#[tokio::test]
async fn errors_show_no_payload() {
    let server = Server::start(|_| line("the-payload")).await;
    let error = to(&server).build().unwrap().get(&key()).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("the-payload"), "{error:?}");
}

#[tokio::test]
async fn server_that_is_down_is_unavailable_until_it_is_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let cache = MemcachedCache::builder().servers([address.to_string()]).build().unwrap();
    for _ in 0..3 {
        let unavailable = cache.get(&key()).await.unwrap_err();
        assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
        assert!(unavailable.to_string().contains(&address.to_string()), "{unavailable}");
    }
    let _server = Server::start_on(TcpListener::bind(address).await.unwrap(), |_| line("EN"));
    assert_eq!(cache.get(&key()).await.unwrap(), None);
}

#[tokio::test]
async fn keys_of_a_server_that_is_down_stay_with_it() {
    let up = Server::start(|_| line("EN")).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let down = listener.local_addr().unwrap().to_string();
    drop(listener);
    let cache = MemcachedCache::builder().servers([&up.address, &down]).build().unwrap();
    let mut of_the_other = 0;
    for number in 0..100 {
        let key = StoredKey::parse(&format!("key-{number}")).unwrap();
        for _ in 0..2 {
            match cache.get(&key).await {
                Ok(None) => {}
                Err(CacheError::Unavailable(_)) => of_the_other += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(up.commands().len() + of_the_other, 200);
    assert!((50..150).contains(&of_the_other), "{of_the_other} of 200");
    assert_eq!(of_the_other % 2, 0, "a key changed its server");
}

#[test]
fn wrong_options_are_refused_without_showing_the_url() {
    let builder = || MemcachedCache::builder();
    for (builder, says) in [
        (builder().url("redis://host/"), "redis"),
        (builder().url("memcache:s3cr3t"), "redis://"),
        (builder().url("memcache://user:s3cr3t@host/"), "passwords"),
        (builder().url("memcache://host/1"), "databases"),
        (builder().url("memcache://host/?s3cr3t"), "unknown parameter"),
        (builder().url("memcache://host/?max_entry_bytes=s3cr3t"), "max_entry_bytes"),
        (builder().url("memcache://a,,b"), "host"),
        (builder().servers(["host:port"]), "host"),
        (builder().servers(["::1"]), "brackets"),
        (builder().servers(Vec::<String>::new()), "servers"),
        (builder().key_prefix("with space"), "key_prefix"),
        (builder().key_prefix("p".repeat(187)), "186"),
        (builder().max_connections(0), "max_connections"),
    ] {
        let error = builder.clone().build().unwrap_err();
        let shown = format!("{error} {error:?} {builder:?}");
        assert!(shown.contains(says), "{shown}");
        assert!(!shown.contains("s3cr3t"), "{shown}");
    }
}

/// Starts three servers without entries. Returns them and the cache on them.
async fn three() -> (Vec<Server>, MemcachedCache) {
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::start(|_| line("EN")).await);
    }
    let cache = MemcachedCache::builder().servers(servers.iter().map(|server| &server.address)).build();
    (servers, cache.unwrap())
}

fn keys() -> impl Iterator<Item = StoredKey> {
    (0..100).map(|number| StoredKey::parse(&format!("key-{number}")).unwrap())
}

#[tokio::test]
async fn commands_go_to_the_server_that_cache_server_returns() {
    let (servers, cache) = three().await;
    assert_eq!(cache.properties().servers, 3);
    let mut expected = [0; 3];
    for key in keys() {
        cache.get(&key).await.unwrap();
        expected[cache.server(&key)] += 1;
    }
    assert_eq!([0, 1, 2].map(|number| servers[number].commands().len()), expected);
    assert!(expected.iter().all(|count| *count > 20), "{expected:?}");
}

#[test]
fn single_server_has_every_key() {
    let cache = MemcachedCache::builder().build().unwrap();
    assert_eq!(cache.properties().servers, 1);
    assert!(keys().all(|key| cache.server(&key) == 0));
}

#[tokio::test]
async fn hanging_server_delays_no_call_to_the_others() {
    // It accepts connections and sends nothing.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (servers, _) = three().await;
    let addresses =
        [hanging.local_addr().unwrap().to_string(), servers[1].address.clone(), servers[2].address.clone()];
    let limit = Duration::from_millis(200);
    // Few enough connections for the hanging calls to use all of them.
    let cache = MemcachedCache::builder().servers(addresses).response_timeout(limit).max_connections(4);
    let cache = cache.build().unwrap();
    let dead = keys().find(|key| cache.server(key) == 0).unwrap();
    let calls = (0..20).map(|_| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get(&dead).await })
    });
    let calls: Vec<_> = calls.collect();
    for key in keys().filter(|key| cache.server(key) != 0) {
        let begun = Instant::now();
        assert_eq!(cache.get(&key).await.unwrap(), None);
        assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    }
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
}
