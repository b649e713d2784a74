//! The report of a soak.

use std::fmt;
use std::time::{Duration, Instant};

use super::faults::{Fault, Kind, Target};
use super::ledger::Counts;
use super::run::{ByRevision, Found, Settings};
use crate::Failure;

#[derive(Debug)]
pub(crate) struct Report {
    title: String,
    begun: Instant,
    shown: Instant,
    pub(crate) counts: Counts,
    /// Each fault, with how often proxies disturbed a connection for it.
    pub(crate) faults: Vec<(Fault, u64)>,
    pub(crate) recoveries: Vec<Recovery>,
    pub(crate) killed: u64,
    /// The number of reads of a session at the end.
    pub(crate) looked: u64,
    /// The number of times that proxies disturbed a connection, of the cache and of the database.
    pub(crate) injected: (u64, u64),
    /// The number of loads that near caches answered from memory.
    pub(crate) near_hits: u64,
    is_near: bool,
    /// The operations of either revision, if an older one ran beside the present one.
    pub(crate) by_revision: Option<ByRevision>,
    pub(crate) found: Option<Found>,
}

/// Times after the end of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovery {
    pub(crate) fault: Fault,
    /// The time until the cache had answered loads of every process.
    pub(crate) hits: Duration,
    /// The time until every process had written.
    pub(crate) writes: Duration,
}

const INTERVAL: Duration = Duration::from_secs(5);

impl Report {
    pub(crate) fn new(settings: &Settings) -> Self {
        let Settings { cache, database, processes, tasks, slots, seed, .. } = settings;
        let title = format!(
            "soak {cache}+{database}, seed {seed}: {processes} processes of {tasks} tasks, {slots} sessions at a time"
        );
        eprintln!("{title}");
        Self {
            title,
            begun: Instant::now(),
            shown: Instant::now(),
            counts: Counts::default(),
            faults: Vec::new(),
            recoveries: Vec::new(),
            killed: 0,
            looked: 0,
            injected: (0, 0),
            near_hits: 0,
            is_near: settings.is_near(),
            by_revision: None,
            found: None,
        }
    }

    pub(crate) fn show_progress(&mut self, counts: &Counts, injected: u64, what: &str) {
        if self.shown.elapsed() < INTERVAL {
            return;
        }
        self.shown = Instant::now();
        eprintln!(
            "{:>5.0} s  operations {}, faults {} (by proxies {injected} times), killed {}, errors {}, degraded {}, \
             sessions judged {}, violations 0; now: {what}",
            self.begun.elapsed().as_secs_f64(),
            counts.loads + counts.writes,
            self.faults.len(),
            self.killed,
            counts.errors(),
            counts.degraded,
            counts.sessions_judged,
        );
    }

    /// Fails if the soak proves nothing, because nothing was done, or nothing broken.
    pub(crate) fn check_that_it_was_one(&self) -> Result<(), Failure> {
        let Counts { loads, writes, sessions_judged, sessions_explained, .. } = self.counts;
        if loads == 0 || writes == 0 || sessions_judged == 0 || sessions_explained == 0 {
            return Err(
                format!("the soak made {loads} loads and {writes} writes, which proves nothing").into()
            );
        }
        if self.faults.is_empty() && self.killed == 0 {
            return Err("nothing was broken, which proves nothing: let the soak last longer".into());
        }
        if self.is_near && self.near_hits == 0 {
            return Err("no near cache answered from memory, which proves nothing".into());
        }
        if let Some(ByRevision { older, present, started }) = &self.by_revision {
            // Four of the older one, and both directions.
            let is_one_way = started.0 <= 4 || started.1 <= 1;
            if is_one_way || [older.0, older.1, present.0, present.1].contains(&0) {
                return Err(format!(
                    "the older revision made {older:?} loads and writes in {} processes, the present one {present:?} in {}, \
                     which proves nothing of both beside each other, and of a way back: let the soak last longer",
                    started.0, started.1
                )
                .into());
            }
        }
        if self.looked == 0 {
            return Err("no session was read at the end, which proves nothing".into());
        }
        for (target, injected) in [(Target::Cache, self.injected.0), (Target::Database, self.injected.1)] {
            let mut by_network = self.faults.iter().filter(|(fault, _)| {
                matches!(fault.kind, Kind::Network(..))
                    && (fault.target == target || fault.target == Target::Both)
            });
            if by_network.next().is_some() && injected == 0 {
                return Err(
                    format!("the proxies of the {target:?} injected nothing, which proves nothing").into()
                );
            }
        }
        Ok(())
    }

    /// Returns everything but the verdict.
    pub(crate) fn figures(&self) -> String {
        let mut text = self.to_string();
        text.truncate(text.rfind("\nviolations ").unwrap_or(text.len()));
        text
    }

    /// Returns `true` if all promises were kept.
    pub(crate) fn is_clean(&self) -> bool {
        self.found.is_none()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            begun,
            loads,
            writes,
            unanswered,
            degraded,
            sessions_judged,
            sessions_explained,
            errors,
            ..
        } = &self.counts;
        writeln!(f, "{}, {:.0} s", self.title, self.begun.elapsed().as_secs_f64())?;
        writeln!(
            f,
            "operations        {begun} begun: {loads} loads and {writes} writes answered, {unanswered} never"
        )?;
        writeln!(
            f,
            "sessions judged   {sessions_judged}, of these {sessions_explained} by the oracle, too, and {} loads of them when all was over",
            self.looked
        )?;
        let by_engine = self.faults.iter().filter(|(fault, _)| fault.is_engine_fault()).count();
        let stopped = self.faults.iter().filter(|(fault, _)| fault.target == Target::Process).count();
        let by_network = self.faults.len() - by_engine - stopped;
        writeln!(
            f,
            "faults injected   {}: {by_engine} by the container engine, {by_network} by proxies ({} + {} times in all), \
             {stopped} processes stopped, and {} killed",
            self.faults.len(),
            self.injected.0,
            self.injected.1,
            self.killed
        )?;
        if self.is_near {
            writeln!(f, "near hits         {}", self.near_hits)?;
        }
        if let Some(ByRevision { older, present, started }) = &self.by_revision {
            writeln!(
                f,
                "older revision    {} loads and {} writes answered, by {} processes; the present one {} and {}, by {}",
                older.0, older.1, started.0, present.0, present.1, started.1
            )?;
        }
        writeln!(f, "errors returned   {}", self.counts.errors())?;
        for (error, times) in errors {
            writeln!(f, "  {times:>6}  {error}")?;
        }
        writeln!(f, "degraded results  {degraded}")?;
        for target in [Target::Cache, Target::Database, Target::Both, Target::Process] {
            let of: Vec<_> =
                self.recoveries.iter().filter(|recovery| recovery.fault.target == target).collect();
            let name = format!("{target:?}").to_lowercase();
            let seconds = |times: Vec<Duration>| median_and_most(times);
            if !of.is_empty() {
                writeln!(
                    f,
                    "time to recover   {name:<9} hits {}, writes {}",
                    seconds(of.iter().map(|recovery| recovery.hits).collect()),
                    seconds(of.iter().map(|recovery| recovery.writes).collect()),
                )?;
            }
        }
        match &self.found {
            None => write!(f, "violations 0"),
            Some(Found { session, violation }) => {
                write!(f, "violations 1, session {}.{}: {violation}", session.slot, session.generation)
            }
        }
    }
}

fn median_and_most(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let second = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
    format!("{:.1} s (most {:.1} s)", second(times.get(times.len() / 2)), second(times.last()))
}
