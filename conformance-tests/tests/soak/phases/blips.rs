//! Blips: the cache is away for 0.3 s, repeatedly, while all processes write at full rate. The phase judges
//! how soon each process uses the cache again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conformance_tests::proxy::Mode;

use super::crowd::{rest, what_holds};
use super::process_group::{ProcessGroup, Servers, lock};
use super::verdict::{Verdict, nanos, picture, seconds};
use super::{Omitted, Settings, Truth};
use crate::Failure;
use crate::checker::Surroundings;
use crate::faults::Kind;
use crate::history::{Blame, Command, Figures, MILLI, Mix, Nanos, Op, Reply, SECOND, SessionId, Work, now};
use crate::ledger::Ledger;
use crate::worker::{FENCE_TTL, WRITE_BOUND};

const TASKS: u32 = 24;
const SESSIONS: u32 = 256;

/// The mean pause of a task between two operations, so that a process writes at least 100 times a second.
const PAUSE: Nanos = 55 * MILLI;

/// The length of a blip, and the time between the beginnings of two.
const BLIP: Duration = Duration::from_millis(300);
const INTERVAL: Duration = Duration::from_secs(5);

/// The time within which every process must use the cache again.
pub(crate) const RECOVERY: Nanos = 2 * SECOND;

/// The least rate of writes of a process that proves anything about full load.
const LEAST_WRITES_PER_SECOND: u64 = 20;

const MAX_CACHE_AGE: Nanos = 60 * SECOND;

/// Shorter than a blip, and long enough for a machine of two cores that runs all of this.
const CACHE_TIMEOUT: Nanos = 250 * MILLI;

pub(crate) async fn run(settings: &Settings) -> Result<Verdict, Failure> {
    let servers = Servers::start(settings, true).await?;
    let mut verdict = Verdict::new(format!(
        "blips {}+{}, seed {}: {} processes of {TASKS} tasks, {SESSIONS} sessions; the cache is away for {} every {}",
        settings.cache,
        settings.database,
        settings.seed,
        settings.processes,
        seconds(nanos(BLIP)),
        seconds(nanos(INTERVAL)),
    ));
    // The latency to the cache differs between processes.
    for (node, proxy) in servers.cache.proxies.iter().enumerate() {
        proxy.set(Mode::Delay(distance(node)));
    }
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
    let work = Work {
        tasks: if settings.omits(Omitted::Operations) { 0 } else { TASKS },
        sessions: sessions.clone(),
        mix: Mix { saves: 450, touches: 100, ..Mix::default() },
        pause: PAUSE,
        beat: 0,
        revokes: false,
    };
    group.command_all(&Command::Operate(work)).await?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;

    let begun = Instant::now();
    let since = now();
    let mut blips = Vec::new();
    while blips.is_empty() || begun.elapsed() + INTERVAL <= settings.lasts {
        let start = Instant::now();
        let mode = if blips.len().is_multiple_of(2) { Mode::BlackHole } else { Mode::Reset };
        let mut blip = Blip { since: now(), until: 0, next: 0 };
        if settings.omits(Omitted::Faults) {
            blip.until = now();
            blips.push(blip);
            break;
        }
        break_cache(&servers, mode).await?;
        blip.until = now();
        if settings.omits(Omitted::Operations) {
            blips.push(blip);
            break;
        }
        tokio::time::sleep(INTERVAL.saturating_sub(start.elapsed())).await;
        blip.next = now();
        blips.push(blip);
    }
    let until = now();
    let stuck = rest(&mut group).await?;
    let unserved = serve(&mut group, &sessions).await?;

    if let Some(text) = what_holds(settings, &servers.cache_url(0), &unserved).await? {
        verdict.fact("not served", text);
    }
    let mut truth = Truth::default();
    {
        let ledger = lock(&group.ledger);
        check_that_it_was_one(&ledger, settings, until - since)?;
        judge(&mut verdict, &ledger, &blips, settings.processes, since, until);
        let (swept, held): (Vec<SessionId>, Vec<SessionId>) = unserved
            .into_iter()
            .partition(|session| may_be_held(&ledger.sessions[session], &blips, CACHE_TIMEOUT, until));
        verdict.check(
            "the cache serves every key when the writers rest",
            held.is_empty(),
            format!(
                "{} of {} keys not within {}; {} more may be held by a call without an answer",
                held.len(),
                SESSIONS * settings.processes,
                seconds(RECOVERY),
                swept.len()
            ),
        );
        verdict.check("every operation ends", stuck == 0, format!("{stuck} did not"));
    }
    let unreachable = blips.iter().map(|blip| (blip.since.saturating_sub(SECOND), blip.until + RECOVERY));
    let surroundings = Surroundings {
        max_cache_age: MAX_CACHE_AGE,
        write_bound: WRITE_BOUND,
        unreachable: unreachable.collect(),
        ..Surroundings::default()
    };
    super::judge(&group, &surroundings, &mut truth);
    verdict.count(&lock(&group.ledger).counts, &truth.times);
    truth.report(&mut verdict);
    Ok(verdict)
}

