//! The oracle, which judges the answers of a run's operations.
//!
//! *Linearizability* is checked incrementally, by the [configurations](crate::support::linearize) that
//! explain the answers so far.
//!
//! Saves that wait together in the write queue of a session are written by one statement. They take effect at
//! one moment, one after the other in the order in which they began, with nothing in between, and each of
//! them answers with the session as it is after the last of them. Nothing else may differ: the store chooses
//! which of a process's saves it combines, but then the answers of all of them show the changes of all of
//! them, and no state with the changes of only some is ever seen.
//!
//! *Freshness* means that a load answers with a state that the database has had, not older than the state
//! that any operation acknowledged before the load began has left. Linearizability implies it; in some
//! situations, only freshness is promised.

mod effect;

use std::collections::BTreeSet;
use std::time::Duration;

use session_core::Timestamp;

use self::effect::{Effect, Row, Rows};
use super::arrangement::Arrangement;
use super::call::Seen;
use super::digest;
use super::operation::{Operation, Outcome};
use super::settings::{FAR, NEAR_BOUND, START};
use super::world::World;
use crate::support::linearize::{Configurations, JointStep, Model, Progress, Step};

/// The guarantee that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Promise {
    /// Per session linearizable.
    #[default]
    Linearizable,
    /// With a near cache: a load answers with nothing older than what its process has shown or written, than what a final
    /// operation has left, or than what any operation has left that was acknowledged the freshness bound ago.
    Near,
    /// Every finished write is visible to every later load.
    Fresh,
    /// A load answers with some state of the last `max_cache_age`.
    Bounded,
}

/// A session at one point of its history, and its expiry at that point.
type Was = Option<(Seen, Timestamp)>;

#[derive(Debug)]
struct Begun {
    operation: Operation,
    process: usize,
    /// The number of operations that began before it.
    place: usize,
    /// The instants that the clock of its process has shown since it began.
    clock: Vec<Timestamp>,
    ahead: Duration,
    is_running: bool,
    /// The lengths of the histories when it began.
    since: [usize; 2],
    /// The position in the history of its key from which on a load may answer.
    floor: usize,
    /// The position from which on a load with a near cache may answer, because its process has shown the state there.
    shown: usize,
    /// The weakest promise that was made while it ran.
    promise: Promise,
}

/// The promises of near caches about a write that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Acknowledged {
    key: usize,
    /// The position in the history of the key of what it has left.
    position: usize,
    process: usize,
    at: Timestamp,
    is_final: bool,
}

/// The judge of loads with near caches.
#[derive(Debug, Default)]
struct NearJudge {
    acknowledged: Vec<Acknowledged>,
    /// By process and key, the position of the newest state that a load has shown.
    shown: [[usize; 2]; 2],
}

impl NearJudge {
    /// Returns the position from which on a load in `process` that begins at `now` may answer.
    fn floor(&self, process: usize, key: usize, now: Timestamp) -> usize {
        let binds = |write: &&Acknowledged| {
            let is_known = write.process == process || write.is_final || now >= write.at + NEAR_BOUND;
            write.key == key && is_known
        };
        self.acknowledged.iter().filter(binds).map(|write| write.position).max().unwrap_or_default()
    }
}

#[derive(Debug)]
pub(super) struct Oracle {
    configurations: Configurations<Rows, Outcome>,
    /// By their number.
    begun: Vec<Option<Begun>>,
    /// The position of the last acknowledged write in the history of each key.
    acknowledged: [usize; 2],
    near: Option<NearJudge>,
    /// Saves are final, too.
    is_strict: bool,
    /// Notes of rotations may not be written, or not be found.
    may_lose_notes: bool,
}

impl Oracle {
    pub(super) fn new(world: &World, arrangement: Arrangement) -> Self {
        let rows = [0, 1].map(|key| {
            world.row(key).map(|row| Row { seen: Seen::of(row), expires_at: row.expires_at(), moved: None })
        });
        Self {
            configurations: Configurations::new(rows),
            begun: Vec::new(),
            acknowledged: [0, 1].map(|key| world.history[key].len() - 1),
            // Without channels, the same is promised as without near caches.
            near: (arrangement.is_near() && arrangement != Arrangement::Deaf).then(NearJudge::default),
            is_strict: arrangement == Arrangement::Strict,
            may_lose_notes: false,
        }
    }

