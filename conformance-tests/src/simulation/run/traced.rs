//! Following a run by the rules of the specification.

use super::choices::Choice;
use super::{FIRST_PROBE, Simulation};
use crate::simulation::arrangement::Arrangement;
use crate::simulation::call::Effect;
use crate::simulation::operation::{Operation, Outcome};
use crate::simulation::scenario::{Beginning, Scenario};
use crate::simulation::settings::stored_keys;
use crate::simulation::specification::Refusal;
use crate::simulation::trace::{Event, Log, Tracer};
use crate::simulation::world::lock;

impl Scenario {
    /// Returns `true` if the specification covers it. It knows neither near caches, nor expiry, nor a cache that loses what it
    /// has acknowledged, nor a process that writes past another's cache, nor notes of rotations. Nor does it know the turns of a queue, in which one
    /// task is one writer after another: with faults or a new session, it covers one writer in each process.
    pub(in crate::simulation) fn is_specified(&self) -> bool {
        let is_covered = |(operation, _): &(Operation, usize)| {
            !matches!(operation, Operation::Reap | Operation::Elsewhere | Operation::Follow)
                && !operation.uses_rotations()
        };
        let writers_of = |process: usize| {
            let writes = |(operation, place): &&(Operation, usize)| *place == process && !operation.is_load();
            self.operations.iter().filter(writes).count()
        };
        // The task that creates B is another writer only if it has not ended B before.
        let creates = self.operations.iter().any(|(operation, _)| *operation == Operation::Create);
        let takes_turns = (self.faults > 0 || creates) && (0..2).any(|process| writers_of(process) > 1);
        self.operations.iter().all(is_covered)
            && !takes_turns
            && self.beginning != Beginning::Ending
            && !self.arrangement.is_near()
            && self.arrangement != Arrangement::Failover
    }
}

impl Simulation<'_> {
    /// Follows the run from here on, if the specification covers it.
    pub(in crate::simulation) fn trace(&mut self) {
        if !self.scenario.is_specified() {
            return;
        }
        let mut world = lock(&self.world);
        let beginning =
            [0, 1].map(|key| (world.row(key).map(|row| row.version().as_u64()), world.entry(key)));
        self.tracer = Some(Tracer::new(beginning));
        world.log = Some(Log::default());
    }

    /// Returns the number of steps that the specification has permitted so far.
    pub(in crate::simulation) fn traced(&self) -> usize {
        self.tracer.as_ref().map_or(0, Tracer::len)
    }

    /// Holds what has happened since the last call to the rules of the specification.
    pub(in crate::simulation) fn follow(&mut self) -> Result<(), Refusal> {
        let Some(tracer) = &mut self.tracer else { return Ok(()) };
        let mut world = lock(&self.world);
        if let Some(log) = &mut world.log {
            tracer.follow(log)?;
        }
        for (key, writer) in tracer.unprotected() {
            let place = world.log.as_ref().and_then(|log| log.places.get(&writer).copied());
            let store = place.and_then(|process| self.stores.get(process)?.as_ref());
            let is_repaired = store.is_some_and(|store| !store.__awaits_repair(&stored_keys()[key]));
            // A degraded write is settled by its repair, whatever else was lost, unless its statement may still commit.
            let is_settled = match tracer.has_degraded(writer) {
                true => !self.excuses.unknown[key],
                false => !self.lost.contains(&writer.operation()),
            };
            if is_repaired && is_settled && !world.tasks.contains_key(&writer) {
                tracer.done(key, writer)?;
            }
        }
        Ok(())
    }

    /// Notes that a call of the cache fails, after which its process may write without a fence.
    pub(super) fn note_no_answer(&self, fault: Choice) {
        let (Choice::Refuse(id) | Choice::LoseAnswer(id) | Choice::Delay(id)) = fault else { return };
        let mut world = lock(&self.world);
        let task = world.tasks.get(&id);
        let call = task.and_then(|task| task.call.as_ref());
        if let (Some(task), true) = (task, call.is_some_and(|call| Effect::is_cache(&call.effect))) {
            let process = task.process;
            world.note(|| Event::NoAnswer { process });
        }
    }

    /// Notes the answer of a load.
    pub(super) fn note_answer(&self, number: usize, outcome: Outcome) {
        let Outcome::Loaded(seen) = outcome else { return };
        let mut world = lock(&self.world);
        let key = match self.scenario.operations.get(number) {
            Some((operation, _)) => operation.keys()[0],
            None => self.probed.get(number - FIRST_PROBE).copied().unwrap_or_default(),
        };
        let row = seen.map(|seen| world.version_of(key, seen));
        world.note(|| Event::Answered { number, key, row });
    }
}
