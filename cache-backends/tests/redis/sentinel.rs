//! Redis Sentinel: finding the master that it names, and the next one after a failover.

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_backends::redis::{RedisCache, RedisCacheBuilder, SentinelError};
use session_core::{Acquired, Cache, CacheError};
use tokio::net::TcpListener;

use crate::server::{Reply, Server, bulk, error, nil, ok, text};
use crate::{TTL, fence, key, lease, name};

/// Starts a server that calls itself a master, or a replica, and has the fence of this number.
async fn server(role: &'static str, number: u64) -> Server {
    server_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), role, number)
}

fn server_on(listener: TcpListener, role: &'static str, number: u64) -> Server {
    Server::start_on(listener, move |command| match name(command).as_str() {
        "ROLE" => array(&[role]),
        _ => bulk(&fence(number).encode(&key())),
    })
}

/// Starts a sentinel that names the master at this port, or none if the port is 0.
async fn sentinel(master: &Arc<AtomicU16>) -> Server {
    let master = Arc::clone(master);
    Server::start(move |command| {
        let question: Vec<_> = command.iter().map(|argument| text(argument)).collect();
        assert_eq!(question, ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "sessions"]);
        match master.load(Ordering::SeqCst) {
            0 => nil(),
            port => array(&["127.0.0.1", &port.to_string()]),
        }
    })
    .await
}

fn array(texts: &[&str]) -> Reply {
    let parts = texts.iter().map(|text| format!("${}\r\n{text}\r\n", text.len()));
    Reply::Bytes(format!("*{}\r\n{}", texts.len(), parts.collect::<String>()).into_bytes())
}

fn at(server: &Server) -> Arc<AtomicU16> {
    Arc::new(AtomicU16::new(server.port))
}

fn by(ports: &[u16]) -> RedisCacheBuilder {
    let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    RedisCache::builder().url(format!("redis+sentinel://{}/sessions", hosts.join(",")))
}

/// Returns a port on which no server listens.
async fn deserted() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn number_there(cache: &RedisCache) -> Option<u64> {
    let found = cache.get(&key()).await.ok()??;
    (1..10).find(|number| found == fence(*number))
}

/// Waits until the cache finds the fence of this number.
async fn finds(cache: &RedisCache, number: u64) {
    let find = async {
        while number_there(cache).await != Some(number) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), find).await.expect("it goes to the new master");
}

fn sentinel_error(error: &CacheError) -> &SentinelError {
    error.source().unwrap().downcast_ref().unwrap_or_else(|| panic!("{error:?}"))
}

#[tokio::test]
async fn first_call_asks_and_one_connection_to_each_serves_all_callers() {
    let master = server("master", 1).await;
    let sentinels = [sentinel(&at(&master)).await, sentinel(&at(&master)).await];
    let cache = by(&[sentinels[0].port, sentinels[1].port]).build().unwrap();
    tokio::task::yield_now().await;
    assert_eq!((master.connections(), sentinels[0].connections()), (0, 0));
    let callers = (0..100).map(|_| {
        let cache = cache.clone();
        tokio::spawn(async move { number_there(&cache).await })
    });
    for caller in callers.collect::<Vec<_>>() {
        assert_eq!(caller.await.unwrap(), Some(1));
    }
    let connections = [&master, &sentinels[0], &sentinels[1]].map(Server::connections);
    assert_eq!(connections, [1, 1, 1], "to the master, and to each sentinel");
}

#[tokio::test]
async fn majority_of_sentinels_is_enough_without_waiting_for_the_others() {
    let master = server("master", 1).await;
    let silent = Server::start(|_| Reply::Silence).await;
    let up = [sentinel(&at(&master)).await, sentinel(&at(&master)).await, sentinel(&at(&master)).await];
    let ports = [silent.port, deserted().await, up[0].port, up[1].port, up[2].port];
    // A cache that waited for the silent sentinel would wait this long.
    let forever = Duration::from_secs(3600);
    let cache = by(&ports).connect_timeout(forever).response_timeout(forever).build().unwrap();
    let found = tokio::time::timeout(Duration::from_secs(60), cache.get(&key())).await;
    assert_eq!(found.expect("it does not wait").unwrap(), Some(fence(1)));
}

