//! A cluster: the choice of the node for a command, and the calls to the other nodes while one does not
//! answer.

use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use tokio::time::timeout;

use super::*;

/// The ranges of slots of three nodes. They begin and end with groups of slots, so that [`Cache::server`]
/// shows which node has a key.
const RANGES: [(u16, u16); 3] = [(0, 5_375), (5_376, 10_751), (10_752, 16_383)];

/// The time limit of calls to a node that does not answer.
const PATIENCE: Duration = Duration::from_millis(200);

/// Returns the node that has `key`.
fn owner(cache: &RedisCache, key: &StoredKey) -> usize {
    let slot = cache.server(key) * (16_384 / cache.properties().servers);
    RANGES
        .iter()
        .position(|(first, last)| (usize::from(*first)..=usize::from(*last)).contains(&slot))
        .unwrap()
}

/// Returns a key of the node with this number.
fn key_on(cache: &RedisCache, node: usize) -> StoredKey {
    let keys = (0..1_000).map(|number| StoredKey::parse(&format!("key-{number}")).unwrap());
    keys.into_iter().find(|key| owner(cache, key) == node).unwrap()
}

/// Returns the reply to `CLUSTER SLOTS` where the ranges belong to the nodes with these numbers.
fn slots(ports: &[u16], owners: [usize; 3]) -> Reply {
    let mut text = "*3\r\n".to_owned();
    for ((first, last), owner) in RANGES.iter().zip(owners) {
        text += &format!("*3\r\n:{first}\r\n:{last}\r\n*3\r\n$9\r\n127.0.0.1\r\n:{}\r\n", ports[owner]);
        text += "$3\r\nid-\r\n";
    }
    Reply::Bytes(text.into_bytes())
}

async fn listeners() -> (Vec<TcpListener>, Vec<u16>) {
    let mut listeners = Vec::new();
    for _ in RANGES {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let ports = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    (listeners, ports)
}

/// Starts three nodes. `owners` returns the owners of the ranges as one node sees them, and `handler` a
/// node's reply to any command but `CLUSTER SLOTS`.
async fn cluster(
    owners: impl Fn(usize) -> [usize; 3] + Clone + Send + Sync + 'static,
    handler: impl Fn(usize, &Command) -> Reply + Clone + Send + Sync + 'static,
) -> Vec<Server> {
    let (listeners, ports) = listeners().await;
    let start = |(node, listener)| {
        let (owners, handler, ports) = (owners.clone(), handler.clone(), ports.clone());
        Server::start_on(listener, move |command: &Command| match name(command).as_str() {
            "CLUSTER" => slots(&ports, owners(node)),
            _ => handler(node, command),
        })
    };
    listeners.into_iter().enumerate().map(start).collect()
}

fn on(ports: impl IntoIterator<Item = u16>) -> RedisCacheBuilder {
    let hosts = ports.into_iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    let builder = RedisCache::builder().url(format!("redis+cluster://{hosts}/"));
    builder.response_timeout(PATIENCE).connect_timeout(PATIENCE)
}

fn of(nodes: &[Server]) -> RedisCache {
    on(nodes.iter().map(|node| node.port)).build().unwrap()
}

fn gets(node: &Server) -> usize {
    node.commands().iter().filter(|name| *name == "GET").count()
}

#[tokio::test]
async fn commands_go_to_the_node_that_has_the_slot() {
    let nodes = cluster(|_| [0, 1, 2], |_, _| nil()).await;
    let cache = of(&nodes);
    let mut expected = [0; 3];
    for number in 0..100 {
        let key = StoredKey::parse(&format!("key-{number}")).unwrap();
        cache.get(&key).await.unwrap();
        expected[owner(&cache, &key)] += 1;
    }
    assert_eq!([0, 1, 2].map(|node| gets(&nodes[node])), expected);
    assert!(expected.iter().all(|count| *count > 20), "{expected:?}");
}

#[test]
fn text_in_braces_chooses_the_server() {
    let number = |prefix: &str, key: &str| {
        let cache = on([7000]).key_prefix(prefix).build().unwrap();
        cache.server(&StoredKey::parse(key).unwrap())
    };
    assert_eq!(number("{shop}:", "a"), number("{shop}:", "b"));
    assert_eq!(number("", "{user}a"), number("x", "{user}b"));
    assert_ne!(number("{}", "a"), number("{}", "b"));
    // `CLUSTER KEYSLOT` returns 12182 and 5061.
    assert_eq!((number("", "foo"), number("", "bar")), (12_182 / 256, 5_061 / 256));
}

#[tokio::test]
async fn hanging_node_delays_no_call_to_the_others() {
    let (listeners, ports) = listeners().await;
    // The hanging node accepts connections and sends nothing. The cache has no connection to any node yet.
    let mut nodes = Vec::new();
    let mut hanging = None;
    for (number, listener) in listeners.into_iter().enumerate() {
        let ports = ports.clone();
        if number == 1 {
            hanging = Some(listener);
        } else {
            nodes.push(Server::start_on(listener, move |command: &Command| match name(command).as_str() {
                "CLUSTER" => slots(&ports, [0, 1, 2]),
                _ => nil(),
            }));
        }
    }
    let cache = on(ports).build().unwrap();
    let dead = key_on(&cache, 1);
    let calls = (0..20).map(|_| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get(&dead).await })
    });
    let calls: Vec<_> = calls.collect();
    for _ in 0..20 {
        for node in [0, 2] {
            let begun = Instant::now();
            assert_eq!(cache.get(&key_on(&cache, node)).await.unwrap(), None);
            assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        }
    }
    for call in calls {
        let unavailable = call.await.unwrap().unwrap_err();
        assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
    }
    drop(hanging);
}

