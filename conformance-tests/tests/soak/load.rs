//! Load on servers of its own: a herd of loads of a cold key, and an outage of the cache.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use session_cached_db::{CachedDb, Coherence, Error, NoCache, Reaper, Schema};
use session_core::{Cache, DynCache, DynDatabase, Persistence as _, SubjectIndex, Timestamp};
use tokio::sync::Barrier;

use super::checker::{Surroundings, check};
use super::engine::Container;
use super::history::{Action, Answer, Op, SECOND, now};
use super::worker::{self, Counting, attempt, empty, stored_key};
use crate::table::{POSTGRES, REDIS, Server, server};
use crate::{Failure, block_on};

fn container(name: &str) -> Result<Container, Failure> {
    let server: &'static Server = server(name).ok_or("no such server")?;
    Container::start(server)
}

fn url(container: &Container) -> String {
    container.url(&container.ports)
}

async fn store<C: Cache>(cache: C, database: &str) -> Result<CachedDb<C, Arc<dyn DynDatabase>>, Failure> {
    let db = db_backends::connect(database).await?;
    let store = CachedDb::builder(cache, db)
        .schema(Schema::Trust)
        .reaper(None::<Reaper>)
        .max_cache_age(Duration::from_secs(3))
        .build()
        .await?;
    Ok(store)
}

// The herd.

/// The orders of a process of the herd.
#[derive(Debug, Serialize, Deserialize)]
struct Herd {
    cache: String,
    database: String,
    warm: String,
    cold: String,
}

const PROCESSES: usize = 4;
const LOADS: usize = 64;

/// Runs a process of the herd. It reads its orders, gets ready, reports that, and loads at the next line.
pub(crate) fn herd_process() -> Result<(), Failure> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let Herd { cache, database, warm, cold } = serde_json::from_str(&line)?;
    block_on(async move {
        let cache: Arc<dyn DynCache> = cache_backends::connect(&cache)?;
        let store = store(cache, &database).await?;
        // Makes the connections.
        let _ = store.load(&stored_key(&store, &warm)).await?;
        println!("ready");
        tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await??;
        let (key, start) = (stored_key(&store, &cold), Arc::new(Barrier::new(LOADS)));
        let before = store.stats();
        let mut loads = tokio::task::JoinSet::new();
        for _ in 0..LOADS {
            let (store, start) = (store.clone(), Arc::clone(&start));
            loads.spawn(async move {
                start.wait().await;
                store.load(&key).await.is_ok_and(|found| found.is_some())
            });
        }
        let found = loads.join_all().await.into_iter().filter(|found| *found).count();
        let now = store.stats();
        println!("{found} {}", now.misses + now.bypasses - before.misses - before.bypasses);
        Ok(())
    })
}

/// Returns how often the table was read, as Postgres counts it.
fn scans(postgres: &Container) -> Result<u64, Failure> {
    let query = "select sum(coalesce(seq_scan, 0) + coalesce(idx_scan, 0)) from pg_stat_user_tables";
    let said = postgres.exec(&["psql", "-U", "postgres", "-d", "sessions", "-tAc", query])?;
    Ok(said.trim().parse()?)
}

/// Waits until the count does not change for a while, because the server counts late.
fn settled_scans(postgres: &Container) -> Result<u64, Failure> {
    let mut last = (scans(postgres)?, Instant::now());
    while last.1.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(200));
        let scans = scans(postgres)?;
        if scans != last.0 {
            last = (scans, Instant::now());
        }
    }
    Ok(last.0)
}