    /// From now on, a note of a rotation may not be written, or not be found.
    pub(super) fn excuse_lost_notes(&mut self) {
        self.may_lose_notes = true;
    }

    pub(super) fn begin(
        &mut self,
        number: usize,
        operation: Operation,
        process: usize,
        ahead: Duration,
        world: &World,
    ) {
        let now = world.now;
        while self.begun.len() <= number {
            self.begun.push(None);
        }
        self.configurations.begin(number);
        let key = operation.keys()[0];
        let (floor, shown, promise) = match &self.near {
            Some(near) if operation.is_load() => {
                (near.floor(process, key, now), near.shown[process][key], Promise::Near)
            }
            _ => (self.acknowledged[key], 0, Promise::Linearizable),
        };
        let place = self.begun.iter().flatten().count();
        self.begun[number] = Some(Begun {
            operation,
            process,
            place,
            clock: vec![now + ahead],
            ahead,
            is_running: true,
            since: [0, 1].map(|key| world.history[key].len()),
            floor,
            shown,
            promise,
        });
    }

    /// Notes that time has passed.
    pub(super) fn tick(&mut self, now: Timestamp) {
        for begun in self.begun.iter_mut().flatten() {
            begun.clock.push(now + begun.ahead);
        }
    }

    /// Notes that no more than this is promised to the load with this number from now on, if it runs.
    pub(super) fn promise(&mut self, number: usize, promise: Promise) {
        if let Some(Some(begun)) = self.begun.get_mut(number)
            && begun.is_running
        {
            begun.promise = begun.promise.max(promise);
        }
    }

    /// Notes that this operation will not answer. It may take effect at any time, or never.
    pub(super) fn expect_no_answer(&mut self, number: usize) {
        if let Some(Some(begun)) = self.begun.get_mut(number) {
            begun.is_running = false;
        }
    }

    /// Checks that an operation whose future was dropped, and which has ended, took effect.
    pub(super) fn require_effect(&mut self, number: usize) -> Result<(), String> {
        if self.configurations.is_over(number) {
            return Ok(());
        }
        self.configurations.explain(&Begins { begun: &self.begun, may_lose_notes: self.may_lose_notes });
        self.configurations.retain(number, |progress| matches!(progress, Progress::Took(_)));
        if self.configurations.is_empty() {
            let operation = self.begun[number].as_ref().map_or("", |begun| begun.operation.name());
            return Err(format!("{operation} ended with its caller"));
        }
        Ok(())
    }

    /// Judges an answer.
    pub(super) fn answer(&mut self, number: usize, outcome: Outcome, world: &World) -> Result<(), String> {
        let begun = self.begun[number].as_mut().expect("it has begun");
        begun.is_running = false;
        let (operation, promise) = (begun.operation, begun.promise);
        if operation == Operation::Follow {
            return self.answer_follow(number, outcome, world);
        }
        if let Outcome::Loaded(seen) = outcome {
            let position = self.check_freshness(number, seen, world)?;
            self.note_shown(number, position);
        }
        if operation.is_load() && promise > Promise::Linearizable {
            self.configurations.retain(number, |_| true);
            return Ok(());
        }
        match outcome {
            Outcome::Unknown => return Ok(()),
            Outcome::Failed => {
                self.configurations.retain(number, |progress| matches!(progress, Progress::Waiting(_)));
            }
            outcome => {
                self.configurations
                    .explain(&Begins { begun: &self.begun, may_lose_notes: self.may_lose_notes });
                self.configurations.retain(number, |progress| *progress == Progress::Took(outcome));
                self.acknowledge(number, outcome, world);
            }
        }
        if self.configurations.is_empty() {
            return Err(format!(
                "not linearizable: no order of the operations explains that {} answered {outcome:?}",
                operation.name()
            ));
        }
        Ok(())
    }

