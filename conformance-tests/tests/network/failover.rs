//! The cost of a failover by Redis Sentinel: reads of the database, and never a request. Two nodes share a
//! database and the cache that the sentinels name, and work on the same sessions all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cache_backends::Inspect;
use cache_backends::redis::driver::{Client, FromRedisValue, Value, cmd};
use conformance_tests::proxy::Mode;
use db_backends::sqlite::SqlitePersistence;
use session_cached_db::{CachedDb, Coherence};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::trouble::{Store, login, read};
use crate::{Link, Links};

/// The name of the master among the sentinels.
const SERVICE: &str = "sessions";

/// Settings that make a failover begin by itself, and the sentinels quick: they check every second instead of
/// every ten, they leave a former master alone for two seconds instead of eight, and a busy machine does not
/// make them pause for half a minute.
const SETTINGS: [&[&str]; 2] = [
    &["SENTINEL", "SET", SERVICE, "down-after-milliseconds", "1000"],
    &["SENTINEL", "DEBUG", "info-period", "1000", "publish-period", "500", "tilt-period", "1000"],
];

/// The maximum age of what a cache may show.
const MAX_CACHE_AGE: Duration = Duration::from_secs(2);

/// The tolerance for a process that the machine did not run in time.
const SLACK: Duration = Duration::from_millis(500);

/// The maximum time that the test waits for an event that must come.
const EVENT_TIMEOUT: Duration = Duration::from_secs(90);

const SESSIONS: usize = 3;

