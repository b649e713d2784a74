//! One server of several of a cache dies: of three memcached servers, or of the masters of a Redis cluster.
//! The cache must serve the keys of the others all the time, except for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use session_core::Cache as _;

use super::blips::{RECOVERY, check_blame, may_be_held, serve};
use super::crowd::{rest, what_holds};
use super::process_group::{ProcessGroup, Servers, lock};
use super::verdict::{Verdict, picture, seconds};
use super::{Omitted, Settings, Truth};
use crate::Failure;
use crate::checker::Surroundings;
use crate::engine::Container;
use crate::history::{Command, Figures, MILLI, Mix, Nanos, Op, SECOND, SessionId, Work, now, session_key};
use crate::ledger::Ledger;
use crate::table::{CLUSTER_WITH_GAPS, server};
use crate::worker::{self, WRITE_BOUND, stored_key};

const TASKS: u32 = 8;
const SESSIONS: u32 = 96;
const PAUSE: Nanos = 30 * MILLI;
const SERVERS: usize = 3;

const MAX_CACHE_AGE: Nanos = 60 * SECOND;

/// Long enough for a machine of two cores that runs all of this.
const CACHE_TIMEOUT: Nanos = SECOND / 2;

/// The time for which a server is dead, and the time for which it is watched after it came back.
const DEAD: Duration = Duration::from_secs(5);
const BACK: Duration = Duration::from_secs(4);

/// The time within which a server that came back must be used again. Clients look for it now and then, and a
/// cluster's nodes must agree.
const REUNION: Nanos = 3 * SECOND;

pub(super) async fn run(settings: &Settings) -> Result<Vec<Verdict>, Failure> {
    let mut verdicts = Vec::new();
    for kind in [Fleet::Memcached, Fleet::Cluster] {
        let is_wanted = match settings.cache.as_str() {
            "memcached" => kind == Fleet::Memcached,
            "redis-cluster" => kind == Fleet::Cluster,
            _ => true,
        };
        if is_wanted {
            verdicts.push(lose(settings, kind).await?);
        }
    }
    Ok(verdicts)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fleet {
    /// Three servers that are independent of each other.
    Memcached,
    /// The masters of a cluster without replicas, of which some may be missing.
    Cluster,
}

/// The manner of a server's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// Connections are refused.
    Killed,
    /// The server does not answer, without any sign.
    Silent,
}

struct Caches {
    kind: Fleet,
    containers: Arc<Vec<Container>>,
    ports: Vec<u16>,
}

impl Caches {
    fn start(kind: Fleet) -> Result<Self, Failure> {
        let mut containers = Vec::new();
        if kind == Fleet::Cluster {
            containers.push(Container::start(&CLUSTER_WITH_GAPS)?);
        } else {
            let server = server("memcached").ok_or("there is no memcached")?;
            for _ in 0..SERVERS {
                containers.push(Container::start(server)?);
            }
        }
        let ports = containers.iter().flat_map(|container| container.ports.clone()).collect();
        Ok(Self { kind, containers: Arc::new(containers), ports })
    }

    fn url(&self) -> String {
        self.containers[0].url(&self.ports)
    }

    /// Returns the URL of each server alone.
    fn single_url(&self, server: usize) -> String {
        let port = self.ports[server];
        match self.kind {
            Fleet::Memcached => format!("memcache://127.0.0.1:{port}"),
            Fleet::Cluster => format!("redis://127.0.0.1:{port}/"),
        }
    }