    /// Judges the answer to a client that has presented A's key. Once it knows B's, no node may show A.
    fn answer_follow(&mut self, number: usize, outcome: Outcome, world: &World) -> Result<(), String> {
        match outcome {
            Outcome::Loaded(Some(seen)) => drop(self.check_freshness(number, Some(seen), world)?),
            Outcome::Led(seen) => {
                let is_it = |state: &Was| state.is_some_and(|(other, _)| other == seen);
                let renamed = world.history[0].iter().position(Option::is_none);
                let Some(position) = renamed.filter(|_| world.history[1].iter().any(is_it)) else {
                    return Err("a client is led to a session that was never there".into());
                };
                self.acknowledged[0] = self.acknowledged[0].max(position);
                let begun = self.begun[number].as_ref().expect("it has begun");
                if let Some(near) = &mut self.near {
                    let (process, at) = (begun.process, world.now);
                    near.acknowledged.push(Acknowledged { key: 0, position, process, at, is_final: true });
                }
            }
            _ => {}
        }
        self.configurations.retain(number, |_| true);
        Ok(())
    }

    /// Notes that no later load may show a state from before this operation. A write that waited in a queue
    /// was committed by the task of the queue, so its commit is recognized by the state that it left: its
    /// first occurrence since the operation began.
    fn acknowledge(&mut self, number: usize, outcome: Outcome, world: &World) {
        let begun = self.begun[number].as_ref().expect("it has begun");
        for &key in begun.operation.keys() {
            let (since, history) = (begun.since[key], &world.history[key]);
            let left = |is_it: &dyn Fn(&Was) -> bool| {
                history.iter().skip(since).position(is_it).map(|position| position + since)
            };
            let position = match outcome {
                Outcome::Wrote(seen) => left(&|state| state.is_some_and(|(other, _)| other == seen)),
                Outcome::Done => left(&|state| state.is_some()),
                Outcome::Removed(_) => left(&Option::is_none),
                _ => world.commits.get(&(number, key)).copied(),
            };
            if let Some(position) = position {
                self.acknowledged[key] = self.acknowledged[key].max(position);
                if let Some(near) = &mut self.near {
                    let process = begun.process;
                    let is_final = begun.operation.is_final() || self.is_strict && begun.operation.is_save();
                    near.acknowledged.push(Acknowledged { key, position, process, at: world.now, is_final });
                }
            }
        }
    }

    /// Notes that the process of this load has shown the state at `position`.
    fn note_shown(&mut self, number: usize, position: usize) {
        let begun = self.begun[number].as_ref().expect("it has begun");
        if let (Some(near), Promise::Near) = (&mut self.near, begun.promise) {
            let shown = &mut near.shown[begun.process][begun.operation.keys()[0]];
            *shown = position.max(*shown);
        }
    }

    /// Returns the first position in the history whose state explains what a load answered.
    fn check_freshness(&self, number: usize, seen: Option<Seen>, world: &World) -> Result<usize, String> {
        let begun = self.begun[number].as_ref().expect("it has begun");
        let key = begun.operation.keys()[0];
        let floor = match begun.promise {
            Promise::Bounded => 0,
            Promise::Near => begun.floor.max(begun.shown),
            _ => begun.floor,
        };
        let (first, last) = (begun.clock[0], *begun.clock.last().expect("never empty"));
        let explains = |state: &Was| match (state, seen) {
            (None, None) => true,
            (Some((_, expires_at)), None) => *expires_at <= last,
            (Some((state, expires_at)), Some(seen)) => *state == seen && *expires_at > first,
            (None, Some(_)) => false,
        };
        if let Some(position) = world.history[key][floor..].iter().position(explains) {
            return Ok(floor + position);
        }
        let what = if floor == 0 { "a state that the database never had" } else { "an old state" };
        Err(format!("{what}: {} answered {seen:?}", begun.operation.name()))
    }