#[tokio::test]
async fn single_answering_sentinel_is_enough() {
    let master = server("master", 1).await;
    let silent = Server::start(|_| Reply::Silence).await;
    let up = sentinel(&at(&master)).await;
    let cache = by(&[silent.port, deserted().await, up.port])
        .response_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    finds(&cache, 1).await;
}

#[tokio::test]
async fn sentinel_that_is_cut_off_is_outvoted() {
    // The former master still calls itself a master.
    let (former, master) = (server("master", 1).await, server("master", 2).await);
    let sentinels =
        [sentinel(&at(&former)).await, sentinel(&at(&master)).await, sentinel(&at(&master)).await];
    for _ in 0..20 {
        let cache = by(&sentinels.each_ref().map(|sentinel| sentinel.port)).build().unwrap();
        assert_eq!(number_there(&cache).await, Some(2));
    }
    assert_eq!(former.connections(), 0);
}

#[tokio::test]
async fn server_that_calls_itself_master_is_used_if_sentinels_disagree() {
    for roles in [["slave", "master"], ["master", "slave"]] {
        // With a tie, either server may be tried first. In one of the two rounds, that is the wrong one.
        let mut listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        listeners.sort_by_key(|listener| listener.local_addr().unwrap().port());
        let [low, high] = listeners;
        let servers = [server_on(low, roles[0], 1), server_on(high, roles[1], 2)];
        let sentinels = [sentinel(&at(&servers[0])).await, sentinel(&at(&servers[1])).await];
        let cache = by(&sentinels.each_ref().map(|sentinel| sentinel.port)).build().unwrap();
        let expected = if roles[0] == "master" { 1 } else { 2 };
        assert_eq!(number_there(&cache).await, Some(expected));
    }
}

#[tokio::test]
async fn named_server_that_is_no_master_is_not_used() {
    let replica = server("slave", 1).await;
    let master = server("master", 2).await;
    let named = at(&replica);
    let sentinel = sentinel(&named).await;
    let cache = by(&[sentinel.port]).build().unwrap();
    let unavailable = cache.get(&key()).await.unwrap_err();
    assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
    let address = format!("127.0.0.1:{}", replica.port);
    assert_eq!(*sentinel_error(&unavailable), SentinelError::NotMaster { address });
    assert_eq!(replica.commands(), ["ROLE"]);
    named.store(master.port, Ordering::SeqCst);
    assert_eq!(number_there(&cache).await, Some(2));
}

#[tokio::test]
async fn master_that_is_down_is_unavailable_until_another_is_named() {
    let master = server("master", 2).await;
    let named = Arc::new(AtomicU16::new(deserted().await));
    let sentinel = sentinel(&named).await;
    let cache = by(&[sentinel.port]).build().unwrap();
    let unavailable = cache.get(&key()).await.unwrap_err();
    assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
    assert!(unavailable.to_string().contains(&named.load(Ordering::SeqCst).to_string()), "{unavailable}");
    named.store(master.port, Ordering::SeqCst);
    assert_eq!(number_there(&cache).await, Some(2));
}

#[tokio::test]
async fn master_that_became_a_replica_is_left_for_the_named_one() {
    let demoted = Arc::new(AtomicBool::new(false));
    let is_replica = Arc::clone(&demoted);
    let former = Server::start(move |command| match name(command).as_str() {
        "ROLE" if is_replica.load(Ordering::SeqCst) => array(&["slave"]),
        "ROLE" => array(&["master"]),
        "SET" if is_replica.load(Ordering::SeqCst) => {
            error("READONLY You can't write against a read only replica.")
        }
        _ => nil(),
    })
    .await;
    let master = server("master", 2).await;
    let named = at(&former);
    let sentinel = sentinel(&named).await;
    let cache = by(&[sentinel.port]).build().unwrap();
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Placed);
    demoted.store(true, Ordering::SeqCst);
    // The sentinels still name the former master, so calls neither write nor read.
    let refused = cache.acquire(&key(), lease(1), TTL).await.unwrap_err();
    assert!(matches!(refused, CacheError::Unavailable(_)), "{refused}");
    assert!(matches!(cache.get(&key()).await, Err(CacheError::Unavailable(_))));
    named.store(master.port, Ordering::SeqCst);
    assert_eq!(cache.acquire(&key(), lease(1), TTL).await.unwrap(), Acquired::Found(fence(2)));
}

