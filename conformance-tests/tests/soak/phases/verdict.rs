//! The findings of a phase.

use std::fmt;
use std::time::Duration;

use crate::history::{Action, Answer, MILLI, Nanos, Op, SECOND};
use crate::ledger::Counts;

/// The report of a phase.
#[derive(Debug)]
pub(crate) struct Verdict {
    title: String,
    facts: Vec<(String, String)>,
    checks: Vec<Check>,
    /// The shortest history that breaks a promise.
    history: Option<String>,
}

/// A promise, whether it was kept, and the figures that show it.
#[derive(Debug)]
struct Check {
    promise: String,
    is_kept: bool,
    figures: String,
}

impl Verdict {
    pub(crate) fn new(title: String) -> Self {
        eprintln!("{title}");
        Self { title, facts: Vec::new(), checks: Vec::new(), history: None }
    }

    pub(crate) fn fact(&mut self, name: &str, text: impl Into<String>) {
        self.facts.push((name.to_owned(), text.into()));
    }

    pub(crate) fn check(&mut self, promise: &str, is_kept: bool, figures: impl Into<String>) {
        self.checks.push(Check { promise: promise.to_owned(), is_kept, figures: figures.into() });
    }

    pub(crate) fn show_history(&mut self, history: String) {
        self.history.get_or_insert(history);
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.violations() == 0
    }

    fn violations(&self) -> usize {
        self.checks.iter().filter(|check| !check.is_kept).count()
    }

    /// Adds the number of operations, and how long they took.
    pub(crate) fn count(&mut self, counts: &Counts, times: &Times) {
        let Counts { loads, writes, unanswered, departed_loads, departed_writes, .. } = counts;
        let mut text = format!("{loads} loads and {writes} writes answered, {unanswered} never");
        if departed_loads + departed_writes > 0 {
            text += &format!("; {departed_loads} loads and {departed_writes} writes left by their callers");
        }
        self.fact("operations", text);
        self.fact("time of a write", spread(&times.writes));
        self.fact("time of a load", spread(&times.loads));
        self.fact("machine", machine());
        for (error, times) in &counts.errors {
            self.fact("errors", format!("{times} times: {error}"));
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for (name, text) in &self.facts {
            let mut name = name.as_str();
            for line in text.lines() {
                writeln!(f, "  {name:<18} {line}")?;
                name = "";
            }
        }
        for check in &self.checks {
            let mark = if check.is_kept { "kept  " } else { "BROKEN" };
            writeln!(f, "  {mark}  {:<66} {}", check.promise, check.figures)?;
        }
        if let Some(history) = &self.history {
            writeln!(f, "{history}")?;
        }
        write!(f, "violations {}", self.violations())
    }
}

/// Returns how busy the machine is. Times mean little on a machine that is busy otherwise.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown").to_owned();
    format!("{cores} cores, load average {load}")
}

/// The times of operations for which their callers waited.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) loads: Vec<Nanos>,
    pub(crate) writes: Vec<Nanos>,
}

impl Times {
    pub(crate) fn add(&mut self, ops: &[Op]) {
        for op in ops {
            let Some(end) = op.end else { continue };
            match op.action {
                Action::Create => {}
                // An operation that its caller dropped.
                Action::Load if op.answer == Answer::Unknown => {}
                Action::Load => self.loads.push(end - op.begin),
                _ => self.writes.push(end - op.begin),
            }
        }
    }
}

pub(crate) fn ms(time: Nanos) -> String {
    format!("{:.1} ms", time as f64 / MILLI as f64)
}

pub(crate) fn seconds(time: Nanos) -> String {
    format!("{:.2} s", time as f64 / SECOND as f64)
}

pub(crate) fn nanos(time: Duration) -> Nanos {
    u64::try_from(time.as_nanos()).unwrap_or(Nanos::MAX)
}

fn spread(times: &[Nanos]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let of = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
    match (of(50), of(99), times.last()) {
        (Some(p50), Some(p99), Some(most)) => {
            format!("p50 {}, p99 {}, most {}", ms(*p50), ms(*p99), ms(*most))
        }
        _ => "none".into(),
    }
}

/// Draws a histogram of times.
pub(crate) fn picture(times: &[Option<Nanos>]) -> String {
    const STEPS: [Nanos; 7] =
        [SECOND / 10, SECOND / 4, SECOND / 2, SECOND, 2 * SECOND, 5 * SECOND, Nanos::MAX];
    const WIDTH: usize = 40;
    let mut lines = Vec::new();
    let mut from = 0;
    let mut bar = |name: String, count: usize| {
        if count > 0 {
            let length = (count * WIDTH).div_ceil(times.len().max(1));
            lines.push(format!("{name:>16}  {:<WIDTH$} {count}", "#".repeat(length)));
        }
    };
    for to in STEPS {
        let count = times.iter().flatten().filter(|time| (from..to).contains(*time)).count();
        let name = if to == Nanos::MAX { "later".into() } else { format!("below {}", seconds(to)) };
        bar(name, count);
        from = to;
    }
    bar("never".into(), times.iter().filter(|time| time.is_none()).count());
    lines.join("\n")
}
