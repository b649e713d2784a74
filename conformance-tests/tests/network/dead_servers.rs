//! One of several servers of a cache is down: calls to the others succeed as fast as before, and the server
//! is used again as soon as it is back.

use std::time::{Duration, Instant};

use cache_backends::memcached::MemcachedCache;
use cache_backends::redis::RedisCache;
use conformance_tests::proxy::Mode;
use futures_util::future::join_all;
use session_core::{Acquired, Cache, Entry, Stamp, StoredKey};

use crate::failover::{ask, until};
use crate::{Link, Links};

/// The number of keys, enough for every server to have some.
const KEYS: usize = 120;

/// The longest time of a call to a healthy server, on a busy machine.
const QUICK: Duration = Duration::from_millis(300);

/// The time within which a server that is back must be used again.
const BACK_WITHIN: Duration = Duration::from_secs(1);

/// The time for which a master hangs.
const PAUSE: Duration = Duration::from_secs(4);

const TTL: Duration = Duration::from_secs(60);

fn keys() -> Vec<StoredKey> {
    (0..KEYS).map(|_| StoredKey::parse(&format!("{:016x}", fastrand::u64(..))).unwrap()).collect()
}

fn lease() -> Entry {
    Entry::lease(Stamp(std::num::NonZeroU64::new(fastrand::u64(1..)).unwrap()))
}

/// Calls all keys at once. Those whose server is `dead` must fail, and the others succeed fast.
async fn assert_only_the_dead_fail<C: Cache>(cache: &C, keys: &[(StoredKey, bool)]) {
    let calls = keys.iter().map(|(key, is_dead)| async move {
        let begun = Instant::now();
        (cache.get(key).await, begun.elapsed(), *is_dead)
    });
    let outcomes = join_all(calls).await;
    let dead = outcomes.iter().filter(|(_, _, is_dead)| *is_dead).count();
    assert!((KEYS / 6..KEYS / 2).contains(&dead), "{dead} of {KEYS} keys on one server of three");
    for (outcome, took, is_dead) in outcomes {
        if is_dead {
            assert!(outcome.is_err(), "a server that is down has answered");
        } else {
            assert!(outcome.is_ok(), "{outcome:?} by a healthy server");
            assert!(took < QUICK, "a healthy server took {took:?}");
        }
    }
}

async fn all_succeed<C: Cache>(cache: &C, keys: &[(StoredKey, bool)]) {
    for outcome in join_all(keys.iter().map(|(key, _)| cache.get(key))).await {
        outcome.expect("all servers are healthy");
    }
}

/// Waits until a key of the dead server is found again. It calls now and then, as a store would.
async fn is_back<C: Cache>(cache: &C, keys: &[(StoredKey, bool)], since: Instant) {
    let (key, _) = keys.iter().find(|(_, is_dead)| *is_dead).expect("the server has keys");
    while cache.get(key).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = Instant::now().saturating_duration_since(since);
    assert!(took < BACK_WITHIN, "the server was back for {took:?} before it was used");
    all_succeed(cache, keys).await;
}

pub async fn memcached_server_of_three_that_is_down_fails_its_own_keys_only(links: &Links) {
    // The first is reached through the proxy.
    let (first, others) = (links.get("memcached"), links.get("memcached-two"));
    let url =
        format!("{},{}", first.url.trim_end_matches('/'), others.direct.trim_start_matches("memcache://"));
    let open = || MemcachedCache::builder().url(&url).build().unwrap();
    let cache = open();
    assert_eq!(cache.properties().servers, 3);
    let keys: Vec<_> = keys().into_iter().map(|key| (key, cache.server(&key) == 0)).collect();
    for mode in [Mode::Reset, Mode::Hold, Mode::BlackHole, Mode::Deaf] {
        all_succeed(&cache, &keys).await;
        first.proxy.set(mode);
        assert_only_the_dead_fail(&cache, &keys).await;
        // The same holds for a cache that was never connected to it.
        assert_only_the_dead_fail(&open(), &keys).await;
        first.proxy.set(Mode::Pass);
        is_back(&cache, &keys, Instant::now()).await;
    }
}

/// The masters of a cluster, each of which serves its keys without the others.
struct Masters(Vec<u16>);

impl Masters {
    async fn of(link: &Link) -> Self {
        let hosts = link.direct.trim_start_matches("redis+cluster://").trim_end_matches('/');
        let ports = hosts.split(',').map(|host| host.rsplit_once(':').unwrap().1.parse().unwrap());
        let masters = Self(ports.collect());
        for port in &masters.0 {
            for (name, value) in [("cluster-require-full-coverage", "no"), ("cluster-node-timeout", "1000")] {
                ask::<()>(*port, &["CONFIG", "SET", name, value]).await.expect("the server accepts it");
            }
        }
        masters
    }

    async fn slot(&self, key: &StoredKey) -> u16 {
        let name = format!("session:{}", key.as_str());
        ask(self.0[1], &["CLUSTER", "KEYSLOT", &name]).await.expect("the server answers")
    }

