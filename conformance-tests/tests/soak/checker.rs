//! The judge of the history of one session.
//!
//! It judges twice. First by rules, which can say what is wrong, and which know the bound that is promised
//! where linearizability is not. Every task writes rising numbers into a field of its own, and a session that
//! has ended does not come back. So the order of a session's states can be read off them: nothing, then ever
//! larger contents, then the end. Linearizable operations answer with states of one such chain, each at least
//! as far as every answer before the operation began. A history that breaks no rule is then judged by the
//! simulator's [`oracle`], which is exact.

mod reached;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use self::reached::Reached;
use super::history::{Action, Answer, Fields, Nanos, Op, SECOND, Writer, is_strict};
use super::oracle::{self, Verdict};

/// The circumstances of a history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) max_cache_age: Nanos,
    /// A statement without an answer takes effect by then, or never.
    pub(crate) write_bound: Nanos,
    /// The times in which a process may have been unable to reach the cache.
    pub(crate) unreachable: Vec<(Nanos, Nanos)>,
    /// The instants at which the cache may have lost its entries.
    pub(crate) losses: Vec<(Nanos, Nanos)>,
    /// Every save counts itself in the value that all writers modify.
    pub(crate) counts_saves: bool,
    /// No process sees the cache of another, so only the bound is ever promised.
    pub(crate) is_private: bool,
    /// The cache answers all the time, so nothing lowers the promise, not even a degraded result.
    pub(crate) is_healthy: bool,
    /// The freshness bound, if the caches are near ones: what their loads are held to; see [`Reached::for_near`].
    pub(crate) near: Option<Nanos>,
    /// The processes without a near cache, beside others that have one.
    pub(crate) plain: BTreeSet<u32>,
    /// The processes that run the program of an older revision.
    pub(crate) older: BTreeSet<u32>,
}

impl Surroundings {
    /// Returns the freshness bound if the operation is a load from a near cache.
    fn near(&self, op: &Op) -> Option<Nanos> {
        self.near.filter(|_| op.is_load() && !self.plain.contains(&op.process))
    }
}

/// The maximum time to spend on shortening a history.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// The tolerance for the time that reading a clock takes.
const SLACK: Nanos = SECOND / 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A state that no order of the writes leads to: of two saves, neither has the other's field.
    LostUpdate,
    /// A modification that was acknowledged and is missing, or one that was made twice.
    Miscounted,
    /// A value that was not written, or not yet, or that was refused.
    Unwritten,
    /// An older state than one that was there before.
    Stale,
    /// Such an older state, and older than `max_cache_age`.
    OlderThanPromised,
    /// The session is there, although its end was acknowledged.
    Undead,
    /// The session is gone, although no operation ended it.
    Lost,
    /// The session was ended twice.
    EndedTwice,
    /// No order of the operations explains the answers.
    Unexplained,
}

#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) reason: String,
    /// The shortest history that still shows it, in the order of beginning.
    pub(crate) history: Vec<Op>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}: {}", self.kind, self.reason)?;
        self.history.iter().try_for_each(|op| writeln!(f, "  {op}"))
    }
}

/// The position of a session in its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Alive(Fields),
    Gone,
}

impl State {
    /// Returns `true` if the session is at this position, or further.
    fn has_reached(&self, floor: &Self) -> bool {
        match (self, floor) {
            (_, Self::Absent) | (Self::Gone, _) => true,
            (Self::Alive(mine), Self::Alive(floor)) => contains(mine, floor),
            (Self::Absent, _) | (Self::Alive(_), Self::Gone) => false,
        }
    }
}

fn contains(larger: &Fields, smaller: &Fields) -> bool {
    smaller.iter().all(|(writer, count)| larger.get(writer).is_some_and(|mine| mine >= count))
}

/// Judges all operations on one session. Returns `true` if the oracle judged them, too, which it does not if
/// there are too many orders.
pub(crate) fn check(history: &[Op], surroundings: &Surroundings) -> Result<bool, Violation> {
    let (kind, reason) = match judge(history, surroundings) {
        Ok(is_explained) => return Ok(is_explained),
        Err(problem) => problem,
    };
    let mut history = shortened(history, kind, surroundings);
    history.sort_by_key(|op| op.begin);
    let reason = judge(&history, surroundings).err().map_or(reason, |(_, reason)| reason);
    Err(Violation { kind, reason, history })
}

type Judgement<T = ()> = Result<T, (Kind, String)>;

