//! The report on a server for an operator.

use std::sync::Arc;

use cache_backends::{Inspect, connect_to_inspect};
use session_core::{CacheError, Timestamp};

use crate::server::Server;

async fn answering(info: &str) -> (Server, Arc<dyn Inspect>) {
    let server = Server::start_with_info(&format!("${}\r\n{info}\r\n", info.len())).await;
    let cache = connect_to_inspect(&server.url()).unwrap();
    (server, cache)
}

#[tokio::test]
async fn inspect_reports_version_clock_memory_role_and_eviction() {
    let (_server, cache) = answering(
        "# Server\r\nredis_version:8.0.2\r\nserver_time_usec:1800000000123456\r\n# Memory\r\nused_memory:1000\r\n\
         maxmemory:2000\r\nmaxmemory_policy:allkeys-lru\r\n# Replication\r\nrole:master\r\nevicted_keys:7\r\n",
    )
    .await;
    let servers = cache.inspect().await.unwrap();
    assert_eq!(servers.len(), 1);
    let server = &servers[0];
    assert_eq!(server.version.as_deref(), Some("Redis 8.0.2"));
    assert_eq!(server.clock, Some(Timestamp::from_micros(1_800_000_000_123_456)));
    assert_eq!((server.used_bytes, server.max_bytes, server.evicted), (Some(1000), Some(2000), Some(7)));
    assert_eq!(server.eviction.as_deref(), Some("allkeys-lru"));
    assert!(!server.evicts_fences_first && !server.is_replica);
}

#[tokio::test]
async fn inspect_reports_a_replica_and_that_fences_are_evicted_first() {
    let (_server, cache) = answering(
        "redis_version:7.2.4\r\nvalkey_version:8.1.3\r\nmaxmemory:0\r\nmaxmemory_policy:volatile-ttl\r\nrole:slave\r\n",
    )
    .await;
    let servers = cache.inspect().await.unwrap();
    let server = &servers[0];
    assert_eq!(server.version.as_deref(), Some("Valkey 8.1.3"));
    assert!(server.evicts_fences_first && server.is_replica);
    assert_eq!((server.clock, server.max_bytes), (None, None));
}

#[tokio::test]
async fn inspect_fails_with_the_error_of_a_server_that_refuses() {
    let server =
        Server::start_with_info("-NOPERM this user has no permissions to run the 'info' command\r\n").await;
    let error = connect_to_inspect(&server.url()).unwrap().inspect().await.unwrap_err();
    assert!(matches!(error, CacheError::Unusable(_)), "{error:?}");
    assert!(error.to_string().contains("NOPERM"), "{error}");
}

#[tokio::test]
async fn inspect_judges_the_version() {
    for (info, is_too_old) in [
        ("redis_version:6.2.14", true),
        ("redis_version:7.0.0", false),
        ("redis_version:6.2.0\r\nvalkey_version:7.2.5", false),
    ] {
        let (_server, cache) = answering(info).await;
        assert_eq!(cache.inspect().await.unwrap()[0].needed_version.is_some(), is_too_old, "{info}");
    }
}
