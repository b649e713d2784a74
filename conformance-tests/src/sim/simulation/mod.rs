//! One run: real stores over the simulated world, driven step by step.

mod ending;
mod telling;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use session_cached_db::{CachedDb, Session};
use session_core::{BoxFuture, Entry, Scope, Stamp, State, Value};

use crate::sim::backends::{SimCache, SimDb, SimRuntime};
use crate::sim::digest;
use crate::sim::operation::{FIRST_VERSION, Operation, Outcome, Store, record, session_key, stored_keys};
use crate::sim::oracle::{Oracle, Promise};
use crate::sim::scenario::{Beginning, Scenario};
use crate::sim::world::{
    AHEAD, CLOCK_SLACK, FAR, FENCE_TTL, KEYS, LEASE_TTL, Late, MAX_CACHE_AGE, Reply, START, Shared, Spawned,
    TaskId, WRITE_TIMEOUT, World, lock,
};

/// How much time can pass at once: enough for leases, enough for fences.
const JUMPS: [Duration; 2] = [Duration::from_secs(11), Duration::from_secs(33)];

/// When a session that ends soon does so.
const END: Duration = Duration::from_secs(25);

/// The first number of the loads that are made after the end of a run.
const FIRST_PROBE: usize = 100;

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum Choice {
    /// A client begins an operation.
    Begin(usize),
    /// A call has its effect, and maybe is answered.
    Happen(TaskId),
    /// The answer to a call arrives.
    Arrive(TaskId),
    /// A timer of a task that only waits for it fires.
    Fire(TaskId),
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
                | C::Crash(_)
                | C::Evict(_)
                | C::Pass(_)
        )
    }
}

struct Flag(AtomicBool);

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
    /// It has waited for nothing but a timer: it is one that looks after the store.
    is_background: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Status {
    Waiting,
    Running,
    /// Answered, or without anybody who waits for an answer.
    Over,
}

/// A run in the middle.
pub(in crate::sim) struct Simulation<'a> {
    scenario: &'a Scenario,
    world: Shared,
    stores: Vec<Option<Store>>,
    sessions: Vec<Option<Session>>,
    tasks: Vec<Task>,
    statuses: Vec<Status>,
    outcomes: Arc<std::sync::Mutex<Vec<(usize, Outcome)>>>,
    oracle: Oracle,
    faults_left: u8,
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
pub(in crate::sim) type Judged<T = ()> = Result<T, String>;

