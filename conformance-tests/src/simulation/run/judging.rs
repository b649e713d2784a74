//! The judging of answers during a run, and what its faults excuse.

use super::choices::Choice;
use super::{FIRST_PROBE, Simulation, Status, Verdict, awaits_repair};
use crate::simulation::arrangement::Arrangement;
use crate::simulation::call::Effect;
use crate::simulation::operation::{Answer, Operation, Outcome};
use crate::simulation::oracle::Promise;
use crate::simulation::task_id::TaskId;
use crate::simulation::world::lock;

/// The misbehavior that the faults so far excuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Excuses {
    /// A call of the cache failed, or came late: operations may say that they are degraded.
    pub(super) degraded: bool,
    /// A lease or a fence may be left until its time is over.
    pub(super) leftovers: bool,
    /// Operations may fail.
    pub(super) failures: bool,
    /// A statement whose outcome is not known may still commit.
    pub(super) unknown: [bool; 2],
}

impl Simulation<'_> {
    pub(super) fn judge_answers(&mut self) -> Verdict {
        let answers: Vec<_> =
            self.answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).drain(..).collect();
        self.has_answered |= !answers.is_empty();
        for Answer { number, outcome, is_degraded } in answers {
            if let Some(status) = self.statuses.get_mut(number) {
                *status = Status::Over;
            }
            if outcome == Outcome::Unknown {
                self.lost.insert(number);
            }
            let is_failure = matches!(outcome, Outcome::Failed | Outcome::Unknown);
            // A failure of an attempt is the answer for every load that joins it. That includes a load that
            // comes long after, if the load that drove the attempt so far is not polled any more.
            let is_late = number >= FIRST_PROBE && !self.tasks.iter().any(|task| task.is_suspended);
            let is_untroubled = !lock(&self.world).is_troubled || is_late;
            let name = || self.scenario.operations.get(number).map_or("a load", |(other, _)| other.name());
            self.was_degraded |= is_degraded && self.scenario.arrangement.is_near();
            if is_degraded && !self.excuses.degraded {
                return Err(format!("{} says that the cache did not answer, but it did", name()));
            }
            if is_failure && is_untroubled {
                return Err(format!("{} fails, although nothing went wrong", name()));
            }
            let fails_closed = self.scenario.arrangement == Arrangement::Closed;
            if is_failure && !self.excuses.failures {
                return Err(format!("{} fails, although only the cache was in trouble", name()));
            }
            if fails_closed && is_degraded && !is_failure {
                return Err(format!("{} goes on without the cache, although it must fail closed", name()));
            }
            self.note_promises();
            self.note_answer(number, outcome);
            self.oracle.answer(number, outcome, &lock(&self.world))?;
        }
        Ok(())
    }

    /// Notes what a fault excuses, before it happens.
    pub(super) fn excuse(&mut self, fault: Choice) {
        let mut world = lock(&self.world);
        // No fate of a channel costs an operation anything.
        let goes_by_channel = |id: &TaskId| {
            let call = world.tasks.get(id).and_then(|task| task.call.as_ref());
            call.is_some_and(|call| call.effect.channel().is_some())
        };
        match &fault {
            Choice::Cut(_) | Choice::GiveUp(_) => return,
            Choice::Refuse(id) if goes_by_channel(id) => return,
            _ => {}
        }
        world.is_troubled = true;
        // A logout follows the session without its caller. A save ends with it, if it has not found the session yet.
        let is_logout = |number: usize| self.scenario.operations[number].0 == Operation::LogOut;
        if !matches!(fault, Choice::Drop(number) if is_logout(number)) {
            self.oracle.excuse_lost_notes();
        }
        let fails_closed = self.scenario.arrangement == Arrangement::Closed;
        let excuses = &mut self.excuses;
        match fault {
            Choice::Refuse(id) | Choice::LoseAnswer(id) | Choice::Delay(id) => {
                let effect =
                    world.tasks.get(&id).and_then(|task| task.call.as_ref()).map(|call| &call.effect);
                let is_cache = effect.is_some_and(Effect::is_cache);
                let is_definite = matches!(fault, Choice::Refuse(_));
                excuses.failures |= !is_cache || fails_closed;
                excuses.degraded |= is_cache;
                excuses.leftovers |= is_cache || !is_definite;
                for key in effect.map_or(&[][..], Effect::statement_keys) {
                    excuses.unknown[*key] |= !is_definite;
                }
            }
            Choice::Stall(..) | Choice::Pass(_) => {
                excuses.failures = true;
                excuses.degraded |= matches!(fault, Choice::Stall(..));
                // A writer that renews its fence, because the fence is nearly over, leaves the old one if
                // another writer has joined it.
                excuses.leftovers = true;
            }
            Choice::Suspend(_) | Choice::Revert(_) => excuses.leftovers = true,
            Choice::Crash(_) => {
                excuses.failures = true;
                excuses.leftovers = true;
            }
            _ => {}
        }
    }

    /// Notes that a cache call or a statement of a writer is about to fail. After the commit, that is a lost
    /// settlement; for a statement, it is an unknown outcome.
    pub(super) fn note_loss(&mut self, id: TaskId) {
        let world = lock(&self.world);
        let number = id.operation();
        let has_committed = world.commits.keys().any(|(operation, _)| *operation == number);
        let is_statement = world.tasks[&id].call.as_ref().is_some_and(|call| call.effect.is_statement());
        if has_committed || is_statement {
            self.lost.insert(number);
        }
    }

    pub(super) fn operation(&self, id: TaskId) -> Option<Operation> {
        self.scenario.operations.get(id.operation()).map(|(operation, _)| *operation)
    }

    /// Informs the oracle what is promised in the present state.
    pub(super) fn note_promises(&mut self) {
        let is_loading = |(number, (operation, _)): (usize, &(Operation, usize))| {
            operation.is_load() && self.statuses[number] == Status::Running
        };
        if !self.scenario.operations.iter().enumerate().any(is_loading) {
            return;
        }
        let waits: Vec<bool> =
            self.stores.iter().map(|store| store.as_ref().is_some_and(awaits_repair)).collect();
        for (number, (operation, process)) in self.scenario.operations.iter().enumerate() {
            if operation.is_load() && self.statuses[number] == Status::Running {
                self.oracle.promise(number, self.promise(*process, &waits));
            }
        }
    }

    pub(super) fn promise(&self, process: usize, waits: &[bool]) -> Promise {
        // No write that fails closed is degraded, so what waits to be repaired then is only a fence or a lease.
        let may_degrade = self.scenario.arrangement != Arrangement::Closed;
        let is_degraded =
            may_degrade && waits.iter().enumerate().any(|(other, waits)| *waits && other != process);
        if self.is_bounded_only() || is_degraded || self.was_degraded {
            Promise::Bounded
        } else if !self.exposed.is_empty() {
            Promise::Fresh
        } else {
            Promise::Linearizable
        }
    }

    /// Returns `true` if only the age of an entry bounds what is shown, also because a fence was evicted, and its writer
    /// died or its settlement was lost.
    pub(super) fn is_bounded_only(&self) -> bool {
        self.is_bounded || self.exposed.intersection(&self.lost).next().is_some()
    }
}