    async fn change(&self, server: usize, death: Death, dies: bool) -> Result<(), Failure> {
        let (kind, containers, port) = (self.kind, Arc::clone(&self.containers), self.ports[server]);
        let work = move || -> Result<(), Failure> {
            if kind == Fleet::Memcached {
                let container = &containers[server];
                return match (death, dies) {
                    (Death::Killed, true) => container.docker(&["kill"]),
                    (Death::Killed, false) => container.docker(&["start"]).and_then(|()| container.wait()),
                    (Death::Silent, true) => container.docker(&["pause"]),
                    (Death::Silent, false) => container.docker(&["unpause"]),
                };
            }
            let pid = format!("$(cat /tmp/node-{port}/pid)");
            let command = match (death, dies) {
                (Death::Killed, true) => format!("touch /tmp/node-{port}/down; kill -9 {pid}"),
                (Death::Killed, false) => format!("rm /tmp/node-{port}/down"),
                (Death::Silent, true) => format!("kill -STOP {pid}"),
                (Death::Silent, false) => format!("kill -CONT {pid}"),
            };
            containers[0].exec(&["sh", "-c", &command])?;
            if dies { Ok(()) } else { containers[0].wait() }
        };
        tokio::task::spawn_blocking(work).await?
    }
}

/// A time in which a server was dead.
#[derive(Clone, Copy, Debug)]
struct Loss {
    server: usize,
    death: Death,
    since: Nanos,
    until: Nanos,
    /// The beginning of the next such time, or the end of the phase.
    next: Nanos,
}