/// Returns the delay of the cache's answers for a process: 1 to 4 ms.
fn distance(node: usize) -> Duration {
    Duration::from_millis(1 + node as u64 % 4)
}

async fn break_cache(servers: &Servers, mode: Mode) -> Result<(), Failure> {
    if servers.cache.proxies.is_empty() {
        // The nodes of a cluster announce their addresses to clients, which bypass the proxies.
        let pause = |is_over: bool| {
            let cache = Arc::clone(&servers.cache);
            tokio::task::spawn_blocking(move || {
                if is_over { cache.mend_server(Kind::Pause) } else { cache.break_server(Kind::Pause) }
            })
        };
        pause(false).await??;
        tokio::time::sleep(BLIP).await;
        pause(true).await??;
        return Ok(());
    }
    servers.cache.set(mode, None);
    tokio::time::sleep(BLIP).await;
    for (node, proxy) in servers.cache.proxies.iter().enumerate() {
        proxy.set(Mode::Delay(distance(node)));
    }
    Ok(())
}

/// Returns the sessions for which the cache does not answer in time, once for each process.
pub(crate) async fn serve(
    group: &mut ProcessGroup,
    sessions: &[SessionId],
) -> Result<Vec<SessionId>, Failure> {
    let serve = Command::Serve { sessions: sessions.to_vec(), within: RECOVERY };
    let mut all = Vec::new();
    for reply in group.command_all(&serve).await? {
        if let Reply::Served { unserved, .. } = reply {
            all.extend(unserved);
        }
    }
    Ok(all)
}

/// A time in which the cache was away, and the beginning of the next one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blip {
    pub(crate) since: Nanos,
    pub(crate) until: Nanos,
    pub(crate) next: Nanos,
}

/// Returns `true` if a cache call for a session may have had an effect without an answer, so recently that
/// the lease or fence that it left, which ends by itself, is not over.
pub(crate) fn may_be_held(ops: &[Op], blips: &[Blip], cache_timeout: Nanos, now: Nanos) -> bool {
    let horizon = now.saturating_sub(nanos(FENCE_TTL));
    // A later call in a blip reaches no server.
    let was_caught = |op: &Op| {
        let is_in =
            |blip: &Blip| op.begin < blip.since + 20 * MILLI && op.end.is_none_or(|end| end > blip.since);
        blips.iter().any(is_in)
    };
    let waited_in_vain = |op: &Op| op.end.is_none_or(|end| end - op.begin >= cache_timeout);
    let recent = ops.iter().filter(|op| op.end.is_none_or(|end| end > horizon));
    recent.clone().any(|op| was_caught(op) || waited_in_vain(op))
}

/// Returns how long after a blip a process used the cache again: it had hits, and answered the last degraded
/// write. `None` if that was not before the next blip.
pub(crate) fn recovery(samples: &[(Nanos, Figures)], degraded: &[Nanos], blip: &Blip) -> Option<Nanos> {
    let hit = samples.windows(2).find_map(|pair| match pair {
        [(at, before), (later, after)] if *at >= blip.until && after.hits > before.hits => Some(*later),
        _ => None,
    })?;
    let last = degraded.iter().filter(|end| (blip.until..blip.next).contains(*end)).max();
    let over = last.copied().unwrap_or(blip.until).max(hit);
    // A process with a degraded write shortly before the next blip has not recovered.
    (over + SECOND / 4 < blip.next).then_some(over - blip.until)
}

