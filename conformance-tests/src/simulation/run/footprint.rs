//! The footprints of steps, by which the search knows which steps commute.
//!
//! The writes of a step are seen: they are the places whose digest it has changed. The reads that it may make are stated here, for
//! each kind of step. Two steps of which neither writes what the other reads or writes do the same in either order, and leave the same
//! state. `docs/coherence.md` says why that, and no more, is needed.

use super::choices::Choice;
use super::{Simulation, Status};
use crate::simulation::arrangement::Arrangement;
use crate::simulation::call::Effect;
use crate::simulation::operation::Operation;
use crate::simulation::places::{self, Set};
use crate::simulation::task_id::TaskId;
use crate::simulation::world::{TaskState, World, lock};

/// The places that a step reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::simulation) struct Footprint {
    reads: Set,
    writes: Set,
    /// An operation begins.
    begins: bool,
    /// It is one of those that may be combined, which take effect in the order in which they began.
    combines: bool,
    /// An operation answers.
    answers: bool,
    /// The step commutes with none.
    commutes_with_none: bool,
}

impl Footprint {
    /// The footprint of a step that commutes with none.
    pub(in crate::simulation) const ALL: Self = Self {
        reads: 0,
        writes: 0,
        begins: false,
        combines: false,
        answers: false,
        commutes_with_none: true,
    };

    /// Returns `true` if the two steps commute.
    pub(in crate::simulation) fn commutes_with(&self, other: &Self) -> bool {
        // An operation that begins after the answer of another must not be explained as if it had come before.
        let is_ordered = self.begins && other.answers
            || self.answers && other.begins
            || self.begins && other.begins && self.combines && other.combines;
        let touches =
            |one: &Self, other: &Self| one.writes & (other.reads | other.writes & !places::DIVIDED) != 0;
        !self.commutes_with_none
            && !other.commutes_with_none
            && !is_ordered
            && !touches(self, other)
            && !touches(other, self)
    }

    /// Returns the footprint of both steps, one after the other.
    pub(in crate::simulation) const fn and(&self, other: &Self) -> Self {
        Self {
            reads: self.reads | other.reads,
            writes: self.writes | other.writes,
            begins: self.begins || other.begins,
            combines: self.combines || other.combines,
            answers: self.answers || other.answers,
            commutes_with_none: self.commutes_with_none || other.commutes_with_none,
        }
    }
}

