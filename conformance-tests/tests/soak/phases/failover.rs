//! The database fails over: its primary is killed, deposed, or cut off, its replica is promoted, and its address leads
//! there. What was acknowledged must stay, and no load may show anything older.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conformance_tests::proxy::Mode;

use super::crowd::rest;
use super::process_group::{ProcessGroup, Servers, lock};
use super::verdict::{Verdict, seconds};
use super::{Omitted, Settings, Truth};
use crate::Failure;
use crate::checker::Surroundings;
use crate::engine::Container;
use crate::faults::Path;
use crate::history::{Action, Answer, Command, MILLI, Mix, Nanos, Op, SECOND, SessionId, Work, now};
use crate::pair::{Kind, Pair, UNCHECKED};
use crate::run::path;
use crate::table::server;
use crate::worker::WRITE_BOUND;

const TASKS: u32 = 6;
const SESSIONS: u32 = 48;
const PAUSE: Nanos = 25 * MILLI;

/// Short, because this is how long the cache may show a write that was lost.
const MAX_CACHE_AGE: Nanos = 3 * SECOND;

/// The promise, and the tolerance for two cores that run two servers and all processes.
const RECOVERY: Nanos = 2 * SECOND;
const SLACK: Nanos = 2 * SECOND;

/// The maximum time to wait for every process to write again.
const PATIENCE: Nanos = 30 * SECOND;

/// The time before a kill in which an acknowledged write may not have reached an asynchronous replica.
const LAG: Nanos = SECOND;

/// The time for which an asynchronous replica receives nothing before the kill, so that something is lost.
const BEHIND: Duration = Duration::from_millis(300);

/// The time for which a former primary is out of reach.
const SPLIT: Duration = Duration::from_secs(5);

/// The time for which the processes work before the fault, and after it.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(3);

/// The time that one failover takes, with all that belongs to it.
const ROUND: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The primary's process is killed.
    Kill,
    /// The same, with a replica that lags behind, and for which no commit waits.
    KillBeforeAsynchronous,
    /// The primary is made read-only, and stays up with its connections.
    Switchover,
    /// The primary is out of reach for a time, and goes on.
    Split,
}

/// Returns the kind of pair, and the name of its server.
fn kind(database: &str) -> Option<(Kind, &'static str)> {
    match database {
        "postgres" => Some((Kind::Postgres, "postgres-pair")),
        "mysql" => Some((Kind::MySql, "mysql-pair")),
        "mariadb" => Some((Kind::MariaDb, "mariadb-pair")),
        _ => None,
    }
}

pub(super) fn has_replica(database: &str) -> bool {
    kind(database).is_some()
}

pub(super) async fn run(settings: &Settings) -> Result<Vec<Verdict>, Failure> {
    let begun = Instant::now();
    let (kind, name) = kind(&settings.database).ok_or("the database has no replica")?;
    let faults = [Fault::Kill, Fault::KillBeforeAsynchronous, Fault::Split, Fault::Switchover];
    let mut verdicts = Vec::new();
    for fault in faults.iter().cycle() {
        if !verdicts.is_empty() && begun.elapsed() + ROUND > settings.lasts {
            break;
        }
        verdicts.push(fail_over(settings, kind, name, *fault).await?);
    }
    Ok(verdicts)
}

struct Database {
    path: Arc<Path>,
    pair: Pair,
    kind: Kind,
}

impl Database {
    /// Kills the primary's process.
    async fn kill(&self) -> Result<(), Failure> {
        let file = if self.kind == Kind::Postgres { "postmaster.pid" } else { "pid" };
        let (path, command) = (Arc::clone(&self.path), format!("kill -9 $(head -n 1 /tmp/first/{file})"));
        let kill = move || -> Result<(), Failure> {
            let container = path.container.as_ref().ok_or("there is no server to kill")?;
            container.exec(&["sh", "-c", &command])?;
            Ok(())
        };
        tokio::task::spawn_blocking(kill).await?
    }

