//! The time by which a reader on another node is behind, measured over processes.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use session_cached_db::cache_backends::redis::driver;
use session_cached_db::{CachedDb, NearCache, RedisCache, SqlitePersistence, near};

use crate::Effort;
use crate::figure::{Aim, Report};
use crate::sessions::moka;

/// The argument of a process that is a node. The rest is in its environment.
pub(crate) const CHILD: &str = "--staleness";
const ORDERS: &str = "BENCH_STALENESS";

/// The freshness bound: the default.
pub(crate) const BOUND: Duration = Duration::from_millis(100);

const PROCESSES: usize = 4;

/// Number of sessions that each process writes.
const SESSIONS: usize = 4;

/// Number of tasks of a process that read the sessions of the others.
const READERS: usize = 4;

/// The number of the latest acknowledgements that a session carries.
const ACKNOWLEDGED: usize = 64;

type Store = CachedDb<NearCache<RedisCache>, SqlitePersistence>;

/// Returns the cache behind the memories of all nodes.
pub(crate) fn shared(url: &str) -> RedisCache {
    RedisCache::builder().url(url).key_prefix("bench-near:").build().unwrap()
}

/// Nanoseconds of the clock that all processes of the machine share.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

pub(crate) async fn measure(url: &str, effort: Effort, report: &mut Report) {
    let dir = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}/bench.db", dir.path().display());
    let cookies = {
        let store = store(url, &database).await;
        let mut cookies = Vec::new();
        for _ in 0..PROCESSES * SESSIONS {
            let mut session = store.new_session();
            session.insert("n", 0).unwrap();
            let _ = session.save().await.unwrap();
            cookies.push(session.key().unwrap().expose().to_owned());
        }
        cookies
    };
    let lasts = if effort.rounds < Effort::FULL.rounds { 2_u64 } else { 10 };
    let children: Vec<_> = (0..PROCESSES)
        .map(|process| {
            let orders = json!({
                "url": url, "database": database, "cookies": cookies, "process": process, "seconds": lasts,
            });
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.arg(CHILD).env(ORDERS, orders.to_string()).stdout(Stdio::piped()).stderr(Stdio::inherit());
            child.spawn().unwrap()
        })
        .collect();
    let (mut reads, mut near_hits, mut saves, mut behind, mut pings) = (0, 0, 0, Vec::new(), Vec::new());
    for child in children {
        let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", output.status);
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |name: &str| printed[name].as_u64().unwrap();
        reads += number("reads");
        near_hits += number("near_hits");
        saves += number("saves");
        let times = |name: &str| -> Vec<u64> { serde_json::from_value(printed[name].clone()).unwrap() };
        behind.extend(times("behind"));
        pings.extend(times("pings"));
    }
    behind.sort_unstable();
    assert!(near_hits > reads / 4, "memory answered {near_hits} of {reads} loads, which proves little");
    // All other reads were behind nothing.
    let beyond = reads as usize / 1_000;
    let p999 = behind.len().checked_sub(beyond + 1).and_then(|index| behind.get(index)).copied().unwrap_or(0);
    let ms = |nanos: u64| nanos as f64 / 1_000_000.0;
    eprintln!(
        "near: {reads} loads, {near_hits} of them in memory, beside {saves} saves; {} were behind",
        behind.len()
    );
    let what = "milliseconds that a reader elsewhere is behind, 99.9th percentile, 4 processes";
    report.add("near_staleness_p999_ms", Aim::AtMost(10.0), what, vec![ms(p999)]);
    let what = "the same, maximum";
    let most = vec![ms(behind.last().copied().unwrap_or(0))];
    report.add("near_staleness_max_ms", Aim::AtMost(BOUND.as_secs_f64() * 1_000.0), what, most);
    pings.sort_unstable();
    let ping = pings.get(pings.len() - 1 - pings.len() / 1_000).copied().unwrap_or(0);
    let what = "milliseconds of a bare PING by the same processes meanwhile, 99.9th percentile";
    report.add("near_staleness_ping_p999_ms", Aim::None, what, vec![ms(ping)]);
}

async fn store(url: &str, database: &str) -> Store {
    let db = SqlitePersistence::connect(database).await.unwrap();
    CachedDb::builder(near(moka(), shared(url)), db).reaper(None).build().await.unwrap()
}