impl Simulation<'_> {
    /// Returns what a step that is not made yet may read, and the writes that no digest shows.
    pub(in crate::simulation) fn may_read(&self, choice: Choice) -> Footprint {
        // In one function, because it is one choice with an arm for each step. No reads are stated for notes that are written.
        if self.scenario.has_rotations() {
            return Footprint::ALL;
        }
        let world = lock(&self.world);
        let mut footprint = Footprint::default();
        footprint.reads = match choice {
            Choice::Begin(number) => {
                let (operation, process) = self.scenario.operations[number];
                (footprint.begins, footprint.combines) = (true, operation.combines());
                // Whether a statement came before the beginning decides how these answers are judged.
                let counts = operation.is_judged_by_its_commit();
                let rows =
                    operation.keys().iter().filter(|_| counts).fold(0, |set, key| set | places::row(*key));
                let promises = if operation.is_load() { places::PROMISES | places::REPAIRS } else { 0 };
                places::operation(number)
                    | self.read_by_tasks(process, operation.is_load(), operation == Operation::Follow)
                    | rows
                    | promises
            }
            Choice::TakeEffect(id) => self.read_by(&world, id) | self.read_by_call(&world, id),
            Choice::Arrive(id) | Choice::Start(id) => self.read_by(&world, id),
            Choice::Fire(id) if id.is_keeper() => self.read_by(&world, id) | places::FAULTS,
            Choice::Fire(id) => self.read_by(&world, id),
            Choice::TakeEffectLate(late) => {
                let effect = world.late.iter().find(|other| other.id() == late).map(|late| &late.effect);
                places::LATE | effect.map_or(0, |effect| self.read_by_effect(effect))
            }
            Choice::Refuse(id) | Choice::LoseAnswer(id) | Choice::Delay(id)
                if !self.scenario.arrangement.is_near() =>
            {
                footprint.writes |= places::FAULTS;
                self.read_by(&world, id) | self.read_by_call(&world, id) | places::PROMISES
            }
            Choice::Evict(key) if !self.scenario.arrangement.is_near() => {
                footprint.writes |= places::FAULTS;
                places::slot(key) | places::CLOCK | places::PROMISES
            }
            Choice::Drop(number) | Choice::Suspend(number) if !self.scenario.arrangement.is_near() => {
                footprint.writes |= places::FAULTS;
                let (operation, process) = self.scenario.operations[number];
                places::operation(number)
                    | self.read_by_tasks(process, operation.is_load(), false)
                    | places::PROMISES
            }
            Choice::Crash(process) if !self.scenario.arrangement.is_near() => {
                footprint.writes |= places::FAULTS;
                let operations = self.scenario.operations.iter().enumerate();
                let dying = operations.filter(|(_, (_, place))| *place == process);
                let dying = dying.fold(0, |set, (number, _)| set | places::operation(number));
                dying | self.read_by_tasks(process, true, true) | places::LATE | places::PROMISES
            }
            // Time changes everything.
            _ => return Footprint::ALL,
        };
        footprint
    }

    /// Completes the footprint of the step that was made last.
    pub(in crate::simulation) fn footprint(&self, before: Footprint, written: Set) -> Footprint {
        Footprint { writes: before.writes | written, answers: self.has_answered, ..before }
    }

    /// Returns what the task `id` may read when it goes on.
    fn read_by(&self, world: &World, id: TaskId) -> Set {
        let process = world.tasks.get(&id).map_or(0, |task| task.process);
        let is_load = self.operation(id).is_some_and(Operation::is_load);
        let repairs = |state: &TaskState| state.is_maintaining || state.is_repairing;
        // One that is led to another key loads, and is no load.
        let is_background =
            world.tasks.get(&id).is_some_and(repairs) || self.operation(id) == Some(Operation::Follow);
        places::of_task(id) | self.read_by_tasks(process, is_load, is_background)
    }

    /// Returns what any task of `process` may read when it goes on, besides its own state.
    fn read_by_tasks(&self, process: usize, is_load: bool, is_background: bool) -> Set {
        let arrangement = self.scenario.arrangement;
        let near = if arrangement.is_near() { places::channel(process) | places::SHOWS } else { 0 };
        // Whether an answer arrives at once depends on who else is there.
        let others = match (is_background || arrangement == Arrangement::Notified, is_load) {
            (true, _) => places::all_over(process),
            (false, true) => places::loads_over(process),
            (false, false) => 0,
        };
        // No write asks for an attempt, and no load for a queue.
        let attempts = if is_load || is_background { places::attempts(process) } else { 0 };
        let queues = if !is_load || is_background { places::queues(process) } else { 0 };
        places::CLOCK | attempts | queues | places::repair(process) | near | others
    }

    fn read_by_call(&self, world: &World, id: TaskId) -> Set {
        let call = world.tasks.get(&id).and_then(|task| task.call.as_ref());
        call.map_or(0, |call| self.read_by_effect(&call.effect))
    }

    /// Returns what a call reads when it takes effect.
    fn read_by_effect(&self, effect: &Effect) -> Set {
        // Reports that no load waits for are read at once.
        let near = if self.scenario.arrangement.is_near() { places::SHOWS } else { 0 };
        let read = match effect {
            Effect::Get(key) | Effect::Acquire(key, ..) | Effect::Exchange(key, ..) => places::slot(*key),
            Effect::Watch(_, key) => places::slot(*key) | places::CHANNELS,
            Effect::Ping(_) => places::CHANNELS,
            Effect::Load(key, _) | Effect::Insert(key, _) | Effect::Update(key, ..) | Effect::Delete(key) => {
                places::row(*key)
            }
            Effect::Touch(key, ..) => places::row(*key) | places::TOUCHED,
            Effect::List(_) | Effect::Rename(..) | Effect::DeleteAll(_) | Effect::DeleteExpired(_) => {
                places::row(0) | places::row(1)
            }
            Effect::Note(_) | Effect::Notes(..) => places::NOTES,
        };
        read | near | places::CLOCK
    }

    /// Returns `true` if this operation is like one that has not begun yet and has a lower number. They differ by their
    /// numbers alone, so it is enough to let that one begin first. Loads, and saves that may be combined, are woken or
    /// composed in the order of their numbers, so they differ.
    pub(in crate::simulation) fn has_twin_before(&self, choice: Choice) -> bool {
        let Choice::Begin(number) = choice else { return false };
        if self.scenario.has_rotations() {
            return false;
        }
        let own = self.scenario.operations[number];
        let is_twin =
            |other: usize| self.scenario.operations[other] == own && self.statuses[other] == Status::Waiting;
        !own.0.is_load() && !own.0.combines() && own.0 != Operation::Use && (0..number).any(is_twin)
    }

    /// Returns `true` if a task that has just begun must make its first call before anything else happens.
    pub(in crate::simulation) const fn is_urgent(&self) -> bool {
        self.urgent.is_some()
    }
}
