//! Servers that refuse every call, or that must not be asked: each is told apart from one that refuses one call, and
//! the error says what to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cache_backends::redis::RedisCache;
use session_core::{Acquired, Cache as _, CacheError, Expected};

use crate::server::{Reply, Server, bulk, error, hello, nil, text};
use crate::{TTL, fence, key, lease, name, to};

const UNKNOWN: &str = "ERR unknown command 'HELLO', with args beginning with: ";

#[tokio::test]
async fn refusal_that_concerns_every_call_is_unusable_and_says_what_to_do() {
    for (answer, advice) in [
        ("NOAUTH Authentication required.", "set a password"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "check the user and the password"),
        ("NOPERM User app has no permissions to run the 'evalsha' command", "+eval +evalsha"),
        ("NOPERM No permissions to access a key", "the cache's prefix"),
        ("ERR ACL failure in script: User app has no permissions to run the 'set' command", "+set"),
        ("ERR The user executing the script can't run this command or subcommand script: b0d6", "+set"),
        ("ERR unknown command 'EVALSHA', with args beginning with: 'x' ", "Redis 7.0 or newer"),
        ("ERR unknown command `EVALSHA`, with args beginning with: `x`, ", "Redis 7.0 or newer"),
        ("ERR syntax error", "Redis 7.0 or newer"),
        ("DENIED Redis is running in protected mode", "protected mode"),
    ] {
        let server = Server::start(move |_| error(answer)).await;
        let cache = to(&server).build().unwrap();
        let got = cache.get(&key()).await.unwrap_err();
        let acquired = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
        let exchanged =
            cache.compare_exchange(&key(), Expected::Vacant, Some(lease(1)), TTL).await.unwrap_err();
        for error in [got, acquired, exchanged] {
            assert!(matches!(error, CacheError::Unusable(_)), "{answer}: {error:?}");
            assert!(error.to_string().contains(advice), "{error} does not say {advice}");
        }
    }
}

#[tokio::test]
async fn server_with_too_many_clients_is_unavailable() {
    let server = Server::start(|_| error("ERR max number of clients reached")).await;
    let error = to(&server).build().unwrap().get(&key()).await.unwrap_err();
    assert!(matches!(error, CacheError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn old_redis_is_unusable_and_others_of_any_version_are_used() {
    for (program, version, is_usable) in [
        ("redis", "6.2.14", false),
        ("redis", "5.0.7", false),
        ("redis", "7.0.0", true),
        ("redis", "10.1.0", true),
        ("valkey", "7.2.5", true),
        ("another", "1.0", true),
    ] {
        let server = Server::start_with_hello(move || hello(program, version, "master"), |_| nil()).await;
        match to(&server).build().unwrap().get(&key()).await {
            Ok(found) => assert_eq!((found, is_usable), (None, true), "{program} {version}"),
            Err(error) => {
                assert!(
                    matches!(error, CacheError::Unusable(_)) && !is_usable,
                    "{program} {version}: {error:?}"
                );
                let shown = error.to_string();
                assert!(shown.contains(version) && shown.contains("upgrade"), "{shown}");
                assert!(server.commands().is_empty(), "{:?}", server.commands());
            }
        }
    }
}

#[tokio::test]
async fn replica_is_not_read_and_is_used_when_it_has_become_the_master() {
    let is_master = Arc::new(AtomicBool::new(false));
    let promoted = Arc::clone(&is_master);
    let role = move || if promoted.load(Ordering::SeqCst) { "master" } else { "slave" };
    let server = Server::start_with_hello(move || hello("redis", "8.0.2", role()), |_| nil()).await;
    let cache = to(&server).build().unwrap();
    for _ in 0..2 {
        let error = cache.get(&key()).await.unwrap_err();
        assert!(matches!(error, CacheError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("is a replica"), "{error}");
    }
    assert!(server.commands().is_empty(), "{:?}", server.commands());
    is_master.store(true, Ordering::SeqCst);
    assert_eq!(cache.get(&key()).await.unwrap(), None);
}

#[tokio::test]
async fn server_that_becomes_a_replica_is_left_and_not_read() {
    let is_replica = Arc::new(AtomicBool::new(false));
    let (demoted, answers) = (Arc::clone(&is_replica), Arc::clone(&is_replica));
    let role = move || if demoted.load(Ordering::SeqCst) { "slave" } else { "master" };
    let server = Server::start_with_hello(
        move || hello("redis", "8.0.2", role()),
        move |command| match name(command).as_str() {
            "GET" => bulk(&fence(7).encode(&key())),
            _ if answers.load(Ordering::SeqCst) => {
                error("READONLY You can't write against a read only replica.")
            }
            _ => bulk(&fence(7).encode(&key())),
        },
    )
    .await;
    let cache = to(&server).build().unwrap();
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Found(fence(7)));
    is_replica.store(true, Ordering::SeqCst);
    let refused = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
    assert!(matches!(refused, CacheError::Unavailable(_)), "{refused:?}");
    // The next call connects again, and finds a replica.
    let refused = cache.get(&key()).await.unwrap_err();
    assert!(refused.to_string().contains("is a replica"), "{refused}");
    assert_eq!(server.commands(), ["SET", "SET"], "the replica was read");
    is_replica.store(false, Ordering::SeqCst);
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Found(fence(7)));
}

#[tokio::test]
async fn role_is_asked_for_where_the_greeting_is_refused() {
    for greeting in [UNKNOWN, "NOPERM User app has no permissions to run the 'hello' command"] {
        let (role, is_usable) = (Arc::new(AtomicUsize::new(0)), [false, true, true]);
        let answer = Arc::clone(&role);
        let server = Server::start_with_hello(
            move || error(greeting),
            move |command| match (text(&command[0]).as_str(), answer.load(Ordering::SeqCst)) {
                ("ROLE", 0) => Reply::Bytes(b"*1\r\n$5\r\nslave\r\n".to_vec()),
                ("ROLE", 1) => Reply::Bytes(b"*1\r\n$6\r\nmaster\r\n".to_vec()),
                ("ROLE", _) => error("NOPERM User app has no permissions to run the 'role' command"),
                _ => nil(),
            },
        )
        .await;
        for (number, is_usable) in is_usable.into_iter().enumerate() {
            role.store(number, Ordering::SeqCst);
            let answer = to(&server).build().unwrap().get(&key()).await;
            assert_eq!(answer.is_ok(), is_usable, "{greeting}, {number}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn password_that_is_missing_is_noticed_by_the_greeting() {
    let greeting = || error("NOAUTH HELLO must be called with the client already authenticated");
    let server = Server::start_with_hello(greeting, |_| nil()).await;
    let error = RedisCache::builder().url(server.url()).build().unwrap().get(&key()).await.unwrap_err();
    assert!(matches!(error, CacheError::Unusable(_)), "{error:?}");
    assert!(error.to_string().contains("set a password"), "{error}");
}