/// Asks a server over a new connection, because an old one may be broken by now.
pub(crate) async fn ask<T: FromRedisValue>(port: u16, words: &[&str]) -> Option<T> {
    let client = Client::open(format!("redis://127.0.0.1:{port}/")).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.ok()?;
    let mut command = cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async(&mut connection).await.ok()
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < EVENT_TIMEOUT, "timed out waiting until {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A master, a replica, and sentinels.
pub(crate) struct Group {
    sentinels: Vec<u16>,
}

impl Group {
    /// Waits until a failover is possible, by itself and soon.
    pub(crate) async fn ready(link: &Link) -> Self {
        let hosts = link.direct.trim_start_matches("redis+sentinel://").trim_end_matches("/sessions");
        let sentinels = hosts.split(',').map(|host| host.rsplit_once(':').unwrap().1.parse().unwrap());
        let group = Self { sentinels: sentinels.collect() };
        for sentinel in &group.sentinels {
            until("every sentinel knows all others and the replica", || async {
                let all: Option<String> = ask(*sentinel, &["SENTINEL", "CKQUORUM", SERVICE]).await;
                let info: Option<String> = ask(*sentinel, &["INFO", "sentinel"]).await;
                all.is_some_and(|text| text.starts_with("OK 3"))
                    && info.is_some_and(|text| {
                        text.contains("status=ok") && text.contains("slaves=1,sentinels=3")
                    })
            })
            .await;
            for set in SETTINGS {
                ask::<()>(*sentinel, set).await.expect("the sentinel takes it");
            }
        }
        group
    }

    /// Returns the master, if all sentinels agree on it.
    pub(crate) async fn master(&self) -> Option<u16> {
        let mut named = None;
        for sentinel in &self.sentinels {
            let (_, port): (String, u16) =
                ask(*sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).await?;
            if *named.get_or_insert(port) != port {
                return None;
            }
        }
        named
    }

    /// Waits until all sentinels name a new master, and returns it.
    pub(crate) async fn master_after(&self, former: u16) -> u16 {
        until("another master is named", || async {
            self.master().await.is_some_and(|master| master != former)
        })
        .await;
        self.master().await.unwrap()
    }

    pub(crate) async fn fail_over(&self) {
        until("the sentinels can fail over", || async {
            ask::<()>(self.sentinels[0], &["SENTINEL", "FAILOVER", SERVICE]).await.is_some()
        })
        .await;
    }
}

/// Returns the role that the server on this port reports.
async fn role(port: u16) -> Option<String> {
    let Value::Array(answer) = ask::<Value>(port, &["ROLE"]).await? else { return None };
    String::from_redis_value(answer.into_iter().next()?).ok()
}

async fn is_replica(port: u16) -> bool {
    role(port).await.as_deref() == Some("slave")
}

/// Two nodes, and the sessions that they share.
struct Nodes {
    stores: [Store; 2],
    /// The cache of each node.
    caches: [Arc<dyn Inspect>; 2],
    cookies: Vec<String>,
    _directory: TempDir,
}

impl Nodes {
    async fn on(cache_url: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("sessions.db").display());
        let caches = [(); 2].map(|()| cache_backends::connect_to_inspect(cache_url).unwrap());
        let stores = [store(&url, &caches[0]).await, store(&url, &caches[1]).await];
        let mut cookies = Vec::new();
        for _ in 0..SESSIONS {
            cookies.push(login(&stores[0]).await);
        }
        Self { stores, caches, cookies, _directory: directory }
    }

    /// Starts requests on all sessions, until they are stopped.
    fn work(&self) -> Work {
        let is_over = Arc::new(AtomicBool::new(false));
        let work = |cookie: &String| work(self.stores.clone(), cookie.clone(), Arc::clone(&is_over));
        let tasks = self.cookies.iter().map(|cookie| tokio::spawn(work(cookie))).collect();
        Work { tasks, is_over }
    }

    /// Waits until both nodes have moved to the master on this port.
    async fn are_on(&self, master: u16) {
        for cache in &self.caches {
            until("both nodes are on the new master", || async {
                let address =
                    cache.inspect().await.ok().and_then(|servers| servers.into_iter().next()?.address);
                address == Some(format!("127.0.0.1:{master}"))
            })
            .await;
        }
    }

    /// Waits until both nodes have moved to the master on this port, and shows what the way there cost.
    async fn move_to(&self, master: u16, what: &str, begun: Instant) {
        self.are_on(master).await;
        let took = begun.elapsed();
        let degraded: u64 = self.stores.iter().map(|store| store.stats().degraded_writes).sum();
        eprintln!("{what}: both nodes use the new master after {took:?}; {degraded} writes degraded so far");
    }

    /// Checks that each node sees at once, in the cache, what the other writes.
    async fn are_coherent(&self) {
        // Entries that were lost with the old master are too old to be served now.
        sleep(MAX_CACHE_AGE + SLACK).await;
        let [first, second] = &self.stores;
        for cookie in &self.cookies {
            for (writer, reader) in [(first, second), (second, first)] {
                until("writes are fenced, and read as hits", || async {
                    let before = reader.stats();
                    let n = read(writer, cookie).await.expect("the session is there") + 1;
                    let coherence = write(writer, cookie, n).await;
                    let seen = read(reader, cookie).await;
                    assert!(seen == Some(n) || coherence == Coherence::Degraded, "{seen:?} instead of {n}");
                    coherence == Coherence::Coherent && reader.stats().hits > before.hits
                })
                .await;
            }
        }
    }
}

async fn store(url: &str, cache: &Arc<dyn Inspect>) -> Store {
    let db = SqlitePersistence::connect(url).await.unwrap();
    CachedDb::builder(Arc::clone(cache) as _, db)
        .reaper(None)
        .max_cache_age(MAX_CACHE_AGE)
        // A fence whose removal was lost with the old master keeps its key out of the cache for this long.
        .write_timeout(Duration::from_secs(5))
        .fence_ttl(Duration::from_secs(18))
        .cache_timeout(Duration::from_millis(250))
        .probe_interval(Duration::from_millis(50))
        .build()
        .await
        .unwrap()
}

async fn write(store: &Store, cookie: &str, n: u32) -> Coherence {
    let mut session = store.open(cookie).await.expect("no request fails");
    session.insert("n", n).unwrap();
    session.save().await.expect("no request fails")
}

struct Work {
    tasks: Vec<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
}