fn judge(history: &[Op], surroundings: &Surroundings) -> Judgement<bool> {
    check_rules(history, surroundings)?;
    let bounded = bounded(history, surroundings);
    // No order explains loads that may be behind. The rules judge them.
    let is_left_to_rules = |op: &Op| is_bound(op, &bounded) || surroundings.near(op).is_some();
    match oracle::judge(history, is_left_to_rules) {
        Verdict::Explained => Ok(true),
        Verdict::TooMany => Ok(false),
        Verdict::Unexplained(number) => {
            let Op { action, answer, .. } = &history[number];
            Err((
                Kind::Unexplained,
                format!("no order of the operations explains that {action:?} answered {answer:?}"),
            ))
        }
    }
}

pub(crate) fn check_rules(history: &[Op], surroundings: &Surroundings) -> Judgement {
    check_provenance(history)?;
    if surroundings.counts_saves {
        check_counted(history)?;
    }
    check_chain(history)?;
    check_order(history, surroundings)
}

/// Returns `true` if it is a load to which no more than the bound is promised.
fn is_bound(op: &Op, bounded: &[(Nanos, Nanos)]) -> bool {
    op.is_load() && op.end.is_none_or(|end| is_within(bounded, op.begin, end))
}

impl Op {
    pub(crate) fn fields(&self) -> Option<&Fields> {
        match &self.answer {
            Answer::Seen(fields) | Answer::Saved(fields) | Answer::Rotated(fields) => Some(fields),
            _ => None,
        }
    }

    /// Returns `true` if the operation changes the session.
    pub(crate) fn is_write(&self) -> bool {
        !matches!(self.action, Action::Load | Action::Create)
    }

    fn is_load(&self) -> bool {
        self.action == Action::Load
    }

    /// Returns `true` if no process may show an older state once this has answered. A process without a near cache does not
    /// wait for those that have one, and an older program may save nothing strictly.
    fn is_final(&self, surroundings: &Surroundings) -> bool {
        match (self.action, &self.answer) {
            _ if surroundings.plain.contains(&self.process) => false,
            (_, Answer::Removed(_) | Answer::Rotated(_)) => true,
            (Action::Save(_, count), Answer::Saved(_)) => {
                is_strict(count) && !surroundings.older.contains(&self.process)
            }
            _ => false,
        }
    }

    /// Returns `true` if the operation may have ended the session.
    fn may_end(&self) -> bool {
        let is_end = matches!(self.action, Action::Delete | Action::Rotate);
        is_end && matches!(self.answer, Answer::Removed(true) | Answer::Rotated(_) | Answer::Unknown)
    }
}

/// Checks that every value that was seen had begun to be written.
fn check_provenance(history: &[Op]) -> Judgement {
    let mut written = BTreeMap::new();
    let mut created = Vec::new();
    for op in history {
        match op.action {
            Action::Save(writer, count) => {
                // A refused save keeps its place, but must not be seen.
                written.insert((writer, count), (op.begin, op.answer == Answer::Refused));
            }
            Action::Create if op.answer != Answer::Refused => created.push(op.begin),
            _ => {}
        }
    }
    for op in history {
        let Some(end) = op.end else { continue };
        let is_there = op.fields().is_some() || op.answer == Answer::Touched;
        if is_there && !created.iter().any(|begin| *begin < end) {
            return Err((Kind::Unwritten, "a session that was never created was there".into()));
        }
        for (writer, count) in op.fields().into_iter().flatten() {
            let problem = match written.get(&(*writer, *count)) {
                None => "was never written",
                Some((_, true)) => "was refused",
                Some((begin, _)) if *begin >= end => "was not yet written",
                Some(_) => continue,
            };
            return Err((Kind::Unwritten, format!("field {writer} was {count}, which {problem}")));
        }
    }
    Ok(())
}

/// Checks in every state that was seen that each save of a writer up to the one in its field has counted itself once: all of
/// those that were acknowledged, and no more than may have taken effect. n acknowledged modifications are n.
fn check_counted(history: &[Op]) -> Judgement {
    // By writer, the saves in the order of their numbers: how many up to there were acknowledged, and may have happened.
    let mut saves: BTreeMap<Writer, Vec<(u64, u64, u64)>> = BTreeMap::new();
    for op in history {
        if let Action::Save(writer, count) = op.action {
            let is_acknowledged = matches!(op.answer, Answer::Saved(_));
            let may_have_happened = !matches!(op.answer, Answer::Refused | Answer::Nothing);
            let save = (count, is_acknowledged.into(), may_have_happened.into());
            saves.entry(writer).or_default().push(save);
        }
    }
    for saves in saves.values_mut() {
        saves.sort_unstable();
        let mut sums = (0, 0);
        for (_, acknowledged, possible) in saves {
            sums = (sums.0 + *acknowledged, sums.1 + *possible);
            (*acknowledged, *possible) = sums;
        }
    }
    for (fields, counted) in history.iter().filter_map(|op| Some((op.fields()?, op.counted.as_ref()?))) {
        if let Some(writer) = counted.keys().find(|writer| !fields.contains_key(*writer)) {
            return Err((Kind::Miscounted, format!("writer {writer} is counted and has no field")));
        }
        for (writer, last) in fields {
            let saves = saves.get(writer).map_or(&[][..], Vec::as_slice);
            let up_to = saves.partition_point(|(count, ..)| count <= last);
            let (_, least, most) =
                up_to.checked_sub(1).and_then(|at| saves.get(at)).copied().unwrap_or_default();
            let found = counted.get(writer).copied().unwrap_or_default();
            if !(least..=most).contains(&found) {
                let reason = format!(
                    "with {last} in its field, writer {writer} is counted {found} times, and not {least} to {most}"
                );
                return Err((Kind::Miscounted, reason));
            }
        }
    }
    Ok(())
}

