//! Caches that are reached by a literal IPv6 address, and logins whose password needs encoding in a URL.

use std::net::SocketAddr;

use conformance_tests::proxy::Proxy;

use crate::trouble::{ask, hits_again, login, logs_out, redis, request, store};
use crate::{Link, Links, address};

async fn by_ipv6(server: SocketAddr) -> Proxy {
    Proxy::at("[::1]:0".parse().unwrap(), server).await.expect("this machine has IPv6")
}

/// Uses the cache of this URL: for a write, a hit and a logout.
async fn is_used(url: &str) {
    let store = store(url).await;
    let (cookie, ended) = (login(&store).await, login(&store).await);
    assert_eq!(request(&store, &cookie).await, 1);
    hits_again(&store, &cookie, 1).await;
    logs_out(&store, &ended).await;
    let stats = store.stats();
    assert_eq!((stats.cache_errors, stats.degraded_writes), (0, 0), "{stats:?}");
}

async fn redis_is_reached(link: &Link) {
    let password = "p@s:s/w?o#r%d&[,]+= \u{e9}";
    let user = ["ACL", "SETUSER", "us@er", "on", &format!(">{password}"), "~*", "+@all"];
    ask::<()>(&mut redis(link).await, &user).await;
    let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let proxy = by_ipv6(address(&link.direct)).await;
    is_used(&format!("redis://us%40er:{encoded}@{}/", proxy.address())).await;
    assert!(proxy.connections() > 0);
}

pub async fn redis_is_reached_by_ipv6_with_a_password_of_any_characters(links: &Links) {
    redis_is_reached(links.only()).await;
}

pub async fn valkey_is_reached_by_ipv6_with_a_password_of_any_characters(links: &Links) {
    redis_is_reached(links.only()).await;
}

/// One server, and several.
pub async fn memcached_servers_are_reached_by_ipv6(links: &Links) {
    let servers = links.only().direct.trim_start_matches("memcache://").to_owned();
    let mut proxies = Vec::new();
    for server in servers.split(',') {
        proxies.push(by_ipv6(server.parse().unwrap()).await);
    }
    is_used(&format!("memcache://{}", proxies[0].address())).await;
    assert!(proxies[0].connections() > 0 && proxies[1].connections() == 0);
    let hosts: Vec<_> = proxies.iter().map(|proxy| proxy.address().to_string()).collect();
    // Enough sessions for both.
    for _ in 0..20 {
        is_used(&format!("memcache://{}", hosts.join(","))).await;
    }
    assert!(proxies[1].connections() > 0);
}
