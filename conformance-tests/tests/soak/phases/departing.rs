//! Callers that leave: loads, saves and revocations whose futures are dropped in the middle, and loads that
//! are kept without being polled. No other caller may notice.

use std::time::Duration;

use conformance_tests::proxy::Mode;

use super::crowd::rest;
use super::phase_worker::{REVOCATION_BOUND, subject_sessions};
use super::process_group::{ProcessGroup, Servers, lock};
use super::verdict::{Verdict, ms, nanos, seconds};
use super::{Omitted, Settings, Truth};
use crate::Failure;
use crate::engine::Container;
use crate::history::{
    Action, Answer, Command, MILLI, Mix, Nanos, Op, SECOND, SessionId, Work, now, session_key,
};
use crate::worker::{self, READ_TIMEOUT, stored_key};

const TASKS: u32 = 16;
const SESSIONS: u32 = 200;
const PAUSE: Nanos = 20 * MILLI;

/// The time after which keys are read from the database again.
const MAX_CACHE_AGE: Nanos = SECOND;
const CACHE_TIMEOUT: Nanos = SECOND / 2;

/// The delay of the database's answers, so that futures are dropped in the middle of statements.
const DISTANCE: Duration = Duration::from_millis(5);

/// The time that a load may take beyond the timeouts of cache and database, on a busy machine.
const SLACK: Nanos = SECOND;

pub(super) async fn run(settings: &Settings) -> Result<Verdict, Failure> {
    let servers = Servers::start(settings, true).await?;
    let mut verdict = Verdict::new(format!(
        "departing {}+{}, seed {}: {} processes of {TASKS} tasks, {SESSIONS} sessions; operations are dropped 0.2 to 12 ms after they began",
        settings.cache, settings.database, settings.seed, settings.processes
    ));
    servers.database.set(Mode::Delay(DISTANCE), None);
    let orders = (0..settings.processes).map(|process| {
        let node = process as usize;
        let mut orders =
            settings.orders(process, TASKS, servers.cache_url(node), servers.database_url(Some(node)));
        orders.max_cache_age = MAX_CACHE_AGE;
        orders.cache_timeout = CACHE_TIMEOUT;
        orders
    });
    let mut group = ProcessGroup::start(settings, orders.collect()).await?;
    let sessions: Vec<_> = (0..SESSIONS).map(|slot| SessionId { slot, generation: 1 }).collect();
    group.command(1, &Command::Create { sessions: sessions.clone() }).await?;

    // Makes all connections that a process keeps.
    let mix = Mix { saves: 250, ..Mix::default() };
    let tasks = if settings.omits(Omitted::Operations) { 0 } else { TASKS };
    let mut work = Work { tasks, sessions, mix, pause: PAUSE / 4, beat: 0, revokes: false };
    group.command_all(&Command::Operate(work.clone())).await?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut stuck = rest(&mut group).await?;
    let before = connections(&servers).await?;

    if !settings.omits(Omitted::Departures) {
        work.mix = Mix { departing: 300, stalling: 20, ..mix };
        work.revokes = true;
    }
    work.pause = PAUSE;
    let since = now();
    group.command_all(&Command::Operate(work)).await?;
    tokio::time::sleep(settings.lasts).await;
    stuck += rest(&mut group).await?;
    let after = connections(&servers).await?;

    let still_open = still_open(settings, &servers, &group).await?;
    {
        let ledger = lock(&group.ledger);
        let counts = &ledger.counts;
        if counts.departed_loads < 20 || counts.departed_writes < 10 {
            return Err(format!(
                "{} loads and {} writes were left by their callers, which proves nothing: let it last longer",
                counts.departed_loads, counts.departed_writes
            )
            .into());
        }
        if let (Some(before), Some(after)) = (before, after) {
            // Each process has two pools of 8; counting takes one.
            let allowed = u64::from(settings.processes) * 16 + 8;
            verdict.check(
                "departing callers cost no connections",
                after - before <= allowed,
                format!(
                    "{} new ones for {} departures; at most {allowed} belong to pools",
                    after - before,
                    counts.departed_loads + counts.departed_writes
                ),
            );
        } else {
            verdict.fact("connections", "are not counted: sqlite has no server");
        }
        let slowest = slowest_load(ledger.sessions.values().flatten(), since);
        let bound = CACHE_TIMEOUT + nanos(READ_TIMEOUT) + SLACK;
        verdict.check(
            "no load waits for one whose future was dropped",
            slowest <= bound && stuck == 0,
            format!("slowest {}, allowed {}; {stuck} operations did not end", ms(slowest), ms(bound)),
        );
        let departed: Vec<_> = ledger.revocations.iter().filter(|one| one.departed).collect();
        if departed.is_empty() {
            return Err("no revocation was dropped, which proves nothing: let it last longer".into());
        }
        let half_done: Vec<_> = departed.iter().filter(|one| one.left > 0).collect();
        let left: u32 = half_done.iter().map(|one| one.left).sum();
        let slowest = departed.iter().map(|one| one.after).max().unwrap_or_default();
        verdict.check(
            &format!(
                "a revocation that was begun ends every session within {}",
                seconds(nanos(REVOCATION_BOUND))
            ),
            half_done.is_empty(),
            format!(
                "{left} of {} sessions left by {} of {} revocations; slowest {}",
                departed.iter().map(|one| one.sessions).sum::<u32>(),
                half_done.len(),
                departed.len(),
                seconds(slowest)
            ),
        );
        verdict.check(
            "no other node opens a session that was revoked",
            still_open == 0,
            format!("{still_open} were opened"),
        );
        let failed: Vec<_> = ledger.revocations.iter().filter_map(|one| one.error.as_ref()).collect();
        verdict
            .fact("revocations", format!("{}, of which {} failed", ledger.revocations.len(), failed.len()));
        if let Some(error) = failed.first() {
            verdict.fact("", format!("the first failure: {error}"));
        }
    }
    let mut truth = Truth::default();
    super::judge(&group, &settings.surroundings(MAX_CACHE_AGE), &mut truth);
    verdict.count(&lock(&group.ledger).counts, &truth.times);
    truth.report(&mut verdict);
    Ok(verdict)
}