#[tokio::test]
async fn master_that_hangs_is_left_for_the_named_one() {
    let hangs = Arc::new(AtomicBool::new(false));
    let is_hanging = Arc::clone(&hangs);
    let former = Server::start(move |command| match name(command).as_str() {
        _ if is_hanging.load(Ordering::SeqCst) => Reply::Silence,
        "ROLE" => array(&["master"]),
        _ => bulk(&fence(1).encode(&key())),
    })
    .await;
    let master = server("master", 2).await;
    let named = at(&former);
    let sentinels = [sentinel(&named).await, sentinel(&named).await, sentinel(&named).await];
    let cache = by(&sentinels.each_ref().map(|sentinel| sentinel.port))
        .response_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    assert_eq!(number_there(&cache).await, Some(1));
    hangs.store(true, Ordering::SeqCst);
    named.store(master.port, Ordering::SeqCst);
    // The connection stays open, and the server sends nothing.
    finds(&cache, 2).await;
}

#[tokio::test]
async fn master_is_kept_while_no_sentinel_answers() {
    let master = server("master", 1).await;
    let gone = Arc::new(AtomicBool::new(false));
    let asked_again = Arc::new(tokio::sync::Notify::new());
    let (is_gone, asks, port) = (Arc::clone(&gone), Arc::clone(&asked_again), master.port);
    let sentinel = Server::start(move |_| {
        if is_gone.load(Ordering::SeqCst) {
            asks.notify_one();
            return Reply::Close(Vec::new());
        }
        array(&["127.0.0.1", &port.to_string()])
    })
    .await;
    let cache = by(&[sentinel.port]).build().unwrap();
    assert_eq!(number_there(&cache).await, Some(1));
    gone.store(true, Ordering::SeqCst);
    crate::eventually(&asked_again).await;
    crate::eventually(&asked_again).await;
    assert_eq!(number_there(&cache).await, Some(1));
    assert_eq!(master.connections(), 1);
}

#[tokio::test]
async fn error_names_the_service_that_no_sentinel_knows() {
    let unknown = Arc::new(AtomicU16::new(0));
    let sentinels = [sentinel(&unknown).await, sentinel(&unknown).await];
    let cache = by(&[sentinels[0].port, sentinels[1].port]).build().unwrap();
    let refused = cache.get(&key()).await.unwrap_err();
    assert!(matches!(refused, CacheError::Unusable(_)), "{refused}");
    assert_eq!(*sentinel_error(&refused), SentinelError::UnknownService { service: "sessions".into() });
    assert!(refused.to_string().contains("\"sessions\""), "{refused}");
}

#[tokio::test]
async fn sentinels_are_unreachable_until_one_is_up() {
    let port = deserted().await;
    let cache = by(&[port]).build().unwrap();
    let unavailable = cache.get(&key()).await.unwrap_err();
    assert!(matches!(unavailable, CacheError::Unavailable(_)), "{unavailable}");
    assert!(matches!(sentinel_error(&unavailable), SentinelError::Unreachable { .. }), "{unavailable}");
    assert!(unavailable.to_string().contains(&format!("127.0.0.1:{port}")), "{unavailable}");
    let master = server("master", 1).await;
    let master_port = master.port;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let _sentinel = Server::start_on(listener, move |_| array(&["127.0.0.1", &master_port.to_string()]));
    assert_eq!(number_there(&cache).await, Some(1));
}

