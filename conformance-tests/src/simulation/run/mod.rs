//! One run: real stores over the simulated world, driven step by step.

mod describe;
mod ending;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use session_cached_db::simulation::{enter_task, turns};
use session_cached_db::{CachedDb, Session};
use session_core::{BoxFuture, Entry, Scope, Stamp, State, Value};

use crate::simulation::backends::{SimCache, SimDb, SimRuntime};
use crate::simulation::digest;
use crate::simulation::operation::{
    Answer, FIRST_VERSION, Operation, Outcome, Store, record, session_key, stored_keys,
};
use crate::simulation::oracle::{Oracle, Promise};
use crate::simulation::scenario::{Beginning, Scenario};
use crate::simulation::world::{
    AHEAD, CACHE_TIMEOUT, CLOCK_SLACK, Call, Effect, FAR, FENCE_TTL, KEYS, LEASE_TTL, MAX_CACHE_AGE,
    PROBE_INTERVAL, Purpose, READ_TIMEOUT, Reply, START, Shared, Spawned, TaskId, TaskState, WRITE_TIMEOUT,
    World, lock,
};

/// How much time can pass at once: enough for leases, enough for fences.
const JUMPS: [Duration; 2] = [Duration::from_secs(11), Duration::from_secs(33)];

/// When a session that ends soon does so.
const END: Duration = Duration::from_secs(25);

/// The first number of the loads that are made after the end of a run.
const FIRST_PROBE: usize = 100;

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Choice {
    /// A client begins an operation.
    Begin(usize),
    /// The task of a write queue, into which others may have come by now, begins.
    Start(TaskId),
    /// A call has its effect, and maybe is answered.
    Happen(TaskId),
    /// The answer to a call arrives.
    Arrive(TaskId),
    /// A timer of a task that only waits for it fires.
    Fire(TaskId),
    /// Another process gets ahead of an exchange that is on its way.
    Rival,
    /// A call that nobody waits for any more has its effect after all.
    Land(usize),
    /// Nothing more happens, and the state is judged.
    Finish,
    /// A fault: a call has no effect, and an error says so.
    Refuse(TaskId),
    /// A fault: a call has its effect, but the answer is lost.
    LoseAnswer(TaskId),
    /// A fault: a call is given up; it may have its effect later.
    Delay(TaskId),
    /// A fault: a writer's call has its effect, but time passes before the writer goes on.
    Stall(TaskId, usize),
    /// A fault: the caller of an operation is dropped.
    Drop(usize),
    /// A fault: a load is not polled any more, but lives on.
    Forget(usize),
    /// A fault: a process dies.
    Crash(usize),
    /// A fault: an entry is evicted.
    Evict(usize),
    /// A fault: time passes.
    Pass(usize),
}

impl Choice {
    fn is_fault(self) -> bool {
        use Choice as C;
        matches!(
            self,
            C::Refuse(_)
                | C::LoseAnswer(_)
                | C::Delay(_)
                | C::Stall(..)
                | C::Drop(_)
                | C::Forget(_)
                | C::Crash(_)
                | C::Evict(_)
                | C::Pass(_)
        )
    }
}

struct Flag(AtomicBool);