impl Work {
    /// Ends the requests. Panics if one has failed, or was shown something too old.
    async fn end(self) {
        self.is_over.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("no request fails, and none sees what is too old");
        }
    }
}

/// Increments a counter in a session on one node, and reads it on both.
async fn work(nodes: [Store; 2], cookie: String, is_over: Arc<AtomicBool>) {
    let mut n = read(&nodes[0], &cookie).await.expect("the session is there");
    let first = n;
    // The time at which each number was acknowledged.
    let mut acknowledged = vec![Instant::now()];
    while !is_over.load(Ordering::SeqCst) {
        for node in &nodes {
            let begun = Instant::now();
            let seen = read(node, &cookie).await.expect("the session is there");
            let old = acknowledged.partition_point(|at| begun.duration_since(*at) > MAX_CACHE_AGE + SLACK);
            let oldest = first + u32::try_from(old).unwrap().saturating_sub(1);
            assert!(seen >= oldest, "{seen} was read, long after {oldest} had been written");
        }
        // The next number does not come from a read, which may be old within bounds.
        n += 1;
        write(&nodes[0], &cookie, n).await;
        acknowledged.push(Instant::now());
        sleep(Duration::from_millis(5)).await;
    }
}

pub async fn dying_master_is_replaced_and_no_request_fails(links: &Links) {
    let link = links.only();
    let group = Group::ready(link).await;
    let former = group.master().await.expect("there is a master");
    // The proxy is on the way to the first sentinel.
    let nodes = Nodes::on(&link.url).await;
    nodes.are_on(former).await;
    nodes.are_coherent().await;
    let work = nodes.work();
    // The sentinel on the master's machine goes with it.
    link.proxy.set(Mode::Hold);
    let begun = Instant::now();
    assert!(ask::<()>(former, &["SHUTDOWN", "NOSAVE", "NOW", "FORCE"]).await.is_none(), "it answered");
    let master = group.master_after(former).await;
    nodes.move_to(master, "a dying master", begun).await;
    // It comes back first as a master without any data, which no node may use.
    until("the old master is a replica", || is_replica(former)).await;
    nodes.are_on(master).await;
    work.end().await;
    nodes.are_coherent().await;
    let errors = nodes.stores.each_ref().map(|store| store.stats().cache_errors);
    assert!(errors.iter().all(|errors| *errors > 0), "no fault had an effect: {errors:?}");
}

pub async fn living_master_that_is_replaced_is_left_and_found_again(links: &Links) {
    let link = links.only();
    let group = Group::ready(link).await;
    let nodes = Nodes::on(&link.direct).await;
    let former = group.master().await.expect("there is a master");
    nodes.are_on(former).await;
    let work = nodes.work();
    let begun = Instant::now();
    group.fail_over().await;
    let master = group.master_after(former).await;
    nodes.move_to(master, "a living master", begun).await;
    // It remains a master for some seconds, and accepts the writes of nodes that do not leave it.
    until("the old master is a replica", || is_replica(former)).await;
    work.end().await;
    nodes.are_coherent().await;
    let work = nodes.work();
    group.fail_over().await;
    assert_eq!(group.master_after(master).await, former);
    nodes.are_on(former).await;
    work.end().await;
    nodes.are_coherent().await;
}

pub async fn hanging_master_is_replaced_and_no_request_fails(links: &Links) {
    let link = links.only();
    let group = Group::ready(link).await;
    let nodes = Nodes::on(&link.direct).await;
    let former = group.master().await.expect("there is a master");
    nodes.are_on(former).await;
    let work = nodes.work();
    // Connections to it stay open, but nothing is answered on them.
    let begun = Instant::now();
    assert!(ask::<()>(former, &["DEBUG", "SLEEP", "600"]).await.is_none(), "it answered");
    let master = group.master_after(former).await;
    nodes.move_to(master, "a hanging master", begun).await;
    work.end().await;
    nodes.are_coherent().await;
    assert_eq!(role(former).await, None, "the former master still hangs");
}
