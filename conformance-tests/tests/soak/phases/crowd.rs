//! A crowd: 64 tasks in each of 4 processes write one session at the same instants, and the cache answers all
//! the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use session_cached_db::{CachedDb, NoCache, Schema};
use session_core::{Cache as _, KeyForm, KeyPrefix, SessionKey, State, StoredKey};

use super::process_group::{ProcessGroup, Servers, lock};
use super::verdict::{Verdict, ms};
use super::{Omitted, Settings, Truth};
use crate::Failure;
use crate::history::{Blame, Command, MILLI, Mix, Nanos, Reply, SECOND, SessionId, Work, now, session_key};
use crate::worker::stored_key;

const TASKS: u32 = 64;

/// All tasks begin an operation at each multiple of this.
const BEAT: Nanos = 150 * MILLI;

/// The time for which the tasks write a session before they rest.
const ROUND: Duration = Duration::from_millis(3_500);

/// The time for which they write, delete and rotate it after that.
const ENDING: Duration = Duration::from_millis(600);

/// The time within which the cache must serve the session after the crowd has gone: a few round trips, on a
/// busy machine.
const SERVED_WITHIN: Nanos = SECOND / 2;

/// A database that takes this long for one read is too slow for a crowd.
const SLOW: Nanos = SECOND / 2;

pub(super) async fn run(settings: &Settings) -> Result<Verdict, Failure> {
    let servers = Servers::start(settings, true).await?;
    let mut verdict = Verdict::new(format!(
        "crowd {}+{}, seed {}: {} processes of {TASKS} tasks write one session",
        settings.cache, settings.database, settings.seed, settings.processes
    ));
    let is_private = settings.cache == "moka";
    let max_cache_age = if is_private { 3 * SECOND } else { 60 * SECOND };
    let orders = (0..settings.processes).map(|process| {
        let node = process as usize;
        let (cache, database) = (servers.cache_url(node), servers.database_url(Some(node)));
        let mut orders = settings.orders(process, TASKS, cache, database);
        orders.max_cache_age = max_cache_age;
        // The cache answers. If two cores are busy with 256 writers, that is not its fault.
        orders.cache_timeout = 2 * SECOND;
        if orders.cache.starts_with("redis") || orders.cache.starts_with("memcache") {
            orders.cache += "?response_timeout_ms=1900";
        }
        orders
    });
    let mut group = ProcessGroup::start(settings, orders.collect()).await?;
    let surroundings = settings.surroundings(max_cache_age);
    let pace = Pace::measure(settings, &servers).await?;

    let (mut truth, mut stuck, mut rounds) = (Truth::default(), 0, 0);
    let mut served: Vec<Option<Nanos>> = Vec::new();
    let end = Instant::now() + settings.lasts;
    while rounds == 0 || Instant::now() + ROUND < end && !settings.omits(Omitted::Operations) {
        rounds += 1;
        let hot = SessionId { slot: 0, generation: rounds };
        group.command(1, &Command::Create { sessions: vec![hot] }).await?;
        let work = Work {
            tasks: if settings.omits(Omitted::Operations) { 0 } else { TASKS },
            sessions: vec![hot],
            mix: Mix { saves: 650, touches: 100, ..Mix::default() },
            pause: 0,
            beat: BEAT,
            revokes: false,
        };
        group.command_all(&Command::Operate(work.clone())).await?;
        tokio::time::sleep(if settings.omits(Omitted::Operations) { Duration::ZERO } else { ROUND }).await;
        stuck += rest(&mut group).await?;
        let mut held = Vec::new();
        let serve = Command::Serve { sessions: vec![hot], within: SERVED_WITHIN };
        for reply in group.command_all(&serve).await? {
            if let Reply::Served { unserved, after } = reply {
                served.push(unserved.is_empty().then_some(after));
                held.extend(unserved);
            }
        }
        if let Some(text) = what_holds(settings, &servers.cache_url(0), &held).await? {
            verdict.fact("not served", text);
        }
        let mix = Mix { deletes: 2, rotations: 2, ..work.mix };
        group.command_all(&Command::Operate(Work { mix, ..work })).await?;
        tokio::time::sleep(ENDING).await;
        stuck += rest(&mut group).await?;
        super::judge(&group, &surroundings, &mut truth);
    }
    let slowest = pace.stop();

    let ledger = lock(&group.ledger);
    let counts = &ledger.counts;
    let written = truth.times.writes.len();
    if written == 0 || counts.loads == 0 {
        return Err(format!("the crowd made {written} writes, which proves nothing").into());
    }
    verdict.count(counts, &truth.times);
    let last = ledger.samples.iter().flatten().filter_map(|(_, samples)| samples.last());
    let (mut cache_errors, mut fences, mut openings) = (0, 0, 0);
    for (_, figures) in last {
        cache_errors += figures.cache_errors;
        fences += figures.fenced_writes;
        openings += figures.breaker_openings;
    }
    verdict.fact("sessions", format!("{rounds} one after the other; {fences} writes fenced"));
    if openings > 0 {
        return Err("a breaker opened although nothing was broken, which proves nothing: \
             the machine is too busy for this, let it do less else"
            .into());
    }
    let blamed = |blame| counts.blames.get(&blame).copied().unwrap_or_default();
    verdict.check(
        // A fence whose answer is lost is placed once more, so one failed call degrades no write.
        "no write is degraded, but by two cache calls that failed",
        counts.degraded.saturating_mul(2) <= cache_errors,
        format!("{} of {} writes; {cache_errors} calls failed", counts.degraded, counts.writes),
    );
    let blaming = blamed(Blame::Cache);
    verdict.check("no error blames the cache", blaming == 0, format!("{blaming} errors"));
    let (database, other) = (blamed(Blame::Database), blamed(Blame::Other));
    let is_excused = slowest > SLOW;
    verdict.check(
        "every write has a known outcome, unless the database is slow",
        counts.open == 0 || is_excused,
        format!("{} do not", counts.open),
    );
    verdict.check(
        "no operation fails, unless the database is slow",
        database + other == 0 || is_excused,
        format!("{} errors; the slowest read took {}", database + other, ms(slowest)),
    );
    let busy = blamed(Blame::Queue);
    verdict.check(
        "no queue is full or too slow, unless the database is slow",
        busy == 0 || is_excused,
        format!("{busy} writes were turned away"),
    );
    verdict.check("every operation ends", stuck == 0, format!("{stuck} did not"));
    let late = served.iter().filter(|after| after.is_none()).count();
    let latest = served.iter().flatten().max().copied().unwrap_or_default();
    verdict.check(
        "the cache serves the session as soon as the crowd has gone",
        late == 0,
        format!("{late} of {} not within {}, latest {}", served.len(), ms(SERVED_WITHIN), ms(latest)),
    );
    drop(ledger);
    truth.report(&mut verdict);
    Ok(verdict)
}