    /// Makes the fault, and makes the address lead to the new primary. Returns from when on the replica received nothing,
    /// and when the former primary was gone.
    async fn break_primary(&self, fault: Fault) -> Result<(Nanos, Nanos), Failure> {
        let mut behind_since = now();
        match fault {
            Fault::Kill => self.kill().await?,
            Fault::KillBeforeAsynchronous => {
                self.pair.fall_behind().await;
                behind_since = now();
                tokio::time::sleep(BEHIND).await;
                self.kill().await?;
            }
            Fault::Switchover => {
                self.pair.depose().await;
                tokio::time::sleep(UNCHECKED).await;
                self.pair.catch_up().await;
            }
            Fault::Split => {
                self.pair.ways[0].set(Mode::Hold);
                tokio::time::sleep(UNCHECKED).await;
            }
        }
        let gone_at = now();
        self.pair.promote().await;
        self.pair.switch();
        Ok((behind_since, gone_at))
    }
}

async fn fail_over(
    settings: &Settings,
    kind: Kind,
    name: &'static str,
    fault: Fault,
) -> Result<Verdict, Failure> {
    let mut verdict = Verdict::new(format!(
        "failover {}+{}, {fault:?}, seed {}: {} processes of {TASKS} tasks, {SESSIONS} sessions",
        settings.cache, settings.database, settings.seed, settings.processes
    ));
    let server = server(name).ok_or("there is no such pair of servers")?;
    let (cache, container) = tokio::join!(
        path(&settings.cache, settings.processes),
        tokio::task::spawn_blocking(move || Container::start(server))
    );
    let container = container??;
    let pair = Pair::new(kind, &container.url(&container.ports)).await;
    match (kind, fault) {
        (_, Fault::KillBeforeAsynchronous) => pair.be_asynchronous().await,
        (Kind::Postgres, _) => pair.be_synchronous().await,
        // They are set up so.
        _ => {}
    }
    let proxies = vec![pair.address.clone(); settings.processes as usize];
    let servers = Servers::over(cache?, Path { container: Some(container), proxies }).await?;
    let database = Database { path: Arc::clone(&servers.database), pair, kind };
    let mut group = start(settings, &servers).await?;
    tokio::time::sleep(BEFORE).await;

    let since = now();
    let is_omitted = settings.omits(Omitted::Faults);
    let (behind_since, gone_at) =
        if is_omitted { (since, since) } else { database.break_primary(fault).await? };
    let reachable = now();
    let recovered = recovered(&group, reachable).await;
    if fault == Fault::Split {
        tokio::time::sleep(SPLIT.saturating_sub(Duration::from_nanos(now() - since))).await;
        database.pair.ways[0].set(Mode::Pass);
    }
    tokio::time::sleep(AFTER).await;
    let stuck = rest(&mut group).await?;

    verdict.check("every operation ends", stuck == 0, format!("{stuck} did not"));
    verdict.check(
        &format!("every process writes again within {}", seconds(RECOVERY)),
        recovered.is_some_and(|time| time <= RECOVERY + SLACK),
        recovered.map_or("some do not".into(), |time| {
            format!("after {}; a busy machine may take {} more", seconds(time), seconds(SLACK))
        }),
    );
    let surroundings =
        Surroundings { max_cache_age: MAX_CACHE_AGE, write_bound: WRITE_BOUND, ..Surroundings::default() };
    let mut truth = Truth::default();
    check_that_it_was_one(settings, &group, since)?;
    if fault == Fault::KillBeforeAsynchronous {
        check_that_something_is_lost(&group, behind_since, gone_at)?;
    }
    super::judge_part(&group, &surroundings, &mut truth, |ops| match fault {
        Fault::KillBeforeAsynchronous => without_the_last_moment(ops, since, gone_at),
        _ => ops,
    });
    verdict.count(&lock(&group.ledger).counts, &truth.times);
    truth.report(&mut verdict);
    Ok(verdict)
}