pub(crate) fn herd() -> Result<(), Failure> {
    let (redis, postgres) = (container(REDIS.name)?, container(POSTGRES.name)?);
    let warm: Vec<_> = (0..PROCESSES).map(|n| format!("{n:0>32}")).collect();
    let cold = "cold".repeat(8);
    block_on(async {
        let store = store(cache_backends::connect(&url(&redis))?, &url(&postgres)).await?;
        db_backends::connect(&url(&postgres)).await?.migrate().await?;
        for key in warm.iter().chain([&cold]) {
            let key = stored_key(&store, key);
            store.create(&key, empty()).await?;
            // A touch leaves nothing in the cache.
            let later = Timestamp::from(std::time::SystemTime::now()) + Duration::from_secs(3 * 24 * 60 * 60);
            if store.touch(&key, later).await? != Coherence::Coherent {
                return Err("the cache does not answer".into());
            }
        }
        store.close().await;
        Ok(())
    })?;
    // A connection that has closed is in the server's counters. So the counts are read before the processes
    // connect, and after they have ended.
    let before = settled_scans(&postgres)?;
    let mut processes = Vec::new();
    for warm in warm {
        let orders = Herd { cache: url(&redis), database: url(&postgres), warm, cold: cold.clone() };
        let mut child = Command::new(std::env::current_exe()?)
            .env(worker::ROLE, "herd")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().ok_or("no input")?;
        writeln!(input, "{}", serde_json::to_string(&orders)?)?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        if line.trim() != "ready" {
            return Err("a process could not be started".into());
        }
        processes.push((child, input, output));
    }
    for (_, input, _) in &mut processes {
        writeln!(input, "go")?;
    }
    let mut counted = 0;
    for (mut child, _input, mut output) in processes {
        let mut line = String::new();
        output.read_line(&mut line)?;
        child.wait()?;
        let (found, reads) = line.trim().split_once(' ').ok_or_else(|| format!("it said {line:?}"))?;
        assert_eq!(found.parse::<usize>()?, LOADS, "every load finds the session");
        counted += reads.parse::<u64>()?;
    }
    // Each process has read a session of its own before.
    let reads = settled_scans(&postgres)? - before - PROCESSES as u64;
    println!("{} loads of a cold key by {PROCESSES} processes: {reads} database reads", PROCESSES * LOADS);
    assert_eq!(reads, counted, "the stores count what the database counts");
    assert!((1..=8).contains(&reads), "{reads} database reads");
    Ok(())
}

// The outage.

const TASKS: u32 = 12;
const SESSIONS: usize = 24;
/// The default of `cache_timeout`.
const CACHE_TIMEOUT: Duration = Duration::from_millis(100);

/// The work on each session, and the errors that a cache must not cause.
#[derive(Debug, Default)]
struct Done {
    histories: Vec<Vec<Op>>,
    errors: Vec<String>,
}