impl<'a> Simulation<'a> {
    pub(in crate::sim) fn new(scenario: &'a Scenario) -> Self {
        // A cache may keep things longer than it was told; one process has such a cache.
        let laziness = if scenario.processes() > 1 { Duration::ZERO } else { LEASE_TTL };
        let mut world = World::new(laziness);
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
            outcomes: Arc::default(),
            oracle,
            faults_left: scenario.faults,
            urgent: None,
            exposed: BTreeSet::new(),
            lost: BTreeSet::new(),
            repairs_lost: false,
            is_finished: false,
        };
        for process in 0..scenario.processes() {
            let store = simulation.store(process);
            simulation.stores.push(Some(store));
        }
        simulation.place_beginning();
        for &(operation, process) in &scenario.operations {
            let session = (operation == Operation::Merge).then(|| simulation.opened(process));
            simulation.sessions.push(session);
        }
        simulation.place_beginning();
        simulation
    }

    fn place_beginning(&mut self) {
        let mut world = lock(&self.world);
        let record = world.row(0).cloned().expect("A is there in the beginning");
        let stamp = Stamp(std::num::NonZeroU64::MIN);
        let value = Value { record: Arc::new(record), made_at: START };
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
            lock(&self.world).polling = task;
            match opening.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(opened) => session = Some(opened.expect("nothing fails yet")),
                Poll::Pending => {
                    self.run_woken().expect("nobody answers yet");
                    self.serve_all();
                }
            }
        }
        lock(&self.world).tasks.remove(&task);
        session.expect("opened")
    }

    /// Lets every call have its effect, and its answer arrive.
    fn serve_all(&mut self) {
        let waiting: Vec<_> = {
            let world = lock(&self.world);
            world.tasks.iter().filter(|(_, task)| task.call.is_some()).map(|(id, _)| *id).collect()
        };
        for id in waiting {
            self.apply(id);
            self.arrive(id);
        }
    }

    /// Lets the call of a task have its effect, and leaves the answer for the task.
    fn apply(&mut self, id: TaskId) {
        let mut world = lock(&self.world);
        let Some(call) = world.task(id).call.as_mut().filter(|call| call.reply.is_none()) else { return };
        let effect = call.effect.clone();
        let reply = world.apply(id, effect);
        world.task(id).call.as_mut().expect("it is still there").reply = Some(reply);
    }

    fn answer(&mut self, id: TaskId, reply: Reply) {
        lock(&self.world).task(id).call.as_mut().expect("a call to answer").reply = Some(reply);
    }

    /// Lets a task have the answer to its call.
    fn arrive(&mut self, id: TaskId) {
        {
            let mut world = lock(&self.world);
            let now = world.now;
            let task = world.task(id);
            let Some(call) = &task.call else { return };
            let reply = call.reply.as_ref().expect("an answer that arrives");
            task.log = digest::of((task.log, digest::effect(&call.effect), digest::reply(reply), now));
        }
        if let Some(task) = self.tasks.iter().find(|task| task.id == id) {
            task.flag.0.store(true, Ordering::Relaxed);
        }
    }

    /// Runs everything that can run without a call being answered.
    fn run_woken(&mut self) -> Judged {
        loop {
            let spawned: Vec<_> = lock(&self.world).spawned.drain(..).collect();
            for Spawned(id, future) in spawned {
                let process = lock(&self.world).task(id).process;
                self.adopt(id, process, future);
            }
            let Some(position) =
                self.tasks.iter().position(|task| task.flag.0.swap(false, Ordering::Relaxed))
            else {
                return Ok(());
            };
            let task = &mut self.tasks[position];
            let (id, process) = (task.id, task.process);
            lock(&self.world).polling = id;
            let waker = Waker::from(Arc::clone(&task.flag));
            if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                let finished = self.tasks.remove(position);
                drop(finished);
                lock(&self.world).tasks.remove(&id);
                // While the breaker is open, no settlement is sent, whether or not anybody waits for an answer.
                if self.stores[process].as_ref().is_some_and(CachedDb::__breaker_is_open) {
                    self.lost.insert(id.operation());
                }
                self.judge_answers()?;
            } else {
                let mut world = lock(&self.world);
                let state = world.task(id);
                if state.call.is_none() && !state.timers.is_empty() {
                    // It looks after the store, in a loop, and is at its beginning.
                    state.log = 0;
                    task.is_background = true;
                }
            }
        }
    }

    fn judge_answers(&mut self) -> Judged {
        let answers: Vec<_> =
            self.outcomes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).drain(..).collect();
        for (number, outcome) in answers {
            if let Some(status) = self.statuses.get_mut(number) {
                *status = Status::Over;
            }
            if outcome == Outcome::Unknown {
                self.lost.insert(number);
            }
            self.note_promises();
            self.oracle.answer(number, outcome, &lock(&self.world))?;
        }
        Ok(())
    }

    fn adopt(&mut self, id: TaskId, process: usize, future: BoxFuture<()>) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.tasks.push(Task { id, process, future, flag, is_background: false });
    }

    /// Starts an operation, whose answer goes to the oracle.
    fn begin(&mut self, number: usize, operation: Operation, process: usize, session: Option<Session>) {
        let store = self.stores[process].clone().expect("a process that runs");
        let id = TaskId::of_operation(number);
        let now = {
            let mut world = lock(&self.world);
            world.begin(id, process);
            world.now
        };
        self.oracle.begin(number, operation, ahead(process), now);
        let outcomes = Arc::clone(&self.outcomes);
        let task = Box::pin(async move {
            let outcome = operation.run(number, store, session).await;
            outcomes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((number, outcome));
        });
        self.adopt(id, process, task);
    }

    /// What can happen next. Never empty before the run is over.
    pub(in crate::sim) fn choices(&self) -> Vec<Choice> {
        if self.is_finished {
            return Vec::new();
        }
        let world = lock(&self.world);
        let mut choices = Vec::new();
        let mut faults = Vec::new();
        for task in &self.tasks {
            let Some(state) = world.tasks.get(&task.id) else { continue };
            if self.urgent.is_some_and(|urgent| urgent != task.id) {
                continue;
            }
            match &state.call {
                Some(call) if call.reply.is_some() => choices.push(Choice::Arrive(task.id)),
                Some(call) => {
                    choices.push(Choice::Happen(task.id));
                    let is_write = self.operation(task.id).is_some_and(|operation| !operation.is_load());
                    if is_write && !call.effect.is_statement() {
                        let jumps = (0..JUMPS.len()).filter(|jump| may_pass(&world, &JUMPS[*jump]));
                        faults.extend(jumps.map(|jump| Choice::Stall(task.id, jump)));
                    }
                    if call.effect.is_cache() && self.scenario.scope() == Scope::Process {
                        continue;
                    }
                    faults.push(Choice::Refuse(task.id));
                    if call.effect.is_write() {
                        faults.extend([Choice::LoseAnswer(task.id), Choice::Delay(task.id)]);
                    }
                }
                None if !state.timers.is_empty() => choices.push(Choice::Fire(task.id)),
                None => {}
            }
        }
        if self.urgent.is_none() {
            for (number, status) in self.statuses.iter().enumerate() {
                let process = self.scenario.operations[number].1;
                match status {
                    Status::Waiting if self.stores[process].is_some() => choices.push(Choice::Begin(number)),
                    Status::Running => faults.push(Choice::Drop(number)),
                    _ => {}
                }
            }
            choices.extend((0..world.late.len()).map(Choice::Land));
            if self.is_quiet(&world) {
                choices.push(Choice::Finish);
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

    /// Whether nothing is left to happen but what may or may not.
    fn is_quiet(&self, world: &World) -> bool {
        let has_begun = self.statuses.iter().enumerate().all(|(number, status)| {
            *status == Status::Over || self.stores[self.scenario.operations[number].1].is_none()
        });
        has_begun && self.tasks.iter().all(|task| world.tasks[&task.id].call.is_none())
    }

    /// Goes one step.
    pub(in crate::sim) fn step(&mut self, choice: Choice) -> Judged {
        self.urgent = None;
        if choice.is_fault() {
            self.faults_left -= 1;
        }
        match choice {
            Choice::Begin(number) => {
                let (operation, process) = self.scenario.operations[number];
                let session = self.sessions[number].take();
                self.statuses[number] = Status::Running;
                self.begin(number, operation, process, session);
                self.run_woken()?;
                if !self.is_crowded(process, TaskId::of_operation(number)) {
                    // Nobody can tell whether it has begun before its first call has its effect.
                    let world = lock(&self.world);
                    let mut calls = world
                        .tasks
                        .iter()
                        .filter(|(id, task)| id.operation() == number && task.call.is_some());
                    self.urgent = calls.next().map(|(id, _)| *id);
                }
            }
            Choice::Happen(id) => {
                self.apply(id);
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
            Choice::Land(position) => {
                let mut world = lock(&self.world);
                let late = world.late.remove(position);
                let _ = world.apply(late.task, late.effect);
            }
            Choice::Refuse(id) => {
                self.note_loss(id);
                self.answer(id, Reply::Refused);
                self.arrive_unless_crowded(id)?;
            }
            Choice::LoseAnswer(id) => {
                self.apply(id);
                self.note_loss(id);
                self.answer(id, Reply::Ambiguous);
                self.arrive_unless_crowded(id)?;
            }
            Choice::Delay(id) => {
                self.note_loss(id);
                {
                    let mut world = lock(&self.world);
                    let call = world.task(id).call.as_ref().expect("a call to delay");
                    let late = Late { task: id, effect: call.effect.clone(), sent_at: call.sent_at };
                    world.late.push(late);
                }
                self.answer(id, Reply::Ambiguous);
                self.arrive_unless_crowded(id)?;
            }
            Choice::Stall(id, jump) => {
                self.apply(id);
                self.let_pass(JUMPS[jump]);
                self.arrive_unless_crowded(id)?;
            }
            Choice::Drop(number) => {
                self.statuses[number] = Status::Over;
                self.oracle.forsake(number);
                self.end_tasks(|task| task.id == TaskId::of_operation(number));
                self.run_woken()?;
            }
            Choice::Crash(process) => self.crash(process)?,
            Choice::Evict(key) => {
                let mut world = lock(&self.world);
                if let Some(Entry { state: State::Fence(fence), .. }) = world.entry(key) {
                    let owner = |token: u64| TaskId(u32::try_from(token >> 16).expect("a task's token"));
                    let owners = fence.holders.iter().map(|holder| owner(holder.token.0.get()).operation());
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
        let is_background = self.tasks.iter().any(|task| task.id == id && task.is_background);
        self.scenario.operations.iter().zip(&self.statuses).enumerate().any(
            |(other, ((kind, place), status))| {
                let shares = is_background || operation.is_load() && kind.is_load();
                other != number && *place == process && *status != Status::Over && shares
            },
        )
    }

    fn fire(&mut self, id: TaskId) {
        let mut world = lock(&self.world);
        let first = world.task(id).timers.iter_mut().min_by_key(|(_, due, _)| *due);
        first.expect("a timer that fires").2 = true;
        drop(world);
        if let Some(task) = self.tasks.iter().find(|task| task.id == id) {
            task.flag.0.store(true, Ordering::Relaxed);
        }
    }

    fn end_tasks(&mut self, ends: impl Fn(&Task) -> bool) {
        let ended: Vec<_> = self.tasks.extract_if(.., |task| ends(task)).collect();
        for task in ended {
            let id = task.id;
            // What it does in its last moments, it does itself.
            lock(&self.world).polling = id;
            drop(task);
            lock(&self.world).tasks.remove(&id);
        }
    }

    fn crash(&mut self, process: usize) -> Judged {
        let store = self.stores[process].take().expect("a process that runs");
        self.repairs_lost |= stored_keys().iter().any(|key| store.__awaits_repair(key));
        let dying: Vec<_> = self.tasks.iter().filter(|task| task.process == process).collect();
        self.lost.extend(dying.iter().map(|task| task.id.operation()));
        self.end_tasks(|task| task.process == process);
        drop(store);
        for (number, (_, place)) in self.scenario.operations.iter().enumerate() {
            if *place == process {
                self.sessions[number] = None;
                self.oracle.forsake(number);
            }
        }
        // What the dropped tasks have started in their last moments dies, too.
        let unborn: Vec<_> = lock(&self.world).spawned.drain(..).collect();
        for Spawned(id, future) in unborn {
            drop(future);
            lock(&self.world).tasks.remove(&id);
        }
        for (number, (_, place)) in self.scenario.operations.iter().enumerate() {
            if *place == process {
                self.statuses[number] = Status::Over;
            }
        }
        self.run_woken()
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
    pub(in crate::sim) fn digest(&self) -> u64 {
        let world = lock(&self.world);
        let shared = |store: &Store| store.__shared_state(u32::from(self.faults_left));
        let stores: Vec<_> = self.stores.iter().map(|store| store.as_ref().map(shared)).collect();
        let tasks: BTreeSet<_> = self.tasks.iter().map(|task| (task.id, task.is_background)).collect();
        // Who has lost what matters as long as something can still be evicted.
        let losses = (self.faults_left > 0).then_some((&self.exposed, &self.lost));
        digest::of((
            world.digest(),
            self.oracle.digest(&world),
            stores,
            tasks,
            &self.statuses,
            self.faults_left,
            self.urgent,
            (losses, self.exposed.is_empty(), self.is_bounded_only(), self.repairs_lost, self.is_finished),
        ))
    }
}

impl Drop for Simulation<'_> {
    fn drop(&mut self) {
        // Tasks first: they send what they give up to the world.
        self.tasks.clear();
        lock(&self.world).spawned.clear();
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