    /// Returns keys, and whether the first master has each.
    async fn keys(&self, cache: &RedisCache) -> Vec<(StoredKey, bool)> {
        let nodes: String = ask(self.0[0], &["CLUSTER", "NODES"]).await.expect("the server answers");
        let myself = nodes.lines().find(|line| line.contains("myself")).expect("a node lists itself");
        // The cluster was made with one range of slots for each master.
        let (begin, end) = myself.rsplit(' ').next().and_then(|slots| slots.split_once('-')).unwrap();
        let first = begin.parse::<u16>().unwrap()..=end.parse().unwrap();
        let mut keys = Vec::new();
        for key in self::keys() {
            let slot = self.slot(&key).await;
            let servers = cache.properties().servers;
            assert_eq!(
                cache.server(&key),
                usize::from(slot) * servers / 16_384,
                "another slot than Redis has"
            );
            keys.push((key, first.contains(&slot)));
        }
        keys
    }
}

fn open(link: &Link) -> RedisCache {
    RedisCache::builder().url(&link.direct).build().unwrap()
}

pub async fn cluster_master_that_hangs_fails_its_own_keys_only(links: &Links) {
    let link = links.only();
    let masters = Masters::of(link).await;
    let cache = open(link);
    let keys = masters.keys(&cache).await;
    all_succeed(&cache, &keys).await;
    // The master accepts connections, but answers nothing.
    let begun = Instant::now();
    let millis = PAUSE.as_millis().to_string();
    ask::<()>(masters.0[0], &["CLIENT", "PAUSE", &millis, "ALL"]).await.expect("the server accepts it");
    assert_only_the_dead_fail(&cache, &keys).await;
    assert_only_the_dead_fail(&open(link), &keys).await;
    assert!(begun.elapsed() < PAUSE, "the machine is too busy for this test");
    is_back(&cache, &keys, begun + PAUSE).await;
}

pub async fn cluster_master_that_dies_fails_its_own_keys_only(links: &Links) {
    let link = links.only();
    let masters = Masters::of(link).await;
    let cache = open(link);
    let keys = masters.keys(&cache).await;
    all_succeed(&cache, &keys).await;
    assert!(ask::<()>(masters.0[0], &["SHUTDOWN", "NOSAVE", "NOW", "FORCE"]).await.is_none(), "it answered");
    assert_only_the_dead_fail(&cache, &keys).await;
    assert_only_the_dead_fail(&open(link), &keys).await;
    until("the others know that it is dead", || async {
        let info: Option<String> = ask(masters.0[1], &["CLUSTER", "INFO"]).await;
        info.is_some_and(|text| !text.contains("cluster_slots_fail:0"))
    })
    .await;
    assert_only_the_dead_fail(&cache, &keys).await;
    assert_only_the_dead_fail(&open(link), &keys).await;
}

pub async fn slot_that_moves_to_another_master_is_followed(links: &Links) {
    let link = links.only();
    let masters = Masters::of(link).await;
    let cache = open(link);
    let keys = masters.keys(&cache).await;
    let (key, _) = keys.iter().find(|(_, is_first)| *is_first).expect("the server has keys");
    let new = StoredKey::parse(&format!("{{session:{}}}", key.as_str())).unwrap();
    // No prefix, so that both keys are in one slot.
    let beside = RedisCache::builder().url(&link.direct).key_prefix("").build().unwrap();
    assert_eq!(beside.server(&new), cache.server(key));
    let (old, slot) = (lease(), masters.slot(key).await.to_string());
    assert_eq!(cache.acquire(key, old.clone(), TTL).await.unwrap(), Acquired::Placed);
    let [from, to] = [masters.0[0], masters.0[1]];
    let [from_id, to_id] = [
        ask::<String>(from, &["CLUSTER", "MYID"]).await.unwrap(),
        ask::<String>(to, &["CLUSTER", "MYID"]).await.unwrap(),
    ];
    ask::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await.unwrap();
    ask::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await.unwrap();
    // The present key stays where it is, and a new one goes to the new master.
    assert_eq!(cache.get(key).await.unwrap(), Some(old.clone()));
    let placed = lease();
    assert_eq!(beside.acquire(&new, placed.clone(), TTL).await.unwrap(), Acquired::Placed);
    assert_eq!(beside.get(&new).await.unwrap(), Some(placed.clone()));
    let (port, name) = (to.to_string(), format!("session:{}", key.as_str()));
    ask::<()>(from, &["MIGRATE", "127.0.0.1", &port, &name, "0", "5000"]).await.unwrap();
    assert_eq!(cache.get(key).await.unwrap(), Some(old.clone()));
    for port in [to, from] {
        ask::<()>(port, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await.unwrap();
    }
    assert_eq!(cache.get(key).await.unwrap(), Some(old));
    assert_eq!(beside.get(&new).await.unwrap(), Some(placed));
}
