//! Near caches whose channel is lost, or cannot be had.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cache_backends::moka::MokaCache;
use cache_backends::near::near;
use cache_backends::redis::RedisCache;
use cache_backends::redis::driver::{Client, cmd};
use conformance_tests::proxy::Mode;
use db_backends::sqlite::SqlitePersistence;
use session_cached_db::CachedDb;
use session_core::{CacheError, NoticeSource as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{BOUND, Ignored, Nodes, login, memory_does_not_answer, node, open, read, warm, write};
use crate::failover::{Group, ask, until};
use crate::{Links, address};

/// The channel is cut, and a change is made before the next one is open.
pub async fn memory_is_forgotten_with_its_channel(links: &Links) {
    let link = links.only();
    let nodes = Nodes::before(link).await;
    let cookie = login(&nodes.here).await;
    let client = Client::open(&*link.direct).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    for n in 1..=10 {
        warm(&nodes.there, &cookie, n - 1).await;
        let forgotten = nodes.there.stats().near_forgotten;
        let _: i64 =
            cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").query_async(&mut admin).await.unwrap();
        write(&nodes.here, &cookie, n).await;
        tokio::time::sleep(BOUND).await;
        assert_eq!(read(&nodes.there, &cookie).await, Some(n), "memory has outlived its channel");
        warm(&nodes.there, &cookie, n).await;
        assert!(nodes.there.stats().near_forgotten > forgotten);
    }
}

/// A flush of the server is reported as a change of everything.
pub async fn flushed_server_leaves_nothing_in_memory(links: &Links) {
    let link = links.only();
    let nodes = Nodes::before(link).await;
    let cookie = login(&nodes.here).await;
    warm(&nodes.there, &cookie, 0).await;
    let client = Client::open(&*link.direct).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let forgotten = nodes.there.stats().near_forgotten;
    let _: String = cmd("FLUSHALL").query_async(&mut admin).await.unwrap();
    let begun = Instant::now();
    while nodes.there.stats().near_forgotten == forgotten {
        assert!(begun.elapsed() < Duration::from_secs(10), "the flush was not reported");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    warm(&nodes.there, &cookie, 0).await;
}

/// The name leads to another server, which is empty, as after a restart.
pub async fn server_that_is_replaced_is_told_apart(links: &Links) {
    let (old, new) = (links.get("redis"), links.get("valkey"));
    let nodes = Nodes::before(old).await;
    let cookie = login(&nodes.there).await;
    warm(&nodes.there, &cookie, 0).await;
    nodes.proxy.lead_to(address(&new.direct));
    nodes.proxy.set(Mode::Reset);
    write(&nodes.there, &cookie, 1).await;
    assert_eq!(read(&nodes.there, &cookie).await, Some(1));
    nodes.proxy.set(Mode::Pass);
    warm(&nodes.there, &cookie, 1).await;
    let mut session = open(&nodes.there, &cookie).await;
    session.flush().await.unwrap();
    assert_eq!(read(&nodes.there, &cookie).await, None);
}

/// A user without the right to track keys has a shared cache, and no memory in front of it.
pub async fn forbidden_tracking_costs_memory_and_no_session(links: &Links) {
    let link = links.only();
    let admin_url = link.direct.replace("sessions:", ":");
    let client = Client::open(admin_url).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let _: String = cmd("ACL")
        .arg("SETUSER")
        .arg("sessions")
        .arg("-client|tracking")
        .query_async(&mut admin)
        .await
        .unwrap();
    let nodes = Nodes::before(link).await;
    let cookie = login(&nodes.here).await;
    for _ in 0..10 {
        assert_eq!(read(&nodes.here, &cookie).await, Some(0));
    }
    let stats = nodes.here.stats();
    assert!(stats.near_hits == 0 && stats.hits >= 9, "{stats:?}");
    open(&nodes.here, &cookie).await.flush().await.unwrap();
    assert_eq!(read(&nodes.there, &cookie).await, None);
}

/// A server that is made a replica answers everything as before, and hears of changes late.
pub async fn server_that_is_made_a_replica_is_a_lost_channel(links: &Links) {
    let link = links.only();
    let nodes = Nodes::before(link).await;
    let cookie = login(&nodes.there).await;
    warm(&nodes.there, &cookie, 0).await;
    let port = address(&link.direct).port();
    ask::<()>(port, &["REPLICAOF", "127.0.0.1", "1"]).await.expect("the server accepts it");
    tokio::time::sleep(BOUND).await;
    memory_does_not_answer(&nodes.there, &cookie, Some(0)).await;
    ask::<()>(port, &["REPLICAOF", "NO", "ONE"]).await.expect("the server accepts it");
    warm(&nodes.there, &cookie, 0).await;
}

pub async fn failover_by_sentinels_is_another_channel(links: &Links) {
    let link = links.only();
    let group = Group::ready(link).await;
    let nodes = Nodes::before(link).await;
    let cookie = login(&nodes.here).await;
    warm(&nodes.there, &cookie, 0).await;
    let (former, forgotten) =
        (group.master().await.expect("there is one"), nodes.there.stats().near_forgotten);
    group.fail_over().await;
    group.master_after(former).await;
    until("the channel to the former master is given up", || async {
        nodes.there.stats().near_forgotten > forgotten
    })
    .await;
    // A write that was lost with the former master may be shown for as long as any cache may; see `failover`.
    warm(&nodes.there, &cookie, 0).await;
    warm(&nodes.here, &cookie, 0).await;
    open(&nodes.here, &cookie).await.flush().await.expect("no request fails");
    assert_eq!(read(&nodes.there, &cookie).await, None, "a session that was ended is shown");
}

/// A server that refuses RESP3 as those do that speak RESP2 only: it is asked for a version of the protocol that it does not
/// know.
async fn without_resp3(server: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut questions, mut client) = client.into_split();
            let (mut answers, mut to_server) =
                tokio::net::TcpStream::connect(server).await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut client).await });
            tokio::spawn(async move {
                let mut chunk = vec![0; 16 << 10];
                while let Ok(read @ 1..) = questions.read(&mut chunk).await {
                    let asks = |bytes: &[u8]| bytes == HELLO_3;
                    if let Some(at) = chunk[..read].windows(HELLO_3.len()).position(asks) {
                        chunk[at + HELLO_3.len() - 1] = b'9';
                    }
                    to_server.write_all(&chunk[..read]).await.unwrap();
                }
            });
        }
    });
    address
}