#[tokio::test]
async fn moved_slot_is_followed_and_then_known() {
    // The first node never learns that the slot has moved.
    let has_moved = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&has_moved);
    let owners = move |node| if node != 0 && seen.load(Ordering::SeqCst) { [2, 1, 2] } else { [0, 1, 2] };
    let (moved, port) = (Arc::clone(&has_moved), Arc::new(AtomicUsize::new(0)));
    let to = Arc::clone(&port);
    let nodes = cluster(owners, move |node, _| {
        if node == 0 && moved.load(Ordering::SeqCst) {
            return error(&format!("MOVED 5 127.0.0.1:{}", to.load(Ordering::SeqCst)));
        }
        nil()
    })
    .await;
    port.store(nodes[2].port.into(), Ordering::SeqCst);
    let cache = of(&nodes);
    let key = key_on(&cache, 0);
    assert_eq!(cache.get(&key).await.unwrap(), None);
    has_moved.store(true, Ordering::SeqCst);
    let mut redirected = gets(&nodes[0]);
    // The cache learns the map in the background, from most of the masters.
    loop {
        assert_eq!(cache.get(&key).await.unwrap(), None);
        let now = gets(&nodes[0]);
        if now == redirected {
            break;
        }
        redirected = now;
        tokio::task::yield_now().await;
    }
    assert!(gets(&nodes[2]) >= 2);
}

#[tokio::test]
async fn migrating_key_is_read_at_its_new_node() {
    let port = Arc::new(AtomicUsize::new(0));
    let to = Arc::clone(&port);
    let nodes = cluster(
        |_| [0, 1, 2],
        move |node, command| match (node, name(command).as_str()) {
            (0, _) => error(&format!("ASK 5 127.0.0.1:{}", to.load(Ordering::SeqCst))),
            (_, "ASKING") => ok(),
            _ => nil(),
        },
    )
    .await;
    port.store(nodes[2].port.into(), Ordering::SeqCst);
    let cache = of(&nodes);
    let key = key_on(&cache, 0);
    assert_eq!(cache.acquire(&key, lease(1), TTL).await.unwrap(), Acquired::Placed);
    let commands = nodes[2].commands();
    assert!(commands.ends_with(&["ASKING".into(), "SET".into()]), "{commands:?}");
}

#[tokio::test]
async fn replica_replaces_a_silent_master_even_if_no_caller_waits() {
    let is_over = Arc::new(AtomicBool::new(false));
    let (seen, silent) = (Arc::clone(&is_over), Arc::clone(&is_over));
    let owners = move |_| if seen.load(Ordering::SeqCst) { [2, 1, 2] } else { [0, 1, 2] };
    let nodes = cluster(owners, move |node, _| match node {
        0 if silent.load(Ordering::SeqCst) => Reply::Silence,
        _ => nil(),
    })
    .await;
    let cache = of(&nodes);
    let key = key_on(&cache, 0);
    assert_eq!(cache.get(&key).await.unwrap(), None);
    is_over.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    // Wait for a fraction of the response timeout, as a store does.
    while timeout(PATIENCE / 4, cache.get(&key)).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the new master is not found");
    }
}

#[tokio::test]
async fn slots_that_no_node_has_are_unavailable() {
    let server = Server::start(|command| match name(command).as_str() {
        "CLUSTER" => Reply::Bytes(b"*0\r\n".to_vec()),
        _ => unreachable!(),
    })
    .await;
    let unavailable = on([server.port]).build().unwrap().get(&key()).await.unwrap_err();
    assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
}

#[tokio::test]
async fn cluster_whose_nodes_have_all_changed_addresses_is_found_by_its_name() {
    let (before, after) =
        (cluster(|_| [0, 1, 2], |_, _| nil()).await, cluster(|_| [0, 1, 2], |_, _| nil()).await);
    // The name stands for another node each time, and for none of the masters.
    let (old, new) = ([0, 1, 2].map(|node| before[node].port), [0, 1, 2].map(|node| after[node].port));
    let has_moved = Arc::new(AtomicBool::new(false));
    let moved = Arc::clone(&has_moved);
    let seed = Server::start(move |command| match name(command).as_str() {
        "CLUSTER" if moved.load(Ordering::SeqCst) => slots(&new, [0, 1, 2]),
        "CLUSTER" => slots(&old, [0, 1, 2]),
        _ => unreachable!(),
    })
    .await;
    let url = format!("redis+cluster://localhost:{}/", seed.port);
    let cache = RedisCache::builder().url(url).response_timeout(PATIENCE).connect_timeout(PATIENCE);
    let cache = cache.build().unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    has_moved.store(true, Ordering::SeqCst);
    for node in &before {
        node.stop();
    }
    let begun = Instant::now();
    while cache.get(&key()).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the name is not asked again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