/// Writes and reads as one of the processes, and prints how far its reads were behind.
pub(crate) async fn measure_here() {
    let orders: Value = serde_json::from_str(&std::env::var(ORDERS).unwrap()).unwrap();
    let text = |name: &str| orders[name].as_str().unwrap().to_owned();
    let (process, seconds) =
        (orders["process"].as_u64().unwrap() as usize, orders["seconds"].as_u64().unwrap());
    let cookies: Vec<String> = serde_json::from_value(orders["cookies"].clone()).unwrap();
    let store = store(&text("url"), &text("database")).await;
    let until = now() + Duration::from_secs(seconds).as_nanos() as u64;
    let (own, others): (Vec<_>, Vec<_>) =
        cookies.into_iter().enumerate().partition(|(number, _)| number % PROCESSES == process);
    let others: Arc<Vec<String>> = Arc::new(others.into_iter().map(|(_, cookie)| cookie).collect());
    let writers: Vec<_> =
        own.into_iter().map(|(_, cookie)| tokio::spawn(write(store.clone(), cookie, until))).collect();
    let readers: Vec<_> =
        (0..READERS).map(|_| tokio::spawn(read(store.clone(), Arc::clone(&others), until))).collect();
    let pinging = tokio::spawn(ping(text("url"), until));
    let (mut saves, mut reads, mut behind) = (0, 0, Vec::new());
    for writer in writers {
        saves += writer.await.unwrap();
    }
    for reader in readers {
        let (more, late) = reader.await.unwrap();
        reads += more;
        behind.extend(late);
    }
    let near_hits = store.stats().near_hits;
    let pings = pinging.await.unwrap();
    println!(
        "{}",
        json!({ "reads": reads, "near_hits": near_hits, "saves": saves, "behind": behind, "pings": pings })
    );
}

/// Pings the server on a connection of its own. Returns the times, in nanoseconds: how soon a process hears anything from it,
/// with the machine as busy as it is.
async fn ping(url: String, until: u64) -> Vec<u64> {
    let client = driver::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut times = Vec::new();
    while now() < until {
        let begun = now();
        let () = driver::cmd("PING").query_async(&mut connection).await.unwrap();
        times.push(now() - begun);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..5))).await;
    }
    times
}

/// Saves rising numbers, each with the times at which the ones before were acknowledged.
async fn write(store: Store, cookie: String, until: u64) -> u64 {
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let mut number = 0;
    while now() < until {
        number += 1;
        let mut session = store.open(&cookie).await.unwrap();
        session.insert("n", number).unwrap();
        session.insert("acknowledged", acknowledged.iter().collect::<Vec<_>>()).unwrap();
        let _ = session.save().await.unwrap();
        acknowledged.insert(number, now());
        while acknowledged.len() > ACKNOWLEDGED {
            acknowledged.pop_first();
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..25))).await;
    }
    number
}

/// The reads of a session.
#[derive(Default)]
struct Shown {
    /// The newest number.
    newest: u64,
    /// Numbers whose successor is not known to be acknowledged, with the beginnings of the reads that showed them.
    pending: Vec<(u64, u64)>,
}

/// Reads the sessions of others. Returns the number of reads, and how far those were behind that were.
async fn read(store: Store, cookies: Arc<Vec<String>>, until: u64) -> (u64, Vec<u64>) {
    let mut shown: Vec<Shown> = cookies.iter().map(|_| Shown::default()).collect();
    let (mut reads, mut behind) = (0, Vec::new());
    loop {
        for (cookie, shown) in cookies.iter().zip(&mut shown) {
            let begun = now();
            if begun >= until {
                return (reads, behind);
            }
            let session = store.open(cookie).await.unwrap();
            let number: u64 = session.get("n").unwrap().unwrap_or(0);
            reads += 1;
            shown.pending.push((number, begun));
            if number > shown.newest {
                shown.newest = number;
                let acknowledged: Vec<(u64, u64)> = session.get("acknowledged").unwrap().unwrap_or_default();
                let acknowledged: BTreeMap<u64, u64> = acknowledged.into_iter().collect();
                shown.pending.retain(|(number, begun)| match acknowledged.get(&(number + 1)) {
                    Some(at) => {
                        behind.extend(begun.checked_sub(*at).filter(|late| *late > 0));
                        false
                    }
                    None => true,
                });
            }
            tokio::task::yield_now().await;
        }
    }
}