const HELLO_3: &[u8] = b"HELLO\r\n$1\r\n3";

pub async fn server_that_speaks_resp2_only_costs_memory_and_no_session(links: &Links) {
    let old = without_resp3(address(&links.only().direct)).await;
    let files = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", files.path().join("sessions.db").display());
    let url = format!("redis://{old}/");
    let redis = RedisCache::builder().url(&url).build().unwrap();
    let refused = redis.open_channel(Arc::new(Ignored)).await.map(drop).unwrap_err();
    assert!(matches!(&refused, CacheError::Unusable(_)), "{refused:?}");
    assert!(refused.to_string().contains("RESP3"), "{refused}");
    let node = node(&url, &database).await;
    let cookie = login(&node).await;
    for _ in 0..10 {
        assert_eq!(read(&node, &cookie).await, Some(0));
    }
    let stats = node.stats();
    assert!(stats.near_hits == 0 && stats.hits >= 9, "{stats:?}");
    open(&node, &cookie).await.flush().await.unwrap();
    assert_eq!(read(&node, &cookie).await, None);
}

/// Another store over the same near cache has one again.
pub async fn closed_store_has_no_channel(links: &Links) {
    let link = links.only();
    let client = Client::open(&*link.direct).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let mut tracking = async || {
        let all: String = cmd("CLIENT").arg("LIST").query_async(&mut admin).await.unwrap();
        // The flag of a connection that is told of changes.
        all.lines()
            .filter(|line| line.split(' ').any(|part| part.starts_with("flags=") && part.contains('t')))
            .count()
    };
    let redis = RedisCache::builder().url(&link.direct).build().unwrap();
    let cache = near(MokaCache::builder().build(), redis).with_freshness_bound(BOUND);
    let mut closed = Vec::new();
    for _ in 0..3 {
        let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
        let store = CachedDb::builder(cache.clone(), db).reaper(None).build().await.unwrap();
        let cookie = login(&store).await;
        warm(&store, &cookie, 0).await;
        // The server may still list that of the store before.
        let begun = Instant::now();
        while tracking().await != 1 {
            assert!(begun.elapsed() < Duration::from_secs(10), "one connection is told");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        store.close().await;
        let hits = store.stats().near_hits;
        assert_eq!(read(&store, &cookie).await, Some(0), "a closed store still reads");
        assert_eq!(store.stats().near_hits, hits, "memory answers that is told nothing");
        closed.push(store);
    }
    let begun = Instant::now();
    while tracking().await > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "a closed store has a channel");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