/// Returns the longest time of a load whose caller waited for it, or still waits.
fn slowest_load<'a>(ops: impl Iterator<Item = &'a Op>, since: Nanos) -> Nanos {
    let waited = ops.filter(|op| op.action == Action::Load && op.begin >= since);
    // Loads that were left have an end, but no answer.
    let waited = waited.filter(|op| op.answer != Answer::Unknown || op.end.is_none());
    waited.map(|op| op.end.unwrap_or(now()) - op.begin).max().unwrap_or_default()
}

/// Returns how many sessions of revocations that have begun another node still opens.
async fn still_open(settings: &Settings, servers: &Servers, group: &ProcessGroup) -> Result<u32, Failure> {
    let cache = cache_backends::connect(&servers.cache_url(0))?;
    let (max_age, timeout) = (Duration::from_nanos(MAX_CACHE_AGE), Duration::from_nanos(CACHE_TIMEOUT));
    let store = worker::store_over(cache, &servers.database_url(None), max_age, timeout).await?;
    let revocations = lock(&group.ledger).revocations.clone();
    let mut still_open = 0;
    for revocation in revocations.iter().filter(|one| one.departed || one.error.is_none()) {
        for session in subject_sessions(revocation.number) {
            let key = stored_key(&store, &session_key(settings.run(), session));
            still_open += u32::from(store.load(&key).await?.is_some());
        }
    }
    Ok(still_open)
}

/// Returns how many connections were made since the start of the database server, as it counts them.
async fn connections(servers: &Servers) -> Result<Option<u64>, Failure> {
    if servers.database.container.is_none() {
        return Ok(None);
    }
    let database = std::sync::Arc::clone(&servers.database);
    let count = move || database.container.as_ref().map(count_connections).transpose();
    tokio::task::spawn_blocking(count).await?
}

fn count_connections(server: &Container) -> Result<u64, Failure> {
    if server.image() == crate::table::POSTGRES.name {
        // Sessions are counted when they begin, and shown a little later.
        std::thread::sleep(Duration::from_millis(1_200));
        let query = "select sessions from pg_stat_database where datname = 'sessions'";
        return Ok(server
            .exec(&["psql", "-U", "postgres", "-d", "sessions", "-tAc", query])?
            .trim()
            .parse()?);
    }
    let program = server.image();
    let query = "show global status like 'Connections'";
    let words = [program, "-h127.0.0.1", "-uroot", "-pconformance", "-N", "-e", query];
    let said = server.exec(&words)?;
    let count = said.split_whitespace().last().ok_or("the server counts no connections")?;
    Ok(count.parse()?)
}
