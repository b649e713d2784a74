//! One run: real stores over the simulated world, driven step by step.

mod choices;
mod describe;
mod ending;
mod footprint;
mod judging;
mod steps;
mod tasks;
mod traced;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cache_backends::moka::MokaCache;
use cache_backends::near::{near, notified};
use session_cached_db::simulation::{enter_task, set_new_key};
use session_cached_db::{CachedDb, Error, OutagePolicy, Session, WriteOperation};
use session_core::{Entry, SessionKey, Stamp, Value};

pub(in crate::simulation) use self::choices::Choice;
pub(in crate::simulation) use self::footprint::Footprint;
use self::judging::Excuses;
use self::tasks::Task;
use crate::simulation::arrangement::Arrangement;
use crate::simulation::backends::{NodeCache, SimCache, SimDb};
use crate::simulation::digest;
use crate::simulation::operation::{
    Answer, FIRST_VERSION, Operation, Store, note_of_rotation, record, session_key,
};
use crate::simulation::oracle::Oracle;
use crate::simulation::places::{self, Places};
use crate::simulation::runtime::SimRuntime;
use crate::simulation::scenario::{Beginning, Scenario};
use crate::simulation::settings::{
    AHEAD, CACHE_TIMEOUT, CLOCK_SLACK, FAR, FENCE_TTL, GRACE, KEYS, LEASE_TTL, MAX_CACHE_AGE, NEAR_BOUND,
    PROBE_INTERVAL, READ_TIMEOUT, START, TOUCH_INTERVAL, WRITE_TIMEOUT, stored_keys,
};
use crate::simulation::task_id::{FIRST_KEEPER, TaskId};
use crate::simulation::trace::Tracer;
use crate::simulation::world::{Shared, TaskState, World, lock};

/// The time after which a session that ends soon expires.
const END: Duration = Duration::from_secs(25);

/// The first number of the loads that probe the state after the end of a run.
const FIRST_PROBE: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Status {
    Waiting,
    Running,
    /// Answered, or without a caller that waits for the answer.
    Over,
}

/// A run that is under way.
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
    /// The number of times that the rival process may still get ahead.
    rivalry_left: u8,
    excuses: Excuses,
    /// Writes whose future was dropped.
    dropped: BTreeSet<usize>,
    /// `true` while tasks that are started begin later.
    holds: bool,
    /// A task that has just begun: its first call comes next.
    urgent: Option<TaskId>,
    /// Operations whose fence was evicted.
    exposed: BTreeSet<usize>,
    /// Operations whose settlement was lost, or whose outcome is unknown.
    lost: BTreeSet<usize>,
    /// Only the age of an entry bounds what is shown: a process died with keys to repair, the cache lost what it had
    /// acknowledged, or another process wrote past the cache of this one.
    is_bounded: bool,
    is_finished: bool,
    /// The near caches of the processes, if they have them.
    nears: Vec<Option<NodeCache>>,
    /// The number of times that the time of a tick may pass without being waited for.
    ticks_left: u8,
    /// An operation was degraded: other nodes' memories may show what it replaced, for as long as any cache may.
    was_degraded: bool,
    /// Follows the run by the rules of the specification.
    tracer: Option<Tracer>,
    /// The sessions that the loads after the end of the run have asked for.
    probed: Vec<usize>,
    /// An operation has answered in the last step.
    has_answered: bool,
}

/// The verdict on a run so far: an error says which promise was broken.
pub(in crate::simulation) type Verdict<T = ()> = Result<T, String>;