/// Checks that all states that were seen are of one chain, in which every save is a step of its own, or one
/// of several saves of a process that were in flight together.
fn check_chain(history: &[Op]) -> Judgement {
    let size = |fields: &Fields| fields.values().sum::<u64>();
    let mut chain: Vec<&Fields> = history.iter().filter_map(Op::fields).collect();
    chain.sort_by(|a, b| size(a).cmp(&size(b)).then_with(|| a.cmp(b)));
    chain.dedup();
    for pair in chain.windows(2) {
        if let [smaller, larger] = pair
            && !contains(larger, smaller)
        {
            let reason = format!("neither of {smaller:?} and {larger:?} can have come after the other");
            return Err((Kind::LostUpdate, reason));
        }
    }
    let place = |fields: &Fields| {
        chain.partition_point(|other| {
            size(other).cmp(&size(fields)).then_with(|| (*other).cmp(fields)).is_lt()
        })
    };
    // For each state that saves left: the process, and the time in which all of them were in flight.
    let mut steps: BTreeMap<usize, (u32, Nanos, Nanos)> = BTreeMap::new();
    for op in history {
        if let (Action::Save(writer, count), Answer::Saved(fields)) = (op.action, &op.answer) {
            if fields.get(&writer) != Some(&count) {
                return Err((
                    Kind::LostUpdate,
                    format!("a save of {count} in field {writer} left {fields:?}"),
                ));
            }
            let place = place(fields);
            let before = place.checked_sub(1).and_then(|before| chain.get(before));
            let had_it = before.and_then(|before| before.get(&writer)).is_some_and(|had| *had >= count);
            let (begin, end) = (op.begin, op.end.unwrap_or(Nanos::MAX));
            let (process, since, until) = steps.entry(place).or_insert((op.process, begin, end));
            (*since, *until) = (begin.max(*since), end.min(*until));
            if had_it || *process != op.process || since > until {
                let reason =
                    format!("{fields:?} was there before the save of {count} in field {writer} made it");
                return Err((Kind::LostUpdate, reason));
            }
        }
    }
    let mut ends =
        history.iter().filter(|op| matches!(op.answer, Answer::Removed(true) | Answer::Rotated(_)));
    if let (Some(one), Some(other)) = (ends.next(), ends.next()) {
        return Err((Kind::EndedTwice, format!("{:?} and {:?} both ended it", one.action, other.action)));
    }
    for op in history {
        if let (Answer::Rotated(fields), Some(last)) = (&op.answer, chain.last())
            && !contains(fields, last)
        {
            let reason = format!("{fields:?} went to the new key, but {last:?} was there");
            return Err((Kind::LostUpdate, reason));
        }
    }
    Ok(())
}