#[tokio::test]
async fn server_that_is_no_sentinel_is_a_refusal() {
    let server =
        Server::start(|_| error("ERR unknown command 'SENTINEL', with args beginning with: 'x' ")).await;
    let refused = by(&[server.port]).build().unwrap().get(&key()).await.unwrap_err();
    assert!(matches!(refused, CacheError::Unusable(_)), "{refused}");
    assert!(matches!(sentinel_error(&refused), SentinelError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("unknown command"), "{refused}");
}

#[tokio::test]
async fn sentinels_and_master_receive_their_own_passwords_only() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let listen = |who: &'static str, reply: Box<dyn Fn() -> Reply + Send + Sync>| {
        let said = Arc::clone(&said);
        Server::start(move |command| match name(command).as_str() {
            "AUTH" => {
                let words: Vec<_> = command.iter().map(|argument| text(argument)).collect();
                said.lock().unwrap().push(format!("{who}: {}", words.join(" ")));
                ok()
            }
            "ROLE" => array(&["master"]),
            _ => reply(),
        })
    };
    let master = listen("master", Box::new(nil)).await;
    let port = master.port;
    let sentinel = listen("sentinel", Box::new(move || array(&["127.0.0.1", &port.to_string()]))).await;
    let host = format!("127.0.0.1:{}", sentinel.port);
    let url = format!(
        "redis+sentinel://app:s3cr3t%40@{host}/sessions?sentinel_username=watcher&sentinel_password=s3cr3t%26"
    );
    let builder = RedisCache::builder().url(url);
    let cache = builder.build().unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(*said.lock().unwrap(), ["sentinel: AUTH watcher s3cr3t&", "master: AUTH app s3cr3t@"]);
    let builder = by(&[sentinel.port]).sentinel_password("s3cr3t");
    let shown = format!("{builder:?} {:?} {cache:?}", builder.clone().build().unwrap());
    assert!(!shown.contains("s3cr3t"), "{shown}");
    said.lock().unwrap().clear();
    assert_eq!(builder.build().unwrap().get(&key()).await.unwrap(), None);
    assert_eq!(*said.lock().unwrap(), ["sentinel: AUTH s3cr3t"]);
}

#[tokio::test]
async fn wrong_password_for_the_sentinels_is_refused_and_not_shown() {
    let server = Server::start(|command| match name(command).as_str() {
        "AUTH" => error("WRONGPASS invalid username-password pair"),
        _ => error("NOAUTH Authentication required."),
    })
    .await;
    for builder in [by(&[server.port]), by(&[server.port]).sentinel_password("s3cr3t")] {
        let refused = builder.build().unwrap().get(&key()).await.unwrap_err();
        assert!(matches!(sentinel_error(&refused), SentinelError::Refused { .. }), "{refused}");
        assert!(matches!(refused, CacheError::Unusable(_)), "{refused}");
        let shown = format!("{refused} {refused:?}");
        assert!(shown.contains(&server.port.to_string()) && !shown.contains("s3cr3t"), "{shown}");
    }
}

#[tokio::test]
async fn database_of_the_url_is_selected_on_the_master() {
    let selected = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&selected);
    let master = Server::start(move |command| match name(command).as_str() {
        "SELECT" => {
            log.lock().unwrap().push(text(&command[1]));
            ok()
        }
        "ROLE" => array(&["master"]),
        _ => nil(),
    })
    .await;
    let sentinel = sentinel(&at(&master)).await;
    let url = format!("redis+sentinel://127.0.0.1:{}/sessions/3", sentinel.port);
    assert_eq!(RedisCache::builder().url(url).build().unwrap().get(&key()).await.unwrap(), None);
    assert_eq!(*selected.lock().unwrap(), ["3"]);
}

#[test]
fn wrong_urls_are_refused_without_showing_them() {
    for (url, says) in [
        ("redis+sentinel://:s3cr3t@host/", "mymaster"),
        ("redis+sentinel://:s3cr3t@host", "mymaster"),
        ("redis+sentinel://host/mymaster#s3cr3t", "mymaster"),
        ("redis+sentinel:///mymaster?sentinel_password=s3cr3t", "URL"),
        ("redis+sentinel://:s3cr3t@host:port/mymaster", "URL"),
        ("redis+sentinel://:s3cr3t@host/mymaster/s3cr3t", "database"),
        ("redis+sentinel://host/mymaster?sentinel_user=s3cr3t", "sentinel_username"),
        ("redis+sentinel://host/mymaster?sentinel_username=s3cr3t", "sentinel_password"),
        ("redis+sentinel://host/mymaster?db=1", "in the path"),
        ("redis://host/?sentinel_password=s3cr3t", "redis+sentinel"),
        ("redis+cluster://host/?sentinel_password=s3cr3t", "redis+sentinel"),
    ] {
        if url.contains("cluster") && !cfg!(feature = "redis-cluster") {
            continue;
        }
        let error = RedisCache::builder().url(url).build().expect_err(url);
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(says), "{url}: {shown}");
        assert!(!shown.contains("s3cr3t"), "{url}: {shown}");
    }
    for url in ["redis+sentinel://[::1],[::1]:26380,host/mymaster", "valkey+sentinel://host/my.master/1"] {
        RedisCache::builder().url(url).build().expect(url);
    }
}
