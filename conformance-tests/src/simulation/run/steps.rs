//! One step of a run.

use session_core::{Entry, State};

use super::choices::{Choice, JUMPS};
use super::{Simulation, Status, Verdict};
use crate::simulation::call::Reply;
use crate::simulation::operation::Operation;
use crate::simulation::settings::{FENCE_TTL, START, STATEMENT_BOUND, TICK, WRITE_TIMEOUT, stored_keys};
use crate::simulation::task_id::TaskId;
use crate::simulation::world::{TaskState, lock};

impl Simulation<'_> {
    /// Makes one step.
    pub(in crate::simulation) fn step(&mut self, choice: Choice) -> Verdict {
        self.urgent = None;
        self.has_answered = false;
        match choice {
            Choice::Begin(number) => self.begin_operation(number)?,
            Choice::Start(id) => {
                let held = self.tasks.iter_mut().find(|task| task.id == id);
                held.expect("a task that is held").is_held = false;
                self.run_woken()?;
                if !self.is_notified() {
                    self.urgent = lock(&self.world).call_of(|other| other == id);
                }
            }
            Choice::TakeEffect(id) => {
                lock(&self.world).apply(id);
                self.arrive_unless_order_matters(id)?;
            }
            Choice::Arrive(id) => {
                self.arrive(id);
                self.run_woken()?;
            }
            Choice::Fire(id) => {
                self.fire(id);
                self.run_woken()?;
            }
            Choice::Rival => {
                self.rivalry_left -= 1;
                lock(&self.world).rival();
            }
            Choice::Read(id) => lock(&self.world).take_item(id),
            Choice::Notice(number) => lock(&self.world).notice(number),
            Choice::Tick => {
                self.ticks_left = self.ticks_left.saturating_sub(1);
                self.let_pass(TICK);
                // After several of them, a writer renews its fence, and leaves the old one if another writer has joined it.
                let passed = lock(&self.world).now.since(START);
                self.excuses.leftovers |= passed + (WRITE_TIMEOUT + STATEMENT_BOUND) > FENCE_TTL;
            }
            Choice::TakeEffectLate(late) => lock(&self.world).take_effect_late(late),
            Choice::Finish => {
                self.is_finished = true;
                self.finish()?;
            }
            fault => self.apply_fault(fault)?,
        }
        self.note_promises();
        self.deliver_notices(|run, process| !run.may_show(process));
        let mut world = lock(&self.world);
        world.drop_inert_calls();
        world.wrong.take().map_or(Ok(()), |wrong| Err(wrong.to_owned()))
    }

    fn begin_operation(&mut self, number: usize) -> Verdict {
        let (operation, process) = self.scenario.operations[number];
        let session = self.sessions[number].take();
        self.statuses[number] = Status::Running;
        self.is_bounded |= operation == Operation::Elsewhere;
        self.begin(number, operation, process, session);
        // Operations that wait already when the queue's task begins are combined with this one.
        let others = self.scenario.operations.iter().zip(&self.statuses);
        let waits = |((other, place), status): (&(Operation, usize), &Status)| {
            other.combines() && *place == process && *status == Status::Waiting
        };
        self.holds = operation.combines() && others.into_iter().any(waits);
        let run = self.run_woken();
        self.holds = false;
        run?;
        // With memory alone, that call is the statement, and the fence before it is seen.
        if !self.is_notified() && !self.order_matters(process, TaskId::of_operation(number)) {
            // Before its first call takes effect, no other task can see whether it has begun.
            self.urgent = lock(&self.world).call_of(|id| id.operation() == number);
        }
        Ok(())
    }

    /// Lets something go wrong, and notes what that excuses.
    fn apply_fault(&mut self, fault: Choice) -> Verdict {
        self.faults_left -= 1;
        self.excuse(fault);
        self.note_no_answer(fault);
        match fault {
            Choice::Refuse(id) => {
                self.note_loss(id);
                self.answer(id, Reply::Refused);
                self.arrive_unless_order_matters(id)?;
            }
            Choice::LoseAnswer(id) => {
                let mut world = lock(&self.world);
                world.apply(id);
                drop(world);
                self.note_loss(id);
                self.answer(id, Reply::Unknown);
                self.arrive_unless_order_matters(id)?;
            }
            Choice::Delay(id) => {
                self.note_loss(id);
                lock(&self.world).delay(id);
                self.answer(id, Reply::Unknown);
                self.arrive_unless_order_matters(id)?;
            }
            Choice::Stall(id, jump) => {
                lock(&self.world).apply(id);
                self.let_pass(JUMPS[jump]);
                self.arrive_unless_order_matters(id)?;
            }
            Choice::Drop(number) => self.drop_caller(number)?,
            Choice::Suspend(number) => self.suspend(number),
            Choice::Crash(process) => self.crash(process)?,
            Choice::Evict(key) => self.evict(key),
            Choice::Revert(key) => {
                self.is_bounded = true;
                lock(&self.world).revert(key);
            }
            Choice::Pass(jump) => self.let_pass(JUMPS[jump]),
            Choice::Cut(number) => lock(&self.world).close_channel(number),
            Choice::GiveUp(id) => {
                self.answer(id, Reply::Unknown);
                self.arrive(id);
                self.run_woken()?;
            }
            other => panic!("not a fault: {other:?}"),
        }
        Ok(())
    }

    /// Drops the future of an operation.
    fn drop_caller(&mut self, number: usize) -> Verdict {
        self.statuses[number] = Status::Over;
        self.oracle.expect_no_answer(number);
        if !self.scenario.operations[number].0.is_load() {
            self.dropped.insert(number);
        }
        self.end_tasks(|task| task.id == TaskId::of_operation(number));
        self.run_woken()
    }

    /// Never polls a load again, and keeps its future.
    fn suspend(&mut self, number: usize) {
        self.statuses[number] = Status::Over;
        self.oracle.expect_no_answer(number);
        let id = TaskId::of_operation(number);
        let task = self.tasks.iter_mut().find(|task| task.id == id);
        task.expect("a load that runs").is_suspended = true;
    }

    /// Evicts the entry of a key, and notes whose fence was lost by it.
    fn evict(&mut self, key: usize) {
        let mut world = lock(&self.world);
        if let Some(Entry { state: State::Fence(fence), .. }) = world.entry(key) {
            let owner = |token: u64| TaskId::that_drew(token).operation();
            let owners = fence.holders.iter().map(|holder| owner(holder.token.0.get()));
            self.exposed.extend(owners);
        }
        world.evict(key);
    }

    pub(super) fn arrive_unless_order_matters(&mut self, id: TaskId) -> Verdict {
        let mut world = lock(&self.world);
        let task = world.task(id);
        let process = task.process;
        // Other messages of the channel, and its loss, may come before the answer.
        let goes_by_channel = task.call.as_ref().is_some_and(|call| call.effect.channel().is_some());
        drop(world);
        if !goes_by_channel && !self.order_matters(process, id) {
            self.arrive(id);
            self.run_woken()?;
        }
        Ok(())
    }

    /// Returns `true` if it makes a difference that an answer is on its way. It does for loads, which share
    /// single flights with other loads of their process, and for the repair of the cache, which shares its
    /// queue with every operation of the process. With memory alone, a report may come before the answer to a statement. Any
    /// other answer concerns its task alone.
    pub(super) fn order_matters(&self, process: usize, id: TaskId) -> bool {
        let number = id.operation();
        let Some((operation, _)) = self.scenario.operations.get(number) else { return false };
        let repairs = |state: &TaskState| state.is_maintaining || state.is_repairing;
        let is_background = lock(&self.world).tasks.get(&id).is_some_and(repairs);
        self.scenario.operations.iter().zip(&self.statuses).enumerate().any(
            |(other, ((kind, place), status))| {
                let shares = is_background || operation.is_load() && kind.is_load() || self.is_notified();
                other != number && *place == process && *status != Status::Over && shares
            },
        )
    }

    pub(super) fn crash(&mut self, process: usize) -> Verdict {
        let store = self.stores[process].take().expect("a process that runs");
        self.is_bounded |= stored_keys().iter().any(|key| store.__awaits_repair(key));
        self.nears[process] = None;
        let mut world = lock(&self.world);
        world.close_channels_of(process);
        let dying = world.tasks_of(process);
        drop(world);
        self.lost.extend(dying.iter().map(|id| id.operation()));
        self.end_tasks(|task| task.process == process);
        drop(store);
        for (number, (_, place)) in self.scenario.operations.iter().enumerate() {
            if *place == process {
                self.sessions[number] = None;
                self.oracle.expect_no_answer(number);
                self.statuses[number] = Status::Over;
                self.dropped.remove(&number);
            }
        }
        self.drop_spawned();
        let left = lock(&self.world).tasks_of(process);
        assert!(left.is_empty(), "a process that is dead makes calls: {left:?}");
        self.run_woken()
    }
}
