//! Phases: soaks that each make one kind of trouble, and judge how fast it is over, besides the correctness
//! of all answers.

pub(crate) mod blips;
mod crowd;
mod departing;
mod failover;
mod lost_server;
pub(crate) mod phase_worker;
mod process_group;
pub(crate) mod verdict;
mod watched;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Failure;
use crate::checker::Surroundings;
use crate::history::{Nanos, Op, PhaseOrders, SECOND};
use crate::ledger;
use crate::run;
use crate::worker::WRITE_BOUND;
use process_group::{ProcessGroup, lock};
use verdict::{Times, Verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Hundreds of writers of one session, while nothing is broken.
    Crowd,
    /// The cache is away for a moment, repeatedly, while all processes write.
    Blips,
    /// Callers leave in the middle of their operations.
    Departing,
    /// One server of several of a cache dies, and comes back.
    LostServer,
    /// The database's primary goes, and its replica takes over.
    Failover,
}

pub(crate) const ALL: [Phase; 5] =
    [Phase::Crowd, Phase::Blips, Phase::Departing, Phase::LostServer, Phase::Failover];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crowd => "crowd",
            Self::Blips => "blips",
            Self::Departing => "departing",
            Self::LostServer => "lost-server",
            Self::Failover => "failover",
        })
    }
}

impl FromStr for Phase {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let names = || ALL.map(|phase| phase.to_string()).join(", ");
        ALL.into_iter()
            .find(|phase| phase.to_string() == text)
            .ok_or_else(|| format!("there is no phase {text:?}; choose from {}", names()).into())
    }
}

/// A part that is left out of a phase, to show that this is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Omitted {
    Operations,
    /// Blips, and deaths of servers.
    Faults,
    Departures,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) cache: String,
    pub(crate) database: String,
    pub(crate) lasts: Duration,
    pub(crate) seed: u64,
    pub(crate) processes: u32,
    pub(crate) omitted: Option<Omitted>,
    /// The program to start as a process.
    pub(crate) program: std::path::PathBuf,
}

impl Settings {
    pub(crate) fn new(pair: &str, lasts: Duration, seed: u64) -> Result<Self, Failure> {
        // Refuses pairs that do not exist.
        let run::Settings { cache, database, program, processes, .. } =
            run::Settings::new(pair, lasts, seed)?;
        Ok(Self { cache, database, lasts, seed, processes, omitted: None, program })
    }

    fn omits(&self, what: Omitted) -> bool {
        self.omitted == Some(what)
    }

    fn run(&self) -> u32 {
        u32::try_from(self.seed & 0xffff_ffff).unwrap_or_default()
    }

    /// Returns the orders for one process, whose tasks write fields of their own.
    fn orders(&self, process: u32, tasks: u32, cache: String, database: String) -> PhaseOrders {
        PhaseOrders {
            cache,
            database,
            run: self.run(),
            seed: self.seed,
            process,
            first_writer: process * tasks,
            max_cache_age: 60 * SECOND,
            cache_timeout: SECOND / 2,
        }
    }

    /// Returns circumstances in which nothing is broken.
    fn surroundings(&self, max_cache_age: Nanos) -> Surroundings {
        let is_private = self.cache == "moka";
        let is_healthy = !is_private;
        Surroundings {
            max_cache_age,
            write_bound: WRITE_BOUND,
            is_private,
            is_healthy,
            ..Surroundings::default()
        }
    }
}

/// Runs a phase. Fails if it could not be run, or proved nothing.
pub(crate) async fn run(phase: Phase, settings: &Settings) -> Result<Vec<Verdict>, Failure> {
    if let Some(hindrance) = hindrance(phase, settings) {
        return Err(format!("{hindrance}: choose another pair with --pair").into());
    }
    match phase {
        Phase::Crowd => Ok(vec![crowd::run(settings).await?]),
        Phase::Blips => Ok(vec![blips::run(settings).await?]),
        Phase::Departing => Ok(vec![departing::run(settings).await?]),
        Phase::LostServer => lost_server::run(settings).await,
        Phase::Failover => failover::run(settings).await,
    }
}

/// Returns the reason why a phase cannot run with this pair, if it cannot.
pub(crate) fn hindrance(phase: Phase, settings: &Settings) -> Option<&'static str> {
    let is_moka = settings.cache == "moka";
    if settings.cache.starts_with(crate::table::NEAR) || settings.cache == crate::table::NOTIFIED {
        return Some("phases count what the shared cache answers, which a near cache hides");
    }
    match phase {
        Phase::Blips if is_moka => Some("moka lives in the process and cannot be cut off"),
        Phase::LostServer if is_moka => Some("moka has no servers that could be lost"),
        Phase::Failover if is_moka => Some("moka is never shared, so that its answers may be old anyway"),
        Phase::Failover if !failover::has_replica(&settings.database) => {
            Some("the database lives in the process and has no replica")
        }
        _ => None,
    }
}

/// Judges the histories of all sessions, and removes them.
fn judge(group: &ProcessGroup, surroundings: &Surroundings, truth: &mut Truth) {
    judge_part(group, surroundings, truth, |ops| ops);
}

/// Judges the `part` of each history that is promised anything.
fn judge_part(
    group: &ProcessGroup,
    surroundings: &Surroundings,
    truth: &mut Truth,
    part: impl Fn(Vec<Op>) -> Vec<Op>,
) {
    let all = lock(&group.ledger).take_finished(true);
    let sessions: Vec<_> = all.into_iter().map(|(session, ops)| (session, part(ops))).collect();
    truth.sessions += sessions.len() as u64;
    sessions.iter().for_each(|(_, ops)| truth.times.add(ops));
    if truth.broken.is_some() {
        return;
    }
    match ledger::judge(&sessions, surroundings) {
        Ok(explained) => truth.explained += explained,
        Err((session, violation, _)) => {
            truth.broken = Some(format!("session {}.{}: {violation}", session.slot, session.generation));
        }
    }
}

/// The result of judging the histories.
#[derive(Debug, Default)]
struct Truth {
    sessions: u64,
    /// The number of these that the oracle judged.
    explained: u64,
    broken: Option<String>,
    times: Times,
}

impl Truth {
    fn report(self, verdict: &mut Verdict) {
        let Self { sessions, explained, broken, .. } = self;
        let figures = format!("{sessions} sessions judged, {explained} of them by the oracle, too");
        verdict.check("every answer is true", broken.is_none(), figures);
        if let Some(broken) = broken {
            verdict.show_history(broken);
        }
    }
}