impl Task {
    fn is_woken(&self) -> bool {
        !self.is_held && !self.is_forgotten && self.flag.0.load(Ordering::Relaxed)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    id: TaskId,
    process: usize,
    future: BoxFuture<()>,
    flag: Arc<Flag>,
    /// It has not begun yet.
    is_held: bool,
    /// It is never polled again.
    is_forgotten: bool,
}

/// What the faults so far may excuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Excuses {
    /// A call of the cache failed, or came late: operations may say that they are degraded.
    degraded: bool,
    /// A lease or a fence may be left until its time is over.
    leftovers: bool,
    /// Operations may fail.
    failures: bool,
    /// A statement whose outcome is not known may still commit.
    unknown: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Status {
    Waiting,
    Running,
    /// Answered, or without anybody who waits for an answer.
    Over,
}

/// A run in the middle.
pub(in crate::simulation) struct Simulation<'a> {
    scenario: &'a Scenario,
    world: Shared,
    stores: Vec<Option<Store>>,
    sessions: Vec<Option<Session>>,
    tasks: Vec<Task>,
    statuses: Vec<Status>,
    answers: Arc<std::sync::Mutex<Vec<Answer>>>,
    oracle: Oracle,
    faults_left: u8,
    /// How often a rival process may still get ahead.
    rivalry_left: u8,
    excuses: Excuses,
    /// Writes whose caller has left.
    dropped: BTreeSet<usize>,
    /// Whether tasks that are started now begin later.
    holds: bool,
    /// Began just now: its first call comes next.
    urgent: Option<TaskId>,
    /// Operations whose fence was evicted.
    exposed: BTreeSet<usize>,
    /// Operations whose settlement will not come, or whose outcome is unknown.
    lost: BTreeSet<usize>,
    /// A process died with keys to repair.
    repairs_lost: bool,
    is_finished: bool,
}

/// Something that must not happen, has.
pub(in crate::simulation) type Judged<T = ()> = Result<T, String>;

impl<'a> Simulation<'a> {
    pub(in crate::simulation) fn new(scenario: &'a Scenario) -> Self {
        // A cache may keep things longer than it was told; one process has such a cache.
        let laziness = if scenario.processes() > 1 { Duration::ZERO } else { LEASE_TTL };
        let mut world = World::new(laziness);
        let may_fail =
            |(operation, _): &(Operation, usize)| matches!(operation, Operation::Save | Operation::Rename);
        world.remembers = !scenario.operations.iter().any(may_fail);
        let expires_at = START + if scenario.beginning == Beginning::Ending { END } else { FAR };
        let first = record([0; 2]).with_version(FIRST_VERSION).with_expires_at(expires_at);
        world.commit(0, Some(first), None);
        world.commit(1, None, None);
        let oracle = Oracle::new(&world);
        let mut simulation = Self {
            scenario,
            world: Arc::new(std::sync::Mutex::new(world)),
            stores: Vec::new(),
            sessions: Vec::new(),
            tasks: Vec::new(),
            statuses: vec![Status::Waiting; scenario.operations.len()],
            answers: Arc::default(),
            oracle,
            faults_left: scenario.faults,
            rivalry_left: scenario.rivalry,
            excuses: Excuses::default(),
            dropped: BTreeSet::new(),
            holds: false,
            urgent: None,
            exposed: BTreeSet::new(),
            lost: BTreeSet::new(),
            repairs_lost: false,
            is_finished: false,
        };
        simulation.enter(TaskId::of_operation(FIRST_PROBE - 1));
        lock(&simulation.world).begin_rival(usize::MAX);
        for process in 0..scenario.processes() {
            lock(&simulation.world).begin(TaskId::of_operation(FIRST_PROBE - 1), process);
            let store = simulation.store(process);
            simulation.stores.push(Some(store));
        }
        simulation.place_beginning();
        for &(operation, process) in &scenario.operations {
            let session = (operation == Operation::Merge).then(|| simulation.opened(process));
            simulation.sessions.push(session);
        }
        simulation.place_beginning();
        lock(&simulation.world).end(TaskId::of_operation(FIRST_PROBE - 1));
        simulation
    }

    /// This task runs from now on.
    fn enter(&self, task: TaskId) {
        lock(&self.world).polling = task;
        enter_task(task.0);
    }

    fn place_beginning(&mut self) {
        let mut world = lock(&self.world);
        let record = world.row(0).cloned().expect("A is there in the beginning");
        let stamp = Stamp(std::num::NonZeroU64::MIN);
        let store = self.stores[0].as_ref().expect("nothing has crashed yet").__store_id();
        let value = Value { record: Arc::new(record), made_at: START, store };
        let is_cached = self.scenario.beginning != Beginning::Vacant;
        world.place(0, is_cached.then(|| Entry::value(stamp, value)), MAX_CACHE_AGE);
    }