/// Starts the processes, and their work.
async fn start(settings: &Settings, servers: &Servers) -> Result<ProcessGroup, Failure> {
    let orders = (0..settings.processes).map(|process| {
        let node = process as usize;
        let (cache, database) = (servers.cache_url(node), servers.database_url(Some(node)));
        let mut orders = settings.orders(process, TASKS, cache, database);
        orders.max_cache_age = MAX_CACHE_AGE;
        orders
    });
    let mut group = ProcessGroup::start(settings, orders.collect()).await?;
    let sessions: Vec<_> = (0..SESSIONS).map(|slot| SessionId { slot, generation: 1 }).collect();
    group.command(1, &Command::Create { sessions: sessions.clone() }).await?;
    let work = Work {
        tasks: if settings.omits(Omitted::Operations) { 0 } else { TASKS },
        sessions,
        mix: Mix { saves: 350, touches: 80, deletes: 1, rotations: 1, ..Mix::default() },
        pause: PAUSE,
        beat: 0,
        revokes: false,
    };
    group.command_all(&Command::Operate(work)).await?;
    Ok(group)
}

/// Returns the time after which every process has begun a write that was then acknowledged.
async fn recovered(group: &ProcessGroup, reachable: Nanos) -> Option<Nanos> {
    while now() - reachable < PATIENCE {
        let times: Option<Vec<Nanos>> = {
            let ledger = lock(&group.ledger);
            let states = ledger.processes.values();
            states.map(|state| state.wrote_since.checked_sub(reachable)).collect()
        };
        if let Some(times) = times {
            return times.into_iter().max();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

fn check_that_it_was_one(settings: &Settings, group: &ProcessGroup, since: Nanos) -> Result<(), Failure> {
    let ledger = lock(&group.ledger);
    let (loads, writes) = (ledger.counts.loads, ledger.counts.writes);
    if loads < 100 || writes < 100 {
        return Err(format!("{loads} loads and {writes} writes were answered, which proves nothing").into());
    }
    let was_in_flight = |op: &Op| op.begin < since + SECOND && op.end.is_none_or(|end| end > since);
    if !ledger.sessions.values().flatten().any(|op| op.is_write() && was_in_flight(op)) {
        return Err("no write was in flight when the primary went, which proves nothing".into());
    }
    if settings.omits(Omitted::Faults) {
        return Err("the primary did not go, which proves nothing".into());
    }
    Ok(())
}

fn check_that_something_is_lost(group: &ProcessGroup, since: Nanos, gone_at: Nanos) -> Result<(), Failure> {
    let is_lost = |op: &Op| op.is_write() && op.begin > since && op.end.is_some_and(|end| end < gone_at);
    if lock(&group.ledger).sessions.values().flatten().any(is_lost) {
        return Ok(());
    }
    Err("no write was acknowledged while the replica was behind, which proves nothing".into())
}

/// Returns the operations to which the promise without a synchronous replica applies: a write that was acknowledged
/// shortly before the kill may be lost, and until caches have forgotten it, a load may show it nevertheless.
fn without_the_last_moment(ops: Vec<Op>, since: Nanos, gone_at: Nanos) -> Vec<Op> {
    let from = since.saturating_sub(LAG);
    let until = gone_at + MAX_CACHE_AGE + SECOND;
    let is_in_doubt = |op: &Op| op.begin <= until && op.end.is_none_or(|end| end >= from);
    let (doubtful, mut sure): (Vec<Op>, Vec<Op>) = ops.into_iter().partition(is_in_doubt);
    let writes = doubtful.into_iter().filter(|op| op.action != Action::Load);
    sure.extend(writes.map(|op| {
        let is_lost = op.begin <= gone_at && op.answer != Answer::Refused;
        if is_lost { Op { answer: Answer::Unknown, end: None, ..op } } else { op }
    }));
    sure
}