impl<'a> Simulation<'a> {
    pub(in crate::simulation) fn new(scenario: &'a Scenario) -> Self {
        let world = beginning(scenario);
        let oracle = Oracle::new(&world, scenario.arrangement);
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
            is_bounded: false,
            is_finished: false,
            nears: vec![None; scenario.processes()],
            ticks_left: scenario.ticks,
            was_degraded: false,
            tracer: None,
            probed: Vec::new(),
            has_answered: false,
        };
        simulation.enter(TaskId::of_operation(FIRST_PROBE - 1));
        lock(&simulation.world).begin_rival(usize::MAX);
        for process in 0..scenario.processes() {
            lock(&simulation.world).begin(TaskId::of_operation(FIRST_PROBE - 1), process);
            let store = simulation.store(process);
            simulation.stores.push(Some(store));
        }
        simulation.answer_pings();
        simulation.place_beginning();
        for &(operation, process) in &scenario.operations {
            let session = operation.needs_session().then(|| simulation.opened(process));
            simulation.sessions.push(session);
        }
        simulation.place_beginning();
        simulation.fill_memories();
        let mut world = lock(&simulation.world);
        world.end(TaskId::of_operation(FIRST_PROBE - 1));
        world.keeps_changes = scenario.arrangement == Arrangement::Failover;
        drop(world);
        simulation
    }

    /// Switches to this task.
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
        let is_cached = self.scenario.beginning != Beginning::Vacant && !self.is_notified();
        world.place(0, is_cached.then(|| Entry::value(stamp, value)), MAX_CACHE_AGE);
    }

    fn store(&mut self, process: usize) -> Store {
        let setup = TaskId::of_operation(FIRST_KEEPER + process);
        let before = lock(&self.world).polling;
        lock(&self.world).begin(setup, process);
        self.enter(setup);
        let cache = self.cache(process);
        let world = || Arc::clone(&self.world);
        let arrangement = self.scenario.arrangement;
        let db = SimDb { world: world(), process, reports: self.is_notified() };
        let mut builder = CachedDb::builder(cache, db)
            .runtime(SimRuntime { world: world(), ahead: ahead(process) })
            .reaper(None)
            .sole_process()
            .idle_timeout(FAR)
            .touch_interval(TOUCH_INTERVAL)
            .max_cache_age(MAX_CACHE_AGE)
            .lease_ttl(LEASE_TTL)
            .fence_ttl(FENCE_TTL)
            .clock_slack(CLOCK_SLACK)
            .write_timeout(WRITE_TIMEOUT)
            .cache_timeout(CACHE_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .probe_interval(PROBE_INTERVAL)
            .breaker_threshold(if arrangement.is_sensitive() { 1 } else { 5 });
        if arrangement == Arrangement::Closed {
            for operation in WriteOperation::ALL {
                builder = builder.outage_policy(*operation, OutagePolicy::FailClosed);
            }
        }
        if self.scenario.has_rotations() {
            set_new_key(SessionKey::parse(KEYS[1]).ok());
        }
        if self.scenario.has_rotations() || self.scenario.follows() {
            builder = builder.rotation_grace(GRACE);
        }
        if arrangement == Arrangement::Strict {
            builder = builder.strict(WriteOperation::Save);
        }
        let store = at_once(builder.build()).expect("settings that fit together");
        lock(&self.world).end(setup);
        self.enter(before);
        store
    }

    /// Returns the cache of a process. A near one is kept here as well.
    fn cache(&mut self, process: usize) -> NodeCache {
        let is_deaf = self.scenario.arrangement == Arrangement::Deaf;
        let cache =
            SimCache { world: Arc::clone(&self.world), scope: self.scenario.scope(), process, is_deaf };
        if !self.scenario.arrangement.is_near() {
            return NodeCache::Plain(Arc::new(cache));
        }
        let nanos = Arc::clone(&lock(&self.world).nanos);
        let memory = MokaCache::builder().__build_on(nanos);
        let near = if self.is_notified() {
            NodeCache::Notified(notified(memory).with_freshness_bound(NEAR_BOUND))
        } else {
            NodeCache::Near(near(memory, cache).with_freshness_bound(NEAR_BOUND))
        };
        self.nears[process] = Some(near.clone());
        near
    }

    /// Returns `true` if each process has memory alone, and the database reports.
    fn is_notified(&self) -> bool {
        self.scenario.arrangement == Arrangement::Notified
    }

    /// Lets each near cache be told that it knows of everything up to now.
    fn answer_pings(&mut self) {
        let sleeps =
            |id: &TaskId, task: &TaskState| id.is_keeper() && task.call.is_none() && !task.timers.is_empty();
        let due: Vec<_> = {
            let world = lock(&self.world);
            world.tasks.iter().filter(|(id, task)| sleeps(id, task)).map(|(id, _)| *id).collect()
        };
        for id in due {
            self.fire(id);
        }
        for _ in 0..3 {
            self.run_woken().expect("no operation answers");
            self.serve_all();
        }
        self.run_woken().expect("no operation answers");
    }

    /// Loads A in each process with a near cache, if it is cached in the beginning.
    fn fill_memories(&mut self) {
        if !self.scenario.arrangement.is_near() {
            return;
        }
        self.serve_all();
        if self.scenario.beginning != Beginning::Cached {
            return;
        }
        for process in 0..self.stores.len() {
            let store = self.stores[process].clone().expect("nothing has crashed yet");
            self.drive(process, async move { store.load(&stored_keys()[0]).await.map(drop) });
        }
    }

    /// Opens a session before the run begins.
    fn opened(&mut self, process: usize) -> Session {
        let store = self.stores[process].clone().expect("nothing has crashed yet");
        self.drive(process, async move { store.open_key(session_key()).await })
    }

    /// Drives a future to its end before the run begins.
    fn drive<T>(&mut self, process: usize, future: impl Future<Output = Result<T, Error>>) -> T {
        let mut future = Box::pin(future);
        let task = TaskId::of_operation(FIRST_PROBE - 1);
        lock(&self.world).begin(task, process);
        loop {
            self.enter(task);
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => return done.expect("nothing fails yet"),
                Poll::Pending => {
                    self.run_woken().expect("no operation answers yet");
                    self.serve_all();
                }
            }
        }
    }

    /// Returns a digest of everything that decides what can happen from here on, and how it will be judged.
    pub(in crate::simulation) fn digest(&self) -> u64 {
        self.places().digest()
    }

    /// Returns the digests of all places of the state.
    pub(in crate::simulation) fn places(&self) -> Places {
        let world = lock(&self.world);
        let shared = |store: &Option<Store>| {
            store.as_ref().map(|store| store.__shared_state(u32::from(self.faults_left)))
        };
        let stores = self.stores.iter().map(shared);
        let (judgment, history) = (self.oracle.digest(), self.oracle.history_digest(&world));
        let mut places = Places::new(digest::of((judgment, history, self.urgent, self.is_finished)));
        for (process, shared) in stores.enumerate() {
            places.add(places::attempts(process), shared.map(|shared| shared.attempts));
            places.add(places::queues(process), shared.map(|shared| shared.queues));
            places.add(places::repair(process), shared.map(|shared| shared.repairs));
            places.note_repair(process, shared.map_or(0, |shared| shared.repairs_in_full));
            if self.scenario.arrangement.is_near() {
                places.add(places::channel(process), memory_digest(&self.nears[process]));
                places.add(places::shows(process), self.may_show(process));
            }
            let over = |is_meant: fn(Operation) -> bool| {
                let operations = self.scenario.operations.iter().zip(&self.statuses);
                let of = operations.map(|((operation, place), status)| {
                    *place == process && *status == Status::Over && is_meant(*operation)
                });
                of.fold(0_u8, |set, is_over| set << 1 | u8::from(is_over))
            };
            places.add(places::loads_over(process), over(Operation::is_load));
            places.add(places::all_over(process), over(|_| true));
        }
        for task in &self.tasks {
            places.add(places::of_task(task.id), (task.id, task.is_held, task.is_suspended));
        }
        for (number, status) in self.statuses.iter().enumerate() {
            let of = (status, self.dropped.contains(&number), self.oracle.promise_of(number));
            places.add(places::operation(number), of);
        }
        places.add(places::FAULTS, (self.faults_left, self.ticks_left, self.excuses));
        places.add(places::RIVAL, self.rivalry_left);
        // Losses matter as long as an entry can still be evicted.
        let losses = (self.faults_left > 0).then_some((&self.exposed, &self.lost));
        let is_weak = (self.exposed.is_empty(), self.is_bounded_only(), self.is_bounded, self.was_degraded);
        places.add(places::PROMISES, (losses, is_weak));
        world.add_places(&mut places);
        places
    }
}