    /// Returns a digest of the states with which a load of each process that begins now, or later, may answer.
    fn near_digest(&self, world: &World) -> u64 {
        let Some(near) = &self.near else { return 0 };
        let from = |process: usize, key: usize, at: Timestamp| {
            let floor = near.floor(process, key, at).max(near.shown[process][key]);
            distinct(&world.history[key][floor..])
        };
        let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)];
        let mut times: Vec<_> = near.acknowledged.iter().map(|write| write.at + NEAR_BOUND).collect();
        times.retain(|at| *at > world.now);
        times.push(world.now);
        times.sort_unstable();
        times.dedup();
        let states = times.iter().map(|at| (*at, pairs.map(|(process, key)| from(process, key, *at))));
        digest::of(states.collect::<Vec<_>>())
    }

    /// Returns a digest of what decides how later answers will be judged, except the histories and what is promised.
    pub(super) fn digest(&self) -> u64 {
        let pending = |(number, begun): (usize, &Option<Begun>)| {
            let is_open = !self.configurations.is_over(number);
            begun.as_ref().filter(|_| is_open).map(|begun| digest::of((begun.is_running, &begun.clock)))
        };
        let pending: Vec<_> = self.begun.iter().enumerate().map(pending).collect();
        // The order in which those wait that may be combined.
        let mut queue: Vec<_> = (0..self.begun.len()).filter(|n| !self.configurations.is_over(*n)).collect();
        queue.retain(|n| self.begun[*n].as_ref().is_some_and(|begun| begun.operation.combines()));
        queue.sort_by_key(|n| self.begun[*n].as_ref().map(|begun| begun.place));
        digest::of((&self.configurations, pending, queue))
    }

    /// Returns a digest of the states with which operations that run, and later ones, may answer.
    pub(super) fn history_digest(&self, world: &World) -> u64 {
        let from = |begun: &Begun| {
            let floor = begun.floor.max(begun.shown);
            begun.is_running.then(|| distinct(&world.history[begun.operation.keys()[0]][floor..]))
        };
        let pending: Vec<_> = self.begun.iter().map(|begun| begun.as_ref().and_then(from)).collect();
        let later = [0, 1].map(|key| distinct(&world.history[key][self.acknowledged[key]..]));
        digest::of((pending, later, self.near_digest(world)))
    }

    /// Returns what is promised to an operation that runs.
    pub(super) fn promise_of(&self, number: usize) -> Option<Promise> {
        let begun = self.begun.get(number)?.as_ref().filter(|_| !self.configurations.is_over(number))?;
        Some(begun.promise)
    }
}

fn distinct(states: &[Option<(Seen, Timestamp)>]) -> BTreeSet<Option<(Seen, Timestamp)>> {
    states.iter().copied().collect()
}

/// The operations that have begun.
struct Begins<'a> {
    /// By their number.
    begun: &'a [Option<Begun>],
    may_lose_notes: bool,
}

impl Model for Begins<'_> {
    type State = Rows;
    type Outcome = Outcome;

    /// Returns the combinations of saves of one process that the store can make: they wait in the order in
    /// which they began, and those between two of them that did not take effect with them can only have
    /// failed.
    fn joint_steps(&self, wait: &[usize], rows: &Rows) -> Vec<JointStep<Self>> {
        let begun = |number: &usize| self.begun[*number].as_ref().expect("it has begun");
        let mut saves: Vec<_> =
            wait.iter().copied().filter(|number| begun(number).operation.combines()).collect();
        if saves.len() < 2 {
            return Vec::new();
        }
        saves.sort_by_key(|number| begun(number).place);
        let mut joint = Vec::new();
        for chosen in 1_u32..1 << saves.len() {
            let chosen = saves.iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1);
            let chosen: Vec<_> = chosen.map(|(_, number)| *number).collect();
            let [first, .., last] = chosen[..] else { continue };
            if chosen.iter().any(|number| begun(number).process != begun(&first).process) {
                continue;
            }
            for now in &begun(&last).clock {
                let Some(row) = rows[0].filter(|row| row.expires_at > *now) else { continue };
                let fields = chosen
                    .iter()
                    .fold(row.seen.0, |fields, number| begun(number).operation.fields(*number, fields));
                let row = Row { seen: Seen(fields), expires_at: START + FAR, moved: None };
                let took = chosen.iter().map(|number| (*number, Outcome::Wrote(row.seen))).collect();
                joint.push(([Some(row), rows[1]], took));
            }
        }
        joint
    }

    fn steps(&self, number: usize, so_far: u8, rows: &Rows) -> Vec<Step<Self>> {
        let Some(Some(begun)) = self.begun.get(number) else { return Vec::new() };
        // Where a call can fail, a rotation may not be noted, or its note not be found.
        let ways = if self.may_lose_notes && rows[1].is_some_and(|row| row.moved.is_some()) {
            &[true, false][..]
        } else {
            &[true]
        };
        let operation = begun.operation;
        let at = |now: &Timestamp, follows| {
            Effect { operation, number, so_far, rows: *rows, now: *now, follows }.steps()
        };
        begun.clock.iter().flat_map(|now| ways.iter().flat_map(move |follows| at(now, *follows))).collect()
    }
}
