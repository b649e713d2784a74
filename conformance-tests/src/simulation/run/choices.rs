//! The choices at each step of a run.

use std::time::Duration;

use session_core::Scope;

use super::{Simulation, Status};
use crate::simulation::arrangement::Arrangement;
use crate::simulation::call::{Call, Effect, LateId};
use crate::simulation::operation::Operation;
use crate::simulation::settings::{KEYS, NEAR_BOUND, TICK, WRITE_TIMEOUT};
use crate::simulation::task_id::TaskId;
use crate::simulation::world::{Purpose, TaskState, World, lock};

/// The times that can pass at once: enough for leases, and enough for fences.
pub(super) const JUMPS: [Duration; 2] = [Duration::from_secs(11), Duration::from_secs(33)];

/// One of the events that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::simulation) enum Choice {
    /// A client begins an operation.
    Begin(usize),
    /// The task of a write queue begins. Other writers may have joined the queue by now.
    Start(TaskId),
    /// A call takes effect, and may be answered.
    TakeEffect(TaskId),
    /// The answer to a call arrives.
    Arrive(TaskId),
    /// A timer of a task that only waits for it fires.
    Fire(TaskId),
    /// Another process gets ahead of an exchange that is on its way.
    Rival,
    /// A call that no task waits for any more takes effect after all.
    TakeEffectLate(LateId),
    /// The answer to a call by a channel is read, and its task is not polled yet: a report behind it may come before that.
    Read(TaskId),
    /// A channel reports a change.
    Notice(usize),
    /// Time passes that is longer than the freshness bound of near caches.
    Tick,
    /// Nothing more happens, and the state is judged.
    Finish,
    /// A fault: a call has no effect, and an error says so.
    Refuse(TaskId),
    /// A fault: a call takes effect, but the answer is lost.
    LoseAnswer(TaskId),
    /// A fault: a call is given up. It may take effect later.
    Delay(TaskId),
    /// A fault: a writer's call takes effect, but time passes before the writer continues.
    Stall(TaskId, usize),
    /// A fault: the caller of an operation is dropped.
    Drop(usize),
    /// A fault: a load is not polled any more, but lives on.
    Suspend(usize),
    /// A fault: a process dies.
    Crash(usize),
    /// A fault: an entry is evicted.
    Evict(usize),
    /// A fault: the cache loses the last change of an entry.
    Revert(usize),
    /// A fault: time passes.
    Pass(usize),
    /// A fault: a channel is cut, at both ends.
    Cut(usize),
    /// A fault: a process waits no longer for the answer to a ping.
    GiveUp(TaskId),
}