/// Stops the operations, and returns how many did not end.
pub(super) async fn rest(group: &mut ProcessGroup) -> Result<u32, Failure> {
    let replies = group.command_all(&Command::Rest { within: 15 * SECOND }).await?;
    Ok(replies.iter().map(|reply| if let Reply::Resting { stuck } = reply { *stuck } else { 0 }).sum())
}

/// Describes the entries of keys that the cache does not serve.
pub(super) async fn what_holds(
    settings: &Settings,
    cache: &str,
    sessions: &[SessionId],
) -> Result<Option<String>, Failure> {
    if sessions.is_empty() || cache.starts_with("moka") {
        return Ok(None);
    }
    let cache = cache_backends::connect(cache)?;
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let sessions: BTreeSet<_> = sessions.iter().collect();
    for session in &sessions {
        let key = session_key(settings.run(), **session);
        let key = SessionKey::parse(&key).map_err(|_| "no session has this key")?;
        let key = StoredKey::derive(&key, KeyForm::Hashed, &KeyPrefix::NONE)
            .map_err(|_| "the key cannot be stored")?;
        let what = match cache.get(&key).await {
            Ok(None) => "nothing".to_owned(),
            Ok(Some(entry)) => match entry.state {
                State::Value(_) => "a value".to_owned(),
                State::Lease => "a lease".to_owned(),
                State::Fence(fence) => {
                    let dirty = if fence.dirty { "dirty " } else { "" };
                    format!("a {dirty}fence of {} writers", fence.holders.len())
                }
            },
            Err(error) => format!("an error: {error}"),
        };
        *counts.entry(what).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(what, count)| format!("{count} have {what}")).collect();
    Ok(Some(format!("{} keys, of which in the cache {}", sessions.len(), counts.join(", "))))
}

/// Returns how long the database takes for a read beside the crowd.
struct Pace {
    slowest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Pace {
    async fn measure(settings: &Settings, servers: &Servers) -> Result<Self, Failure> {
        let db = db_backends::connect(&servers.database_url(None)).await?;
        let store = CachedDb::builder(NoCache, db).schema(Schema::Trust).reaper(None).build().await?;
        let key = stored_key(&store, &session_key(settings.run(), SessionId { slot: 1, generation: 0 }));
        let pace = Self { slowest: Arc::default(), stop: Arc::default() };
        let (slowest, stop) = (Arc::clone(&pace.slowest), Arc::clone(&pace.stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let begin = now();
                let _ = store.load(&key).await;
                slowest.fetch_max(now() - begin, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Ok(pace)
    }

    fn stop(self) -> Nanos {
        self.stop.store(true, Ordering::SeqCst);
        self.slowest.load(Ordering::SeqCst)
    }
}
