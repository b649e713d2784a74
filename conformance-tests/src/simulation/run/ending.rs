//! The end of a run: what must hold when nothing happens any more.

use std::time::Duration;

use session_core::{Entry, Record, State};

use super::tasks::Task;
use super::{FIRST_PROBE, Simulation, Status, Verdict, awaits_repair};
use crate::simulation::call::Seen;
use crate::simulation::digest;
use crate::simulation::operation::Operation;
use crate::simulation::oracle::Promise;
use crate::simulation::settings::{
    AHEAD, CLOCK_SLACK, FENCE_TTL, KEYS, LEASE_TTL, MAX_CACHE_AGE, STATEMENT_BOUND, VALUE_TTL_EXCESS,
    WRITE_TIMEOUT, stored_keys,
};
use crate::simulation::task_id::TaskId;
use crate::simulation::world::{Purpose, TaskState, World, lock};

/// The time within which the cache must be used after it answers again.
const RECOVERY: Duration = Duration::from_secs(2);

/// The number of rounds after which a run is stuck.
const MAX_ROUNDS: usize = 200;

/// The number of rounds in which timers fire when they are due: longer than the recovery may take.
const PUNCTUAL_ROUNDS: usize = 40;

impl Simulation<'_> {
    /// Completes the run. From here on there are no faults, and nothing else begins: every operation that has
    /// begun must come to its end, and the cache must be of use again.
    pub(in crate::simulation) fn complete(&mut self) -> Verdict {
        for status in &mut self.statuses {
            if *status == Status::Waiting {
                *status = Status::Over;
            }
        }
        // Calls that were given up take effect now or never.
        let lands = self.digest().is_multiple_of(2);
        let mut world = lock(&self.world);
        while let Some(first) = world.late.first().filter(|_| lands) {
            let id = first.id();
            world.take_effect_late(id);
        }
        drop(world);
        (self.rivalry_left, self.ticks_left) = (0, 0);
        for _ in 0..MAX_ROUNDS {
            self.release();
            self.run_woken()?;
            if lock(&self.world).open_calls().is_empty() {
                // Nor is a final operation over whose caller has left, as long as it waits.
                let waits =
                    |task: &TaskState| task.timers.iter().any(|timer| timer.purpose == Purpose::Final);
                let is_waiting = lock(&self.world).tasks.values().any(waits);
                if !self.statuses.contains(&Status::Running) && !is_waiting {
                    return self.finish();
                }
                let is_waited_for = |purpose| matches!(purpose, Purpose::Wait | Purpose::Final);
                self.pass_to_timer(&is_waited_for, Duration::ZERO)?;
            }
            self.serve_all();
        }
        Err("an operation that has begun does not come to its end".into())
    }

    /// Judges a state in which nothing happens any more.
    pub(super) fn finish(&mut self) -> Verdict {
        let awaits = self.stores.iter().flatten().any(awaits_repair);
        if let Some(number) = self.statuses.iter().position(|status| *status == Status::Running) {
            let name = self.scenario.operations[number].0.name();
            return Err(format!("{name} waits for something that never happens"));
        }
        if !self.excuses.failures {
            for number in std::mem::take(&mut self.dropped) {
                self.oracle.require_effect(number)?;
            }
        }
        {
            let mut world = lock(&self.world);
            let is_stuck = |task: &&Task| !task.is_suspended && world.tasks[&task.id].timers.is_empty();
            if let Some(stuck) = self.tasks.iter().find(is_stuck) {
                return Err(format!("{:?} waits for something that never happens", stuck.id));
            }
            if world.rival.is_some() {
                world.rival();
            }
            for key in 0..KEYS.len() {
                self.check_left_behind(&world, key)?;
            }
        }
        if !awaits {
            self.check_quiet_cache()?;
        }
        self.drain()?;
        self.check_quiet_cache()?;
        if self.stores.iter().all(Option::is_none) {
            // The process starts again.
            self.stores[0] = Some(self.store(0));
        }
        let mut probe = FIRST_PROBE;
        if !self.is_bounded_only() {
            self.probe_all(&mut probe, false)?;
        }
        self.let_pass(FENCE_TTL + CLOCK_SLACK + LEASE_TTL + AHEAD);
        if !self.is_bounded_only() {
            self.probe_all(&mut probe, true)?;
        }
        self.let_pass(MAX_CACHE_AGE + VALUE_TTL_EXCESS + AHEAD);
        self.exposed.clear();
        (self.is_bounded, self.was_degraded) = (false, false);
        self.probe_all(&mut probe, true)?;
        // Loads that were not polled any more leave at last.
        self.end_tasks(|task| task.is_suspended);
        self.run_woken()?;
        self.drain()?;
        if self.stores.iter().flatten().any(|store| store.__flights() + store.__queues() > 0) {
            return Err("an attempt or a write queue is left behind".into());
        }
        Ok(())
    }

    /// Returns a digest of the rows and entries of the world, in which operations are not told apart by their numbers.
    pub(in crate::simulation) fn left_behind(&self) -> u64 {
        let world = lock(&self.world);
        let of = |number: usize| self.scenario.operations.get(number).copied();
        let seen = |record: &Record| Seen::of(record).0.map(|mark| of(usize::from(mark).wrapping_sub(1)));
        let left = |key: usize| {
            let entry = world.entry(key).map(|entry| match &entry.state {
                State::Value(value) => (0, Some(seen(&value.record))),
                State::Lease => (1, None),
                State::Fence(_) => (2, None),
            });
            (world.row(key).map(seen), entry)
        };
        digest::of(((0..KEYS.len()).map(left).collect::<Vec<_>>(), &self.excuses))
    }

    pub(super) fn let_pass(&mut self, time: Duration) {
        let mut world = lock(&self.world);
        world.pass(time);
        self.oracle.tick(world.now);
    }

    fn check_left_behind(&self, world: &World, key: usize) -> Verdict {
        match world.entry(key).map(|entry| &entry.state) {
            Some(State::Lease | State::Fence(_)) if !self.excuses.leftovers => {
                Err("a lease or a fence is left behind, although nothing went wrong that explains it".into())
            }
            _ => Ok(()),
        }
    }

    /// Checks that the cache shows what the database has, except for an expiry that is earlier.
    fn check_quiet_cache(&self) -> Verdict {
        if self.is_bounded_only() {
            return Ok(());
        }
        let world = lock(&self.world);
        for (key, name) in KEYS.iter().enumerate() {
            let Some(Entry { state: State::Value(value), .. }) = world.entry(key) else { continue };
            let record = &value.record;
            if !session_core::protocol::is_servable(value, world.now, MAX_CACHE_AGE) {
                continue;
            }
            let is_true = world.row(key).is_some_and(|row| {
                row.payload() == record.payload()
                    && row.version() == record.version()
                    && row.subject() == record.subject()
                    && row.expires_at() >= record.expires_at()
            });
            if !is_true {
                return Err(format!(
                    "all is quiet, but the cache does not show what the database has under {name}"
                ));
            }
        }
        Ok(())
    }

    /// Lets the store's own tasks come to their end. The cache answers from now on, so it must be used again
    /// soon.
    fn drain(&mut self) -> Verdict {
        let begun = lock(&self.world).now;
        for round in 0..MAX_ROUNDS {
            if self.tasks.iter().all(|task| task.is_suspended || task.id.is_keeper()) {
                // No task maintains the cache any more.
                return self.check_recovery(Duration::MAX);
            }
            self.serve_all();
            self.run_woken()?;
            let now = lock(&self.world).now;
            self.check_recovery(now.since(begun))?;
            // The first probes of the cache come when they are due. Later ones may be late.
            let pause = if round < PUNCTUAL_ROUNDS { Duration::ZERO } else { Duration::from_secs(1) };
            self.pass_to_timer(&|_| true, pause)?;
        }
        Err("a task is left behind that does not come to its end".into())
    }

    /// Lets time pass, at least `at_least`, until the first timer for which `is_meant` is true is due, and
    /// fires all that are due then.
    fn pass_to_timer(&mut self, is_meant: &dyn Fn(Purpose) -> bool, at_least: Duration) -> Verdict {
        let due: Vec<_> = {
            let world = lock(&self.world);
            let is_idle = |id: TaskId, task: &TaskState| {
                task.call.is_none() && !self.is_suspended(id) && !id.is_keeper()
            };
            let idle = world.tasks.iter().filter(|(id, task)| is_idle(**id, task));
            let due = idle.filter_map(|(id, task)| {
                let meant = task.timers.iter().filter(|timer| is_meant(timer.purpose));
                Some((meant.map(|timer| timer.due).min()?, *id))
            });
            due.collect()
        };
        let Some((first, _)) = due.iter().min() else { return Ok(()) };
        let now = lock(&self.world).now;
        let then = now + first.since(now).max(at_least);
        self.let_pass(then.since(now));
        for (_, id) in due.into_iter().filter(|(due, _)| *due <= then) {
            self.fire(id);
        }
        self.run_woken()
    }

    /// Checks that, `after` this time of answers from the cache, it is used again, and no key waits for its
    /// repair, unless a statement may still commit.
    fn check_recovery(&self, after: Duration) -> Verdict {
        for store in self.stores.iter().flatten() {
            if after > RECOVERY && store.__breaker_is_open() {
                return Err(format!("the cache has answered for {after:?}, and is not used yet"));
            }
            for (key, stored) in stored_keys().iter().enumerate() {
                let last_commit =
                    if self.excuses.unknown[key] { WRITE_TIMEOUT + STATEMENT_BOUND } else { Duration::ZERO };
                if after > RECOVERY + last_commit && store.__awaits_repair(stored) {
                    return Err(format!(
                        "the cache has answered for {after:?}, and {} is not repaired",
                        KEYS[key]
                    ));
                }
            }
        }
        Ok(())
    }

    /// Returns `true` if the second load of a session must be a hit now: neither a lease nor a fence is
    /// there, nor a value that is too old to be served.
    fn is_free(&self, process: usize, key: usize) -> bool {
        let world = lock(&self.world);
        let alone = self.nears[process].as_ref().filter(|_| self.is_notified());
        let held = alone.and_then(|memory| memory.present(&stored_keys()[key]));
        match held.as_ref().or(world.entry(key)).map(|entry| &entry.state) {
            None => true,
            Some(State::Lease | State::Fence(_)) => false,
            Some(State::Value(value)) => {
                session_core::protocol::is_servable(value, world.now + AHEAD, MAX_CACHE_AGE)
            }
        }
    }

    /// Loads everything twice in every process. `is_calm` means that leases and fences have run out. Then, or
    /// where there is none, the second load of a session must be a hit.
    fn probe_all(&mut self, probe: &mut usize, is_calm: bool) -> Verdict {
        // A channel that was cut is noticed by one ping, and opened by the next.
        for _ in 0..3 {
            self.answer_pings();
        }
        for process in 0..self.stores.len() {
            if self.stores[process].is_none() {
                continue;
            }
            for (key, operation) in [Operation::Load, Operation::LoadB].into_iter().enumerate() {
                let is_calm = is_calm || self.is_free(process, key);
                if self.stores[process].as_ref().is_some_and(|store| store.__flights() > 0) {
                    // This load ends the attempt of a load that is not polled any more.
                    self.probe(probe, process, operation)?;
                }
                self.probe(probe, process, operation)?;
                let reads = lock(&self.world).reads;
                self.probe(probe, process, operation)?;
                let world = lock(&self.world);
                let is_there = world.row(key).is_some_and(|row| !row.is_expired(world.now + AHEAD));
                if is_calm && is_there && world.reads > reads {
                    return Err(format!("the cache is of no use to {} any more", KEYS[key]));
                }
            }
        }
        Ok(())
    }

    fn probe(&mut self, probe: &mut usize, process: usize, operation: Operation) -> Verdict {
        let number = *probe;
        *probe += 1;
        self.probed.push(operation.keys()[0]);
        self.begin(number, operation, process, None);
        if self.was_degraded {
            self.oracle.promise(number, Promise::Bounded);
        } else if !self.exposed.is_empty() {
            self.oracle.promise(number, Promise::Fresh);
        }
        for _ in 0..20 {
            self.run_woken()?;
            if !lock(&self.world).tasks.contains_key(&TaskId::of_operation(number)) {
                // The load may have found that the cache needs maintenance.
                return self.drain();
            }
            self.serve_all();
        }
        Err("a load does not come to its end".into())
    }
}