/// A load of mixed operations.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Done>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    async fn on<C: Cache, P: SubjectIndex>(nodes: &[CachedDb<C, P>], prefix: char) -> Result<Self, Failure> {
        let key = move |n: usize| format!("{prefix}{n:031}");
        let mut done = Done::default();
        for n in 0..SESSIONS {
            let begin = now();
            let _ = nodes[0].create(&stored_key(&nodes[0], &key(n)), empty()).await?;
            let mut op = Op::begun(0, Action::Create, begin);
            op.answered(now(), Answer::Created, false);
            done.histories.push(vec![op]);
        }
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::new(Mutex::new(done)),
            tasks: tokio::task::JoinSet::new(),
        };
        for writer in 0..TASKS {
            let process = writer % u32::try_from(nodes.len())?;
            let node = nodes[process as usize].clone();
            let (stop, done) = (Arc::clone(&load.stop), Arc::clone(&load.done));
            load.tasks.spawn(async move {
                let (mut random, mut count) = (Rng::with_seed(writer.into()), 0);
                while !stop.load(Ordering::Relaxed) {
                    let session = random.usize(0..SESSIONS);
                    count += 1;
                    let action = match random.u8(0..10) {
                        0..=5 => Action::Load,
                        6..=8 => Action::Save(writer, count),
                        _ => Action::Touch,
                    };
                    let begin = now();
                    let outcome = attempt(&node, &key(session), action, Counting::Off).await;
                    let end = now();
                    let (answer, degraded, error) = match outcome {
                        Ok((answer, coherence)) => (answer, coherence == Coherence::Degraded, None),
                        Err(Error::Conflict) => (Answer::Refused, false, None),
                        Err(error) => (Answer::Unknown, false, Some(format!("{action:?}: {error}"))),
                    };
                    let mut op = Op::begun(process, action, begin);
                    op.answered(end, answer, degraded);
                    {
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done.histories[session].push(op);
                        done.errors.extend(error);
                    }
                    tokio::time::sleep(Duration::from_millis(random.u64(0..10))).await;
                }
            });
        }
        Ok(load)
    }

    /// Returns the 99th percentile of the times of the operations that began in this time.
    fn p99(&self, from: u64, to: u64) -> Duration {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let within = done.histories.iter().flatten().filter(|op| (from..to).contains(&op.begin));
        let mut times: Vec<_> = within.filter_map(|op| Some(op.end? - op.begin)).collect();
        times.sort_unstable();
        assert!(times.len() >= 200, "{} operations prove nothing", times.len());
        Duration::from_nanos(times[times.len() * 99 / 100])
    }

    async fn stop(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        std::mem::take(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn wait(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Returns the 99th percentile of the times of operations without a cache.
async fn without_a_cache(database: &str, prefix: char) -> Result<Duration, Failure> {
    let nodes = [store(NoCache, database).await?, store(NoCache, database).await?];
    let load = Load::on(&nodes, prefix).await?;
    wait(1).await;
    let from = now();
    wait(3).await;
    let p99 = load.p99(from, now());
    assert_eq!(load.stop().await.errors, Vec::<String>::new());
    Ok(p99)
}

pub(crate) fn outage() -> Result<(), Failure> {
    let (redis, postgres) = (container(REDIS.name)?, container(POSTGRES.name)?);
    let redis = Arc::new(redis);
    block_on(async {
        let database = url(&postgres);
        db_backends::connect(&database).await?.migrate().await?;
        let before = without_a_cache(&database, 'a').await?;

        let mut nodes = Vec::new();
        for _ in 0..2 {
            nodes.push(store(cache_backends::connect(&url(&redis))?, &database).await?);
        }
        let load = Load::on(&nodes, 'b').await?;
        wait(2).await;
        assert!(nodes.iter().all(|node| node.stats().hits > 0), "the cache is used");
        let on_redis = |words: &'static [&'static str]| {
            let redis = Arc::clone(&redis);
            tokio::task::spawn_blocking(move || redis.docker(words))
        };
        let killed = now();
        on_redis(&["kill"]).await??;
        wait(4).await;
        let during = load.p99(killed, now());
        on_redis(&["start"]).await??;
        let restarted = Instant::now();
        let hits: Vec<_> = nodes.iter().map(|node| node.stats().hits).collect();
        while nodes.iter().zip(&hits).any(|(node, hits)| node.stats().hits <= *hits) {
            assert!(restarted.elapsed() < Duration::from_secs(15), "no hits after the outage");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let recovered = (restarted.elapsed(), now());
        wait(2).await;
        let done = load.stop().await;
        let after = without_a_cache(&database, 'c').await?;

        println!(
            "99 of 100 operations: {before:?} and {after:?} without a cache, {during:?} in its outage; hits after {:?}",
            recovered.0
        );
        assert_eq!(done.errors, Vec::<String>::new(), "no operation fails for a cache");
        let surroundings = Surroundings {
            max_cache_age: 3 * SECOND,
            write_bound: 10 * SECOND,
            unreachable: vec![(killed, recovered.1)],
            losses: vec![(killed, recovered.1)],
            counts_saves: false,
            is_private: false,
            is_healthy: false,
            ..Surroundings::default()
        };
        for history in &done.histories {
            check(history, &surroundings).map_err(|violation| violation.to_string())?;
        }
        let allowed = before.max(after) + CACHE_TIMEOUT;
        assert!(during <= allowed, "99 of 100 operations took up to {during:?}, allowed were {allowed:?}");
        Ok(())
    })
}