impl Drop for Simulation<'_> {
    fn drop(&mut self) {
        // Tasks first: dropping them hands their calls to the world.
        self.end_tasks(|_| true);
        self.drop_spawned();
    }
}

/// Returns the world as it is before the operations of `scenario`.
fn beginning(scenario: &Scenario) -> World {
    // A cache may keep entries longer than their TTL. The cache of a single process does.
    let excess = if scenario.processes() > 1 { Duration::ZERO } else { LEASE_TTL };
    let mut world = World::new(excess);
    let may_fail =
        |(operation, _): &(Operation, usize)| matches!(operation, Operation::Save | Operation::Rename);
    world.remembers = !scenario.operations.iter().any(may_fail) && !scenario.has_rotations();
    let is_used = |wanted| scenario.operations.iter().any(|(operation, _)| *operation == wanted);
    world.throttles = is_used(Operation::Use) && !is_used(Operation::Touch);
    let expires_at = START + if scenario.beginning == Beginning::Ending { END } else { FAR };
    let first = record([0; 2]).with_version(FIRST_VERSION).with_expires_at(expires_at);
    let first = first.with_last_seen_at(START - 2 * TOUCH_INTERVAL);
    world.commit(0, Some(first), None);
    world.commit(1, None, None);
    if scenario.follows() {
        world.notes.push(note_of_rotation());
    }
    world
}

fn memory_digest(near: &Option<NodeCache>) -> Option<(Vec<u64>, (bool, u64, bool))> {
    let near = near.as_ref()?;
    let held = stored_keys().map(|key| digest::option(near.present(&key).as_ref()));
    Some((held.to_vec(), near.state()))
}

fn awaits_repair(store: &Store) -> bool {
    stored_keys().iter().any(|key| store.__awaits_repair(key))
}

fn ahead(process: usize) -> Duration {
    if process == 0 { Duration::ZERO } else { AHEAD }
}

/// Returns the result of a future that does not wait for anything.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits for something"),
    }
}