/// Returns when degraded writes of a process answered that began after the last blip before them.
fn degraded_writes(ledger: &Ledger, blips: &[Blip], process: u32) -> Vec<Nanos> {
    let ops = ledger.sessions.values().flatten();
    let degraded = ops.filter(|op| op.process == process && op.degraded);
    let is_outside = |op: &&Op| !blips.iter().any(|blip| blip.since <= op.begin && op.begin < blip.until);
    degraded.filter(is_outside).filter_map(|op| op.end).collect()
}

fn check_that_it_was_one(ledger: &Ledger, settings: &Settings, lasted: Nanos) -> Result<(), Failure> {
    let written =
        ledger.sessions.values().flatten().filter(|op| op.is_write() && op.end.is_some()).count() as u64;
    let writes = written / u64::from(settings.processes) * SECOND / lasted.max(1);
    if writes < LEAST_WRITES_PER_SECOND {
        return Err(format!(
            "each process wrote {writes} times a second, which proves nothing: \
             let the machine do less else, or start with fewer tasks"
        )
        .into());
    }
    let has_errors = |(_, samples): (&u32, &Vec<(Nanos, Figures)>)| {
        samples.last().is_some_and(|(_, figures)| figures.cache_errors > 0)
    };
    if !ledger.samples.iter().flatten().all(has_errors) {
        return Err("the blips broke no call of the cache, which proves nothing".into());
    }
    Ok(())
}

fn judge(verdict: &mut Verdict, ledger: &Ledger, blips: &[Blip], processes: u32, since: Nanos, until: Nanos) {
    let (mut recoveries, mut table) = (Vec::new(), Vec::new());
    for (process, samples) in ledger.samples.iter().flatten() {
        let degraded = degraded_writes(ledger, blips, *process);
        let mine: Vec<_> = blips.iter().map(|blip| recovery(samples, &degraded, blip)).collect();
        let (first, last) = (figures_at(samples, since), figures_at(samples, until));
        let (hits, others) =
            (last.hits - first.hits, last.misses + last.bypasses - first.misses - first.bypasses);
        let writes = last.fenced_writes + last.degraded_writes - first.fenced_writes - first.degraded_writes;
        let late = mine.iter().filter(|time| time.is_none_or(|time| time > RECOVERY)).count();
        table.push(format!(
            "process {process}: {} writes/s, {} of {writes} degraded, {} hits in 100 loads, breaker opened {} times, {late} of {} recoveries late",
            writes * SECOND / (until - since).max(1),
            last.degraded_writes - first.degraded_writes,
            hits * 100 / (hits + others).max(1),
            last.breaker_openings - first.breaker_openings,
            mine.len(),
        ));
        recoveries.extend(mine);
    }
    verdict.fact("by stats()", table.join("\n"));
    verdict.fact("blips", format!("{}, black holes and resets in turn; time to recover:", blips.len()));
    verdict.fact("", picture(&recoveries));
    let late = recoveries.iter().filter(|time| time.is_none_or(|time| time > RECOVERY)).count();
    let most = recoveries.iter().flatten().max().copied().unwrap_or_default();
    verdict.check(
        &format!("hits, and no degraded write, from {} after each blip on", seconds(RECOVERY)),
        late == 0,
        format!("{late} of {} late ({processes} processes), longest {}", recoveries.len(), seconds(most)),
    );
    check_blame(verdict, ledger);
}

/// Checks that no operation failed for another reason than the database.
pub(crate) fn check_blame(verdict: &mut Verdict, ledger: &Ledger) {
    let blames = ledger.counts.blames.iter().filter(|(blame, _)| **blame != Blame::Database);
    let errors: u64 = blames.map(|(_, times)| times).sum();
    verdict.check("no operation fails for a cache", errors == 0, format!("{errors} errors"));
}

/// Returns the figures of a process at a time, or shortly after it.
fn figures_at(samples: &[(Nanos, Figures)], at: Nanos) -> Figures {
    let found = samples.iter().find(|(when, _)| *when >= at).or(samples.last());
    found.map(|(_, figures)| figures.clone()).unwrap_or_default()
}