    fn store(&self, process: usize) -> Store {
        let world = || Arc::clone(&self.world);
        let cache = SimCache { world: world(), scope: self.scenario.scope() };
        let build = CachedDb::builder(cache, SimDb { world: world() })
            .runtime(SimRuntime { world: world(), ahead: ahead(process) })
            .reaper(None)
            .sole_process()
            .idle_timeout(FAR)
            .max_cache_age(MAX_CACHE_AGE)
            .lease_ttl(LEASE_TTL)
            .fence_ttl(FENCE_TTL)
            .clock_slack(CLOCK_SLACK)
            .write_timeout(WRITE_TIMEOUT)
            .cache_timeout(CACHE_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .probe_interval(PROBE_INTERVAL)
            .breaker_threshold(if self.scenario.is_nervous { 1 } else { 5 })
            .build();
        at_once(build).expect("settings that fit together")
    }

    /// A session that was opened before the run began.
    fn opened(&mut self, process: usize) -> Session {
        let store = self.stores[process].clone().expect("nothing has crashed yet");
        let mut opening = Box::pin(async move { store.open_key(session_key()).await });
        let task = TaskId::of_operation(FIRST_PROBE - 1);
        lock(&self.world).begin(task, process);
        let mut session = None;
        while session.is_none() {
            self.enter(task);
            match opening.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(opened) => session = Some(opened.expect("nothing fails yet")),
                Poll::Pending => {
                    self.run_woken().expect("nobody answers yet");
                    self.serve_all();
                }
            }
        }
        session.expect("opened")
    }

    /// Lets every call have its effect, and its answer arrive.
    fn serve_all(&mut self) {
        let open = lock(&self.world).open_calls();
        for id in open {
            lock(&self.world).apply(id);
            self.arrive(id);
        }
    }

    fn answer(&mut self, id: TaskId, reply: Reply) {
        lock(&self.world).task(id).call.as_mut().expect("a call to answer").reply = Some(reply);
    }

    /// Lets whoever waits for the call of a task have the answer.
    fn arrive(&mut self, id: TaskId) {
        let waker = lock(&self.world).deliver(id);
        waker.inspect(Waker::wake_by_ref);
    }