async fn lose(settings: &Settings, kind: Fleet) -> Result<Verdict, Failure> {
    let name = if kind == Fleet::Memcached { "3 memcached" } else { "redis-cluster" };
    let (servers, caches) = tokio::join!(
        Servers::start(settings, false),
        tokio::task::spawn_blocking(move || Caches::start(kind))
    );
    let (servers, caches) = (servers?, caches??);
    let mut verdict = Verdict::new(format!(
        "lost-server {name}+{}, seed {}: {} processes of {TASKS} tasks, {SESSIONS} sessions; one server of {SERVERS} is dead for {}",
        settings.database,
        settings.seed,
        settings.processes,
        seconds(super::verdict::nanos(DEAD)),
    ));
    let orders = (0..settings.processes).map(|process| {
        let database = servers.database_url(Some(process as usize));
        let mut orders = settings.orders(process, TASKS, caches.url(), database);
        orders.max_cache_age = MAX_CACHE_AGE;
        orders.cache_timeout = CACHE_TIMEOUT;
        orders
    });
    let mut group = ProcessGroup::start(settings, orders.collect()).await?;
    let sessions: Vec<_> = (0..SESSIONS).map(|slot| SessionId { slot, generation: 1 }).collect();
    group.command(1, &Command::Create { sessions: sessions.clone() }).await?;
    let homes = homes(settings, &caches, &servers, &sessions).await?;
    let all: Vec<_> = homes.iter().map(|(session, home)| (*session, home.server)).collect();
    group.command_all(&Command::Homes { homes: all }).await?;
    let work = Work {
        tasks: if settings.omits(Omitted::Operations) { 0 } else { TASKS },
        sessions: sessions.clone(),
        mix: Mix { saves: 350, touches: 100, ..Mix::default() },
        pause: PAUSE,
        beat: 0,
        revokes: false,
    };
    group.command_all(&Command::Operate(work)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let (mut losses, begun) = (Vec::new(), Instant::now());
    let mut random = fastrand::Rng::with_seed(settings.seed);
    while losses.is_empty() || begun.elapsed() + DEAD + BACK <= settings.lasts {
        let server = random.usize(0..SERVERS);
        let is_silent = (settings.seed + losses.len() as u64).is_multiple_of(2);
        let death = if is_silent { Death::Silent } else { Death::Killed };
        let mut loss = Loss { server, death, since: now(), until: 0, next: 0 };
        if settings.omits(Omitted::Faults) {
            break;
        }
        caches.change(server, death, true).await?;
        tokio::time::sleep(DEAD).await;
        caches.change(server, death, false).await?;
        loss.until = now();
        tokio::time::sleep(BACK).await;
        loss.next = now();
        losses.push(loss);
    }
    let until = now();
    let stuck = rest(&mut group).await?;
    let unserved = serve(&mut group, &sessions).await?;
    if let Some(text) = what_holds(settings, &caches.url(), &unserved).await? {
        verdict.fact("not served", text);
    }

    {
        let ledger = lock(&group.ledger);
        check_that_it_was_one(&ledger)?;
        judge(&mut verdict, &ledger, &losses, &homes);
        let (may_be_held, held): (Vec<SessionId>, Vec<SessionId>) = unserved
            .into_iter()
            .partition(|session| may_be_held(&ledger.sessions[session], &[], CACHE_TIMEOUT, until));
        verdict.check(
            "the cache serves every key in the end",
            held.is_empty(),
            format!(
                "{} of {} not within {}; {} more may be held by a call without an answer",
                held.len(),
                SESSIONS * settings.processes,
                seconds(RECOVERY),
                may_be_held.len()
            ),
        );
        verdict.check("every operation ends", stuck == 0, format!("{stuck} did not"));
    }
    let span = |loss: &Loss| (loss.since.saturating_sub(SECOND), loss.until + REUNION);
    let surroundings = Surroundings {
        max_cache_age: MAX_CACHE_AGE,
        write_bound: WRITE_BOUND,
        unreachable: losses.iter().map(span).collect(),
        losses: losses.iter().filter(|loss| loss.death == Death::Killed).map(span).collect(),
        ..Surroundings::default()
    };
    let mut truth = Truth::default();
    super::judge(&group, &surroundings, &mut truth);
    verdict.count(&lock(&group.ledger).counts, &truth.times);
    truth.report(&mut verdict);
    Ok(verdict)
}

/// The place of a session's entry.
#[derive(Clone, Copy, Debug)]
struct Home {
    server: usize,
    /// The server as the store counts it: the slots of a cluster are in groups, one of which may be split
    /// between two masters.
    group: usize,
}

/// Finds out which server has which session: the one that has it when it is asked alone.
async fn homes(
    settings: &Settings,
    caches: &Caches,
    servers: &Servers,
    sessions: &[SessionId],
) -> Result<BTreeMap<SessionId, Home>, Failure> {
    let second = Duration::from_secs(1);
    let cache = cache_backends::connect(&caches.url())?;
    let age = Duration::from_nanos(MAX_CACHE_AGE);
    let store = worker::store_over(Arc::clone(&cache), &servers.database_url(None), age, second).await?;
    let mut homes = BTreeMap::new();
    for server in 0..SERVERS {
        let alone = cache_backends::connect(&caches.single_url(server))?;
        for session in sessions {
            let key = stored_key(&store, &session_key(settings.run(), *session));
            // A node of a cluster refuses keys that are not its own.
            if matches!(alone.get(&key).await, Ok(Some(_))) {
                homes.insert(*session, Home { server, group: cache.server(&key) });
            }
        }
    }
    let counted: Vec<_> =
        (0..SERVERS).map(|server| homes.values().filter(|home| home.server == server).count()).collect();
    if homes.len() != sessions.len() || counted.contains(&0) {
        return Err(format!("the servers have {counted:?} of {} sessions", sessions.len()).into());
    }
    Ok(homes)
}

fn check_that_it_was_one(ledger: &Ledger) -> Result<(), Failure> {
    let (loads, writes) = (ledger.counts.loads, ledger.counts.writes);
    if loads < 100 || writes < 100 {
        return Err(format!("{loads} loads and {writes} writes were answered, which proves nothing").into());
    }
    let failed = |(_, samples): (&u32, &Vec<(Nanos, Figures)>)| {
        samples.last().is_some_and(|(_, figures)| figures.cache_errors > 0)
    };
    if !ledger.samples.iter().flatten().any(failed) {
        return Err("no call of the cache failed, so that nothing was dead, which proves nothing".into());
    }
    Ok(())
}

fn judge(verdict: &mut Verdict, ledger: &Ledger, losses: &[Loss], homes: &BTreeMap<SessionId, Home>) {
    let (mut living, mut returned) = (Vec::new(), Vec::new());
    let (mut hits_late, mut text) = (0, Vec::new());
    for loss in losses {
        let (mut writes, mut degraded) = (0, 0);
        let dead: BTreeSet<_> =
            homes.values().filter(|home| home.server == loss.server).map(|home| home.group).collect();
        let is_neighbour = |home: &Home| home.server != loss.server && dead.contains(&home.group);
        for (process, samples) in ledger.samples.iter().flatten() {
            let of_living =
                |session: &SessionId| homes.get(session).is_some_and(|home| !dead.contains(&home.group));
            let of_dead =
                |session: &SessionId| homes.get(session).is_some_and(|home| home.server == loss.server);
            let writes_of = |living: bool| {
                let is_one =
                    move |session: &SessionId| if living { of_living(session) } else { of_dead(session) };
                let sessions = ledger.sessions.iter().filter(move |(session, _)| is_one(session));
                sessions.flat_map(|(_, ops)| ops).filter(|op| op.process == *process && op.is_write())
            };
            // An operation that began while the server died may be degraded.
            let after_death = |op: &&Op| loss.since <= op.begin && op.begin < loss.until;
            let last =
                writes_of(true).filter(after_death).filter(|op| op.degraded).filter_map(|op| op.end).max();
            writes += writes_of(true).filter(after_death).count();
            degraded += writes_of(true).filter(after_death).filter(|op| op.degraded).count();
            let over = last.map_or(0, |end| end.saturating_sub(loss.since));
            living.push((over + SECOND / 4 < loss.until - loss.since).then_some(over));
            for server in (0..super::watched::MAX_SERVERS).filter(|server| *server != loss.server) {
                if homes.values().any(|home| home.server == server) {
                    hits_late += usize::from(!has_hits(samples, server, loss.since + RECOVERY, loss.until));
                }
            }
            let back = |op: &&Op| loss.until <= op.begin && op.begin < loss.next;
            let last = writes_of(false).filter(back).filter(|op| op.degraded).filter_map(|op| op.end).max();
            let over = last.map_or(0, |end| end.saturating_sub(loss.until));
            let is_used = has_hits(samples, loss.server, loss.until + REUNION, loss.next);
            returned.push((is_used && over + SECOND / 4 < loss.next - loss.until).then_some(over));
        }
        text.push(format!(
            "server {} {:?}: {degraded} of {writes} writes of the others' keys degraded; {} keys share a group of slots with it",
            loss.server,
            loss.death,
            homes.values().filter(|home| is_neighbour(home)).count()
        ));
    }
    verdict.fact("dead servers", text.join("\n"));
    verdict.fact("others recover", picture(&living));
    verdict.fact("it is used again", picture(&returned));
    let late = living.iter().filter(|time| time.is_none_or(|time| time > RECOVERY)).count();
    verdict.check(
        &format!("no degraded write of the others' keys from {} on", seconds(RECOVERY)),
        late == 0,
        format!("{late} of {} late", living.len()),
    );
    verdict.check(
        &format!("hits by each of the others from {} on", seconds(RECOVERY)),
        hits_late == 0,
        format!("{hits_late} without"),
    );
    let late = returned.iter().filter(|time| time.is_none_or(|time| time > REUNION)).count();
    verdict.check(
        &format!("a server that comes back is used again within {}", seconds(REUNION)),
        late == 0,
        format!("{late} of {} late", returned.len()),
    );
    check_blame(verdict, ledger);
}

/// Returns `true` if a server answered with values in each second of this time.
fn has_hits(samples: &[(Nanos, Figures)], server: usize, from: Nanos, to: Nanos) -> bool {
    let values_at = |at: Nanos| {
        let sample = samples.iter().find(|(when, _)| *when >= at).or(samples.last());
        sample.and_then(|(_, figures)| figures.values.get(server).copied())
    };
    let whole_seconds = (to.saturating_sub(from) / SECOND).max(1);
    (0..whole_seconds).all(|n| {
        let begin = from + n * SECOND;
        values_at(begin) < values_at((begin + SECOND).min(to))
    })
}