/// Checks that every answer is at least as far in the chain as every answer before its operation began.
fn check_order(history: &[Op], surroundings: &Surroundings) -> Judgement {
    let bounded = bounded(history, surroundings);
    let mut answers: Vec<(Nanos, usize)> =
        history.iter().enumerate().filter_map(|(number, op)| Some((op.end?, number))).collect();
    answers.sort_unstable();
    let mut reached = Reached::default();
    for (end, number) in answers {
        let op = &history[number];
        let floor = reached.by(op.begin);
        let state = match &op.answer {
            Answer::Refused | Answer::Unknown => continue,
            Answer::Seen(fields) | Answer::Saved(fields) | Answer::Rotated(fields) => {
                State::Alive(fields.clone())
            }
            Answer::Created => State::Alive(Fields::new()),
            // The session is still there, with unknown contents.
            Answer::Touched if floor == State::Gone => State::Alive(Fields::new()),
            Answer::Touched => State::Alive(match &floor {
                State::Alive(fields) => fields.clone(),
                _ => Fields::new(),
            }),
            Answer::Removed(true) => State::Gone,
            // "Nothing" always comes from the database: caches hold no absence.
            Answer::Nothing | Answer::Removed(false) if floor == State::Absent => State::Absent,
            Answer::Nothing | Answer::Removed(false) => {
                if !history.iter().any(|other| other.may_end() && other.begin < end) {
                    return Err((Kind::Lost, "it was gone, although no operation had ended it".into()));
                }
                State::Gone
            }
        };
        let is_bound = is_bound(op, &bounded);
        let oldest = op.begin.saturating_sub(surroundings.max_cache_age + SLACK);
        let least = match surroundings.near(op) {
            _ if is_bound => reached.by(oldest),
            Some(bound) => reached.for_near(op, bound),
            None => floor,
        };
        if !state.has_reached(&least) {
            let kind = match least {
                State::Gone => Kind::Undead,
                _ if is_bound => Kind::OlderThanPromised,
                _ => Kind::Stale,
            };
            let promise = match surroundings.near(op) {
                _ if is_bound => "longer ago than max_cache_age",
                Some(_) => "by its own process, by a final operation, or longer ago than the freshness bound",
                None => "before",
            };
            return Err((
                kind,
                format!("{:?} answered {state:?}, but {promise}, {least:?} was reached", op.action),
            ));
        }
        let next = match (&op.answer, state) {
            // The last state, after which the session was gone.
            (Answer::Rotated(_), _) => State::Gone,
            (_, state) => state,
        };
        reached.add(op, end, &next, op.is_final(surroundings));
    }
    Ok(())
}

/// Returns the times in which only the bound is promised: they begin with writes that reached no cache, or
/// none that is sure to have kept them.
fn bounded(history: &[Op], surroundings: &Surroundings) -> Vec<(Nanos, Nanos)> {
    if surroundings.is_private {
        return vec![(0, Nanos::MAX)];
    }
    if surroundings.is_healthy {
        return Vec::new();
    }
    let overlaps = |from: Nanos, to: Nanos, times: &[(Nanos, Nanos)]| {
        times.iter().any(|(since, until)| *since <= to && from <= *until)
    };
    let mut bounded = Vec::new();
    for op in history.iter().filter(|op| !op.is_load() && op.answer != Answer::Refused) {
        let is_open = op.answer == Answer::Unknown;
        let settled_at = match op.end {
            Some(end) if !is_open => end,
            end => end.unwrap_or(op.begin).max(op.begin + surroundings.write_bound),
        };
        let may_be_unseen = op.degraded
            || overlaps(op.begin, settled_at, &surroundings.losses)
            || is_open && overlaps(op.begin, settled_at, &surroundings.unreachable);
        if may_be_unseen {
            bounded.push((op.begin, settled_at + surroundings.max_cache_age + SLACK));
        }
    }
    bounded
}

fn is_within(times: &[(Nanos, Nanos)], begin: Nanos, end: Nanos) -> bool {
    times.iter().any(|(since, until)| *since <= end && begin <= *until)
}

/// Shortens a history as far as it shows the same violation.
fn shortened(history: &[Op], kind: Kind, surroundings: &Surroundings) -> Vec<Op> {
    // A violation that says that no operation did something must show all that may have. Operations that
    // lower a promise stay, too.
    let must_stay = |op: &Op| {
        (matches!(kind, Kind::Unwritten | Kind::Unexplained) && !op.is_load())
            || (matches!(kind, Kind::Lost) && op.may_end())
            || (kind == Kind::OlderThanPromised || kind == Kind::Undead)
                && (op.degraded || op.answer == Answer::Unknown)
    };
    let mut left = history.to_vec();
    let start = Instant::now();
    let mut size = left.len().div_ceil(2);
    loop {
        let before = left.len();
        let mut from = 0;
        while from < left.len() && start.elapsed() <= READY_TIMEOUT {
            let to = (from + size).min(left.len());
            let kept = left.iter().enumerate().filter(|(n, op)| *n < from || *n >= to || must_stay(op));
            let tried: Vec<_> = kept.map(|(_, op)| op.clone()).collect();
            if tried.len() < left.len() && judge(&tried, surroundings).is_err_and(|(found, _)| found == kind)
            {
                left = tried;
            } else {
                from = to;
            }
        }
        // An operation that had to stay before may be superfluous now.
        if size == 1 && left.len() == before || start.elapsed() > READY_TIMEOUT {
            return left;
        }
        size = if size == 1 { 1 } else { size.div_ceil(2) };
    }
}