    /// Runs everything that can run without a call being answered.
    fn run_woken(&mut self) -> Judged {
        loop {
            let spawned: Vec<_> = lock(&self.world).spawned.drain(..).collect();
            for Spawned(id, future) in spawned {
                let process = lock(&self.world).task(id).process;
                self.adopt(id, process, future, self.holds);
            }
            let woken = self.tasks.iter().enumerate().filter(|(_, task)| task.is_woken());
            let Some((position, _)) = woken.min_by_key(|(_, task)| task.id) else { return Ok(()) };
            let task = &mut self.tasks[position];
            task.flag.0.store(false, Ordering::Relaxed);
            let (id, process) = (task.id, task.process);
            lock(&self.world).polling = id;
            enter_task(id.0);
            let waker = Waker::from(Arc::clone(&task.flag));
            let turns_before = turns();
            if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                let finished = self.tasks.remove(position);
                drop(finished);
                lock(&self.world).end(id);
                // While the breaker is open, no settlement is sent, whether or not anybody waits for an answer.
                if self.stores[process].as_ref().is_some_and(CachedDb::__breaker_is_open) {
                    self.lost.insert(id.operation());
                }
                self.judge_answers()?;
            } else {
                if turns() > turns_before {
                    // A queue that goes on to its next write. What it knows by now is in the digest of the queues.
                    lock(&self.world).task(id).log = 0;
                }
                self.judge_answers()?;
            }
        }
    }

    fn judge_answers(&mut self) -> Judged {
        let answers: Vec<_> =
            self.answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).drain(..).collect();
        for Answer { number, outcome, is_degraded } in answers {
            if let Some(status) = self.statuses.get_mut(number) {
                *status = Status::Over;
            }
            if outcome == Outcome::Unknown {
                self.lost.insert(number);
            }
            let is_failure = matches!(outcome, Outcome::Failed | Outcome::Unknown);
            // What fails in an attempt is told to every load that joins it: also to one that comes long after, if the
            // load that has driven the attempt so far is not polled any more.
            let is_late = number >= FIRST_PROBE && !self.tasks.iter().any(|task| task.is_forgotten);
            let is_untroubled = !lock(&self.world).is_troubled || is_late;
            let name = || self.scenario.operations.get(number).map_or("a load", |(other, _)| other.name());
            if is_degraded && !self.excuses.degraded {
                return Err(format!("{} says that the cache did not answer, but it did", name()));
            }
            if is_failure && is_untroubled {
                return Err(format!("{} fails, although nothing went wrong", name()));
            }
            self.note_promises();
            self.oracle.answer(number, outcome, &lock(&self.world))?;
        }
        Ok(())
    }

    fn adopt(&mut self, id: TaskId, process: usize, future: BoxFuture<()>, is_held: bool) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.tasks.push(Task { id, process, future, flag, is_held, is_forgotten: false });
    }

    /// Lets tasks begin that were held back.
    fn release(&mut self) {
        for task in &mut self.tasks {
            task.is_held = false;
        }
    }

    /// Starts an operation, whose answer goes to the oracle.
    fn begin(&mut self, number: usize, operation: Operation, process: usize, session: Option<Session>) {
        let store = self.stores[process].clone().expect("a process that runs");
        let id = TaskId::of_operation(number);
        let mut world = lock(&self.world);
        world.begin(id, process);
        self.oracle.begin(number, operation, process, ahead(process), &world);
        drop(world);
        let answers = Arc::clone(&self.answers);
        let task = Box::pin(async move {
            let answer = operation.run(number, store, session).await;
            answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(answer);
        });
        self.adopt(id, process, task, false);
    }

    /// What can happen next. Never empty before the run is over.
    pub(in crate::simulation) fn choices(&self) -> Vec<Choice> {
        if self.is_finished {
            return Vec::new();
        }
        let world = lock(&self.world);
        let mut choices = Vec::new();
        let mut faults = Vec::new();
        // Whether anything must still happen.
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
                None if !self.is_forgotten(*id) => {
                    let first = state.timers.iter().min_by_key(|timer| timer.due);
                    match first.map(|timer| (timer.purpose, timer.due)) {
                        Some((Purpose::Tend, _)) => choices.push(Choice::Fire(*id)),
                        Some((Purpose::Load, due)) if due <= world.now => {
                            is_quiet = false;
                            choices.push(Choice::Fire(*id));
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if self.urgent.is_none() {
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
                        if self.shares_flight(number) {
                            faults.push(Choice::Forget(number));
                        }
                    }
                    _ => {}
                }
            }
            choices.extend((0..world.late.len()).map(Choice::Land));
            if is_quiet {
                choices.push(Choice::Finish);
            }
            if self.rivalry_left > 0 && world.has_exchange_under_way() {
                choices.push(Choice::Rival);
            }
            // One process's own cache dies with it: what that brings about is another store's beginning.
            let may_crash = self.scenario.is_shared;
            for process in (0..self.stores.len()).filter(|_| may_crash) {
                if self.tasks.iter().any(|task| task.process == process) {
                    faults.push(Choice::Crash(process));
                }
            }
            faults.extend((0..KEYS.len()).filter(|key| world.entry(*key).is_some()).map(Choice::Evict));
            faults.extend((0..JUMPS.len()).filter(|jump| may_pass(&world, &JUMPS[*jump])).map(Choice::Pass));
        }
        if self.faults_left > 0 {
            choices.extend(faults);
        }
        choices
    }

    /// What can happen to a call.
    fn add_choices(
        &self,
        world: &World,
        id: TaskId,
        call: &Call,
        choices: &mut Vec<Choice>,
        faults: &mut Vec<Choice>,
    ) {
        if call.reply.is_some() {
            return choices.push(Choice::Arrive(id));
        }
        choices.push(Choice::Happen(id));
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

    fn is_forgotten(&self, id: TaskId) -> bool {
        self.tasks.iter().any(|task| task.id == id && task.is_forgotten)
    }

    /// Whether another load of the same session is made in the same process.
    fn shares_flight(&self, number: usize) -> bool {
        let mine = self.scenario.operations[number];
        mine.0.is_load() && self.scenario.operations.iter().filter(|other| **other == mine).count() > 1
    }

    /// Goes one step.
    pub(in crate::simulation) fn step(&mut self, choice: Choice) -> Judged {
        self.urgent = None;
        if choice.is_fault() {
            self.faults_left -= 1;
            self.excuse(choice);
        }
        match choice {
            Choice::Begin(number) => {
                let (operation, process) = self.scenario.operations[number];
                let session = self.sessions[number].take();
                self.statuses[number] = Status::Running;
                self.begin(number, operation, process, session);
                // Others that wait already when the queue's task begins become one with it.
                let others = self.scenario.operations.iter().zip(&self.statuses);
                let waits = |((other, place), status): (&(Operation, usize), &Status)| {
                    other.combines() && *place == process && *status == Status::Waiting
                };
                self.holds = operation.combines() && others.into_iter().any(waits);
                let run = self.run_woken();
                self.holds = false;
                run?;
                if !self.is_crowded(process, TaskId::of_operation(number)) {
                    // Nobody can tell whether it has begun before its first call has its effect.
                    self.urgent = lock(&self.world).call_of(|id| id.operation() == number);
                }
            }
            Choice::Start(id) => {
                let held = self.tasks.iter_mut().find(|task| task.id == id);
                held.expect("a task that is held").is_held = false;
                self.run_woken()?;
                self.urgent = lock(&self.world).call_of(|other| other == id);
            }
            Choice::Happen(id) => {
                lock(&self.world).apply(id);
                self.arrive_unless_crowded(id)?;
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
            Choice::Land(position) => lock(&self.world).land(position),
            Choice::Refuse(id) => {
                self.note_loss(id);
                self.answer(id, Reply::Refused);
                self.arrive_unless_crowded(id)?;
            }
            Choice::LoseAnswer(id) => {
                let mut world = lock(&self.world);
                world.apply(id);
                drop(world);
                self.note_loss(id);
                self.answer(id, Reply::Unknown);
                self.arrive_unless_crowded(id)?;
            }
            Choice::Delay(id) => {
                self.note_loss(id);
                lock(&self.world).delay(id);
                self.answer(id, Reply::Unknown);
                self.arrive_unless_crowded(id)?;
            }
            Choice::Stall(id, jump) => {
                lock(&self.world).apply(id);
                self.let_pass(JUMPS[jump]);
                self.arrive_unless_crowded(id)?;
            }
            Choice::Drop(number) => {
                self.statuses[number] = Status::Over;
                self.oracle.forsake(number);
                if !self.scenario.operations[number].0.is_load() {
                    self.dropped.insert(number);
                }
                self.end_tasks(|task| task.id == TaskId::of_operation(number));
                self.run_woken()?;
            }
            Choice::Forget(number) => {
                self.statuses[number] = Status::Over;
                self.oracle.forsake(number);
                let id = TaskId::of_operation(number);
                let task = self.tasks.iter_mut().find(|task| task.id == id);
                task.expect("a load that runs").is_forgotten = true;
            }
            Choice::Crash(process) => self.crash(process)?,
            Choice::Evict(key) => {
                let mut world = lock(&self.world);
                if let Some(Entry { state: State::Fence(fence), .. }) = world.entry(key) {
                    let owner = |token: u64| TaskId::that_drew(token).operation();
                    let owners = fence.holders.iter().map(|holder| owner(holder.token.0.get()));
                    self.exposed.extend(owners);
                }
                world.slots[key] = None;
            }
            Choice::Pass(jump) => self.let_pass(JUMPS[jump]),
            Choice::Finish => {
                self.is_finished = true;
                self.finish()?;
            }
        }
        self.note_promises();
        let mut world = lock(&self.world);
        world.forget_the_futile();
        world.wrong.take().map_or(Ok(()), |wrong| Err(wrong.to_owned()))
    }

    fn arrive_unless_crowded(&mut self, id: TaskId) -> Judged {
        let process = lock(&self.world).task(id).process;
        if !self.is_crowded(process, id) {
            self.arrive(id);
            self.run_woken()?;
        }
        Ok(())
    }

    /// Whether it makes a difference that an answer is on its way. It does to loads, which share flights with other
    /// loads of their process, and to the repair of the cache, which shares its queue with everybody there. All else
    /// is between a task and the outside.
    fn is_crowded(&self, process: usize, id: TaskId) -> bool {
        let number = id.operation();
        let Some((operation, _)) = self.scenario.operations.get(number) else { return false };
        let repairs = |state: &TaskState| state.is_tending || state.is_repairing;
        let is_background = lock(&self.world).tasks.get(&id).is_some_and(repairs);
        self.scenario.operations.iter().zip(&self.statuses).enumerate().any(
            |(other, ((kind, place), status))| {
                let shares = is_background || operation.is_load() && kind.is_load();
                other != number && *place == process && *status != Status::Over && shares
            },
        )
    }

    fn fire(&mut self, id: TaskId) {
        let waker = lock(&self.world).fire(id);
        waker.wake();
    }

    fn end_tasks(&mut self, ends: impl Fn(&Task) -> bool) {
        let ended: Vec<_> = self.tasks.extract_if(.., |task| ends(task)).collect();
        for task in ended {
            let id = task.id;
            // What it does in its last moments, it does itself.
            self.enter(id);
            drop(task);
            lock(&self.world).end(id);
        }
    }

    fn crash(&mut self, process: usize) -> Judged {
        let store = self.stores[process].take().expect("a process that runs");
        self.repairs_lost |= stored_keys().iter().any(|key| store.__awaits_repair(key));
        let dying = lock(&self.world).tasks_of(process);
        self.lost.extend(dying.iter().map(|id| id.operation()));
        self.end_tasks(|task| task.process == process);
        drop(store);
        for (number, (_, place)) in self.scenario.operations.iter().enumerate() {
            if *place == process {
                self.sessions[number] = None;
                self.oracle.forsake(number);
                self.statuses[number] = Status::Over;
                self.dropped.remove(&number);
            }
        }
        self.drop_unborn();
        let left = lock(&self.world).tasks_of(process);
        assert!(left.is_empty(), "a process that is dead makes calls: {left:?}");
        self.run_woken()
    }

    /// What dropped tasks have started in their last moments dies, too.
    fn drop_unborn(&mut self) {
        loop {
            let unborn = std::mem::take(&mut lock(&self.world).spawned);
            if unborn.is_empty() {
                return;
            }
            for Spawned(id, future) in unborn {
                self.enter(id);
                drop(future);
                lock(&self.world).end(id);
            }
        }
    }

    /// Notes what a fault excuses, before it happens.
    fn excuse(&mut self, fault: Choice) {
        let mut world = lock(&self.world);
        world.is_troubled = true;
        let excuses = &mut self.excuses;
        match fault {
            Choice::Refuse(id) | Choice::LoseAnswer(id) | Choice::Delay(id) => {
                let effect =
                    world.tasks.get(&id).and_then(|task| task.call.as_ref()).map(|call| &call.effect);
                let is_cache = effect.is_some_and(Effect::is_cache);
                let is_definite = matches!(fault, Choice::Refuse(_));
                excuses.failures = true;
                excuses.degraded |= is_cache;
                excuses.leftovers |= is_cache || !is_definite;
                if !is_definite && let Some(key) = effect.and_then(Effect::statement_key) {
                    excuses.unknown[key] = true;
                }
            }
            Choice::Stall(..) | Choice::Pass(_) => {
                excuses.failures = true;
                excuses.degraded |= matches!(fault, Choice::Stall(..));
                // A writer that fences anew, because its fence is nearly over, leaves the old one if another has joined that.
                excuses.leftovers = true;
            }
            Choice::Forget(_) => excuses.leftovers = true,
            Choice::Crash(_) => {
                excuses.failures = true;
                excuses.leftovers = true;
            }
            _ => {}
        }
    }

    /// A cache call or a statement of a writer is about to fail. After its commit, that is a lost settlement; of a
    /// statement, an unknown outcome.
    fn note_loss(&mut self, id: TaskId) {
        let world = lock(&self.world);
        let number = id.operation();
        let has_committed = world.commits.keys().any(|(operation, _)| *operation == number);
        let is_statement = world.tasks[&id].call.as_ref().is_some_and(|call| call.effect.is_statement());
        if has_committed || is_statement {
            self.lost.insert(number);
        }
    }

    fn operation(&self, id: TaskId) -> Option<Operation> {
        self.scenario.operations.get(id.operation()).map(|(operation, _)| *operation)
    }

    /// Tells the oracle what is promised in the present state.
    fn note_promises(&mut self) {
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

    fn promise(&self, process: usize, waits: &[bool]) -> Promise {
        let is_degraded = waits.iter().enumerate().any(|(other, waits)| *waits && other != process);
        if self.is_bounded_only() || is_degraded {
            Promise::Bounded
        } else if !self.exposed.is_empty() {
            Promise::Fresh
        } else {
            Promise::Linearizable
        }
    }

    /// A fence was evicted, and its writer died or its settlement was lost; or a queue of repairs died.
    fn is_bounded_only(&self) -> bool {
        self.repairs_lost || self.exposed.intersection(&self.lost).next().is_some()
    }

    /// A digest of everything that decides what can happen from here on, and how it will be judged.
    pub(in crate::simulation) fn digest(&self) -> u64 {
        let world = lock(&self.world);
        let shared = |store: &Store| store.__shared_state(u32::from(self.faults_left));
        let stores: Vec<_> = self.stores.iter().map(|store| store.as_ref().map(shared)).collect();
        let tasks: BTreeSet<_> =
            self.tasks.iter().map(|task| (task.id, task.is_held, task.is_forgotten)).collect();
        // Who has lost what matters as long as something can still be evicted.
        let losses = (self.faults_left > 0).then_some((&self.exposed, &self.lost));
        digest::of((
            world.digest(),
            self.oracle.digest(&world),
            stores,
            tasks,
            &self.statuses,
            (self.faults_left, self.rivalry_left, self.excuses, &self.dropped),
            self.urgent,
            (losses, self.exposed.is_empty(), self.is_bounded_only(), self.repairs_lost, self.is_finished),
        ))
    }
}

impl Drop for Simulation<'_> {
    fn drop(&mut self) {
        // Tasks first: they send what they give up to the world.
        self.end_tasks(|_| true);
        self.drop_unborn();
    }
}

/// Whether so much time can pass at once: a store gives a statement up after its timeout.
fn may_pass(world: &World, time: &Duration) -> bool {
    world.tasks.values().filter_map(|task| task.call.as_ref()).all(|call| {
        !call.effect.is_statement()
            || call.reply.is_some()
            || world.now + *time <= call.sent_at + WRITE_TIMEOUT
    })
}

fn awaits_repair(store: &Store) -> bool {
    stored_keys().iter().any(|key| store.__awaits_repair(key))
}

fn ahead(process: usize) -> Duration {
    if process == 0 { Duration::ZERO } else { AHEAD }
}

/// The result of a future that does not wait for anything.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits for something"),
    }
}
