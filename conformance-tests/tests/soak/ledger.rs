//! The reports of all processes, put together, counted, and judged as soon as a session's time is over.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::checker::{self, Surroundings, Violation};
use super::history::{
    Action, Answer, Blame, Figures, Line, Nanos, Op, Reply, Revocation, SECOND, SessionId, now,
};

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) sessions: BTreeMap<SessionId, Vec<Op>>,
    /// The session and position of an operation, by process and number.
    pub(crate) pending: HashMap<(u32, u64), (SessionId, usize)>,
    pub(crate) surroundings: Surroundings,
    pub(crate) counts: Counts,
    pub(crate) processes: HashMap<u32, Process>,
    /// The next write of this process is to be its last.
    pub(crate) to_kill: Option<u32>,
    /// The figures of the processes, by process, if they are kept.
    pub(crate) samples: Option<BTreeMap<u32, Vec<(Nanos, Figures)>>>,
    /// Answers to commands, by process.
    pub(crate) replies: BTreeMap<u32, VecDeque<Reply>>,
    pub(crate) revocations: Vec<Revocation>,
    /// A line that is no report: its process, which speaks another language, and the line.
    pub(crate) unread: Option<(u32, String)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) begun: u64,
    /// Answers without an error.
    pub(crate) loads: u64,
    pub(crate) writes: u64,
    pub(crate) unanswered: u64,
    pub(crate) degraded: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) blames: BTreeMap<Blame, u64>,
    /// Writes that answered, or failed, with an unknown outcome.
    pub(crate) open: u64,
    pub(crate) departed_loads: u64,
    pub(crate) departed_writes: u64,
    pub(crate) sessions_judged: u64,
    /// The number of these that the oracle judged.
    pub(crate) sessions_explained: u64,
}

impl Counts {
    pub(crate) fn errors(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// The state of a process, as its reports show it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Process {
    pub(crate) is_ready: bool,
    pub(crate) has_ended: bool,
    /// The beginning of the latest time in which the cache answered loads.
    pub(crate) hit_since: Nanos,
    /// The beginning of the latest write that was acknowledged.
    pub(crate) wrote_since: Nanos,
    pub(crate) near_hits: u64,
    pub(crate) loads: u64,
    pub(crate) writes: u64,
    hits: u64,
    reported_at: Nanos,
    pub(crate) cache_errors: u64,
}

impl Ledger {
    /// Takes in a line of a process. Returns `true` if the process must be killed now.
    pub(crate) fn take(&mut self, process: u32, line: Line) -> bool {
        let state = self.processes.entry(process).or_default();
        match line {
            Line::Ready => state.is_ready = true,
            Line::Stats { at, figures } => {
                if figures.hits > state.hits {
                    state.hit_since = state.reported_at;
                }
                (state.hits, state.reported_at, state.cache_errors) =
                    (figures.hits, at, figures.cache_errors);
                state.near_hits = figures.near_hits;
                if let Some(samples) = &mut self.samples {
                    samples.entry(process).or_default().push((at, figures));
                }
            }
            Line::Done(reply) => self.replies.entry(process).or_default().push_back(reply),
            Line::Revoked(revocation) => self.revocations.push(revocation),
            Line::Begin { op, session, action, at } => {
                self.counts.begun += 1;
                let ops = self.sessions.entry(session).or_default();
                self.pending.insert((process, op), (session, ops.len()));
                ops.push(Op::begun(process, action, at));
                let is_write = !matches!(action, Action::Load | Action::Create);
                if is_write && self.to_kill == Some(process) {
                    self.to_kill = None;
                    return true;
                }
            }
            Line::End { op, answer, degraded, at, error, departed } => {
                let Some((session, number)) = self.pending.remove(&(process, op)) else { return false };
                let Some(op) = self.sessions.get_mut(&session).and_then(|ops| ops.get_mut(number)) else {
                    return false;
                };
                let is_acknowledged = !matches!(answer, Answer::Refused | Answer::Unknown);
                let is_write = op.action != Action::Load;
                if is_acknowledged && is_write && answer != Answer::Nothing {
                    state.wrote_since = state.wrote_since.max(op.begin);
                }
                state.loads += u64::from(is_acknowledged && !is_write);
                state.writes += u64::from(is_acknowledged && is_write);
                self.counts.loads += u64::from(is_acknowledged && !is_write);
                self.counts.writes += u64::from(is_acknowledged && is_write);
                self.counts.degraded += u64::from(degraded);
                self.counts.departed_loads += u64::from(departed && !is_write);
                self.counts.departed_writes += u64::from(departed && is_write);
                self.counts.open += u64::from(!departed && is_write && answer == Answer::Unknown);
                if let Some((blame, error)) = error {
                    *self.counts.blames.entry(blame).or_default() += 1;
                    *self.counts.errors.entry(error).or_default() += 1;
                }
                op.answered(at, answer, degraded);
            }
        }
        false
    }

    /// Notes that the process is dead, so its open operations will not answer.
    pub(crate) fn mark_ended(&mut self, process: u32) {
        let before = self.pending.len();
        self.pending.retain(|(of, _), _| *of != process);
        self.counts.unanswered += (before - self.pending.len()) as u64;
        self.processes.entry(process).or_default().has_ended = true;
    }

    /// Removes and returns the sessions that were not used for a while, or all.
    pub(crate) fn take_finished(&mut self, all: bool) -> Vec<(SessionId, Vec<Op>)> {
        let quiet = now().saturating_sub(3 * SECOND);
        let busy: Vec<SessionId> = self.pending.values().map(|(session, _)| *session).collect();
        let newest = self.sessions.keys().map(|session| session.generation).max().unwrap_or_default();
        let is_over = |session: &SessionId, ops: &Vec<Op>| {
            session.generation + 3 <= newest
                && !busy.contains(session)
                && ops.iter().all(|op| op.begin.max(op.end.unwrap_or_default()) < quiet)
        };
        self.sessions.extract_if(.., |session, ops| all || is_over(session, ops)).collect()
    }
}

/// Returns how many of these sessions the oracle judged, or the first that breaks a promise.
pub(crate) fn judge(
    sessions: &[(SessionId, Vec<Op>)],
    surroundings: &Surroundings,
) -> Result<u64, (SessionId, Violation, Vec<Op>)> {
    let mut explained = 0;
    for (session, ops) in sessions {
        let checked = checker::check(ops, surroundings);
        explained += u64::from(checked.map_err(|violation| (*session, violation, ops.clone()))?);
    }
    Ok(explained)
}