impl Simulation<'_> {
    /// Returns what can happen next. Never empty before the run is over.
    pub(in crate::simulation) fn choices(&self) -> Vec<Choice> {
        if self.is_finished {
            return Vec::new();
        }
        let world = lock(&self.world);
        let mut choices = Vec::new();
        let mut faults = Vec::new();
        // `false` if anything must still happen.
        let mut is_quiet = true;
        for (id, state) in &world.tasks {
            if self.urgent.is_some_and(|urgent| urgent != *id) {
                continue;
            }
            match &state.call {
                Some(call) if call.is_open() => {
                    is_quiet = false;
                    self.add_choices(&world, *id, call, &mut choices, &mut faults);
                }
                None if !self.is_suspended(*id) => {
                    let first = state.timers.iter().min_by_key(|timer| timer.due);
                    match first.map(|timer| (timer.purpose, timer.due)) {
                        // A ping at the instant of the basis would change nothing.
                        Some((Purpose::Maintain, _))
                            if id.is_keeper() && !self.may_ping(&world, state.process) => {}
                        Some((Purpose::Maintain, _)) => choices.push(Choice::Fire(*id)),
                        Some((Purpose::Wait | Purpose::Final, due)) if due <= world.now => {
                            is_quiet = false;
                            choices.push(Choice::Fire(*id));
                        }
                        Some((Purpose::Final, _)) => is_quiet = false,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if self.urgent.is_none() {
            self.add_unhurried_choices(&world, is_quiet, &mut choices, &mut faults);
        }
        if self.faults_left > 0 {
            let arrangement = self.scenario.arrangement;
            faults.retain(|fault| match arrangement {
                Arrangement::Near | Arrangement::Strict | Arrangement::Deaf => {
                    disturbs_channel(&world, *fault)
                }
                Arrangement::Failover => matches!(fault, Choice::Revert(_)),
                Arrangement::Fragile => {
                    matches!(fault, Choice::Evict(_) | Choice::Crash(_) | Choice::Refuse(_))
                }
                _ => true,
            });
            choices.extend(faults);
        }
        choices
    }

    /// Adds what can happen when no task that has just begun must make its first call.
    fn add_unhurried_choices(
        &self,
        world: &World,
        mut is_quiet: bool,
        choices: &mut Vec<Choice>,
        faults: &mut Vec<Choice>,
    ) {
        for task in self.tasks.iter().filter(|task| task.is_held) {
            is_quiet = false;
            choices.push(Choice::Start(task.id));
        }
        for (number, status) in self.statuses.iter().enumerate() {
            let process = self.scenario.operations[number].1;
            match status {
                Status::Waiting if self.stores[process].is_some() => {
                    is_quiet = false;
                    choices.push(Choice::Begin(number));
                }
                Status::Running => {
                    faults.push(Choice::Drop(number));
                    if self.shares_single_flight(number) {
                        faults.push(Choice::Suspend(number));
                    }
                }
                _ => {}
            }
        }
        choices.extend(world.late.iter().map(|late| Choice::TakeEffectLate(late.id())));
        for (number, _) in world.open_channels() {
            if world.has_notice(number) {
                is_quiet = false;
                choices.push(Choice::Notice(number));
            }
            faults.push(Choice::Cut(number));
        }
        if self.may_tick(world) {
            choices.push(Choice::Tick);
        }
        if is_quiet {
            choices.push(Choice::Finish);
        }
        if self.rivalry_left > 0 && world.has_exchange_under_way() {
            choices.push(Choice::Rival);
        }
        // The cache of a single process dies with it, and a new store begins from nothing.
        let may_crash = self.scenario.arrangement.is_shared();
        for process in (0..self.stores.len()).filter(|_| may_crash) {
            if self.tasks.iter().any(|task| task.process == process) {
                faults.push(Choice::Crash(process));
            }
        }
        faults.extend((0..KEYS.len()).filter(|key| world.entry(*key).is_some()).map(Choice::Evict));
        faults.extend((0..KEYS.len()).filter(|key| world.may_revert(*key)).map(Choice::Revert));
        faults.extend((0..JUMPS.len()).filter(|jump| may_pass(world, &JUMPS[*jump])).map(Choice::Pass));
    }

    /// Adds what can happen to a call.
    fn add_choices(
        &self,
        world: &World,
        id: TaskId,
        call: &Call,
        choices: &mut Vec<Choice>,
        faults: &mut Vec<Choice>,
    ) {
        if call.reply.is_some() {
            if matches!(call.effect, Effect::Ping(_)) {
                faults.push(Choice::GiveUp(id));
            }
            if !world.is_behind(id, call) {
                choices.push(Choice::Arrive(id));
                if world.is_before_notice(id, call) {
                    choices.push(Choice::Read(id));
                }
            }
            return;
        }
        choices.push(Choice::TakeEffect(id));
        let is_write = self.operation(id).is_some_and(|operation| !operation.is_load());
        if is_write && !call.effect.is_statement() {
            let jumps = (0..JUMPS.len()).filter(|jump| may_pass(world, &JUMPS[*jump]));
            faults.extend(jumps.map(|jump| Choice::Stall(id, jump)));
        }
        if call.effect.is_cache() && self.scenario.scope() == Scope::Process {
            return;
        }
        faults.push(Choice::Refuse(id));
        if call.effect.is_write() {
            faults.extend([Choice::LoseAnswer(id), Choice::Delay(id)]);
        }
    }

    /// Returns `true` if memory of this process can still answer a load.
    pub(super) fn may_show(&self, process: usize) -> bool {
        let operations = self.scenario.operations.iter().zip(&self.statuses);
        operations.into_iter().any(|((operation, place), status)| {
            let loads = operation.is_load() || *operation == Operation::Follow;
            *place == process && loads && *status != Status::Over
        })
    }

    /// Returns `true` if a ping of this process can make a difference.
    fn may_ping(&self, world: &World, process: usize) -> bool {
        let left = self.nears[process].as_ref().map_or(0, |near| near.state().1);
        let is_old = u128::from(left) < (NEAR_BOUND - Duration::from_millis(10)).as_nanos();
        // A fault can happen to any ping, and a channel that was cut is noticed by one.
        let is_cut = || world.open_channels().iter().all(|(_, of)| *of != process);
        self.may_show(process) && (is_old || self.faults_left > 0 || is_cut())
    }

    /// Returns `true` if the time of a tick can pass: a few times, and whenever a final operation waits for it.
    fn may_tick(&self, world: &World) -> bool {
        let only_waits = |task: &TaskState| {
            let first = task.timers.iter().min_by_key(|timer| timer.due);
            task.call.is_none()
                && first.is_some_and(|timer| timer.purpose == Purpose::Final && timer.due > world.now)
        };
        self.scenario.arrangement.is_near()
            && (self.ticks_left > 0 || world.tasks.values().any(only_waits))
            && may_pass(world, &TICK)
    }

    pub(super) fn is_suspended(&self, id: TaskId) -> bool {
        self.tasks.iter().any(|task| task.id == id && task.is_suspended)
    }

    /// Returns `true` if the scenario has another load of the same session in the same process.
    fn shares_single_flight(&self, number: usize) -> bool {
        let mine = self.scenario.operations[number];
        mine.0.is_load() && self.scenario.operations.iter().filter(|other| **other == mine).count() > 1
    }
}

/// Returns `true` if only a channel of a near cache is disturbed. The other faults are those of scenarios without near
/// caches.
fn disturbs_channel(world: &World, fault: Choice) -> bool {
    match fault {
        Choice::Cut(_) | Choice::GiveUp(_) => true,
        Choice::Refuse(id) => {
            let call = world.tasks.get(&id).and_then(|task| task.call.as_ref());
            call.is_some_and(|call| call.effect.channel().is_some())
        }
        _ => false,
    }
}

/// Returns `true` if this time can pass at once: a store gives a statement up after its timeout.
fn may_pass(world: &World, time: &Duration) -> bool {
    world.tasks.values().filter_map(|task| task.call.as_ref()).all(|call| {
        !call.effect.is_statement()
            || call.reply.is_some()
            || world.now + *time <= call.sent_at + WRITE_TIMEOUT
    })
}
