//! The simulated outside world: one cache, one database, one clock, and the calls on their way to them.
//!
//! A call takes effect when the scheduler says so, not when it is made.

mod channels;
mod effects;
mod rival;
mod timers;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use session_core::{BoxFuture, Entry, Record, Rotation, State, Timestamp, Token, Version};

use self::channels::Channel;
pub(in crate::simulation) use self::channels::Item;
pub(super) use self::timers::Purpose;
use self::timers::Timer;
use super::call::{Call, Effect, Late, Reply, Seen};
use super::digest;
use super::places::{self, Places};
use super::settings::{AHEAD, CLOCK_SLACK, KEYS, START, STATEMENT_BOUND, WRITE_TIMEOUT};
use super::task_id::TaskId;
use super::trace::{Event, Log};

/// The world's record of a task.
#[derive(Debug, Default)]
pub(in crate::simulation) struct TaskState {
    pub(in crate::simulation) process: usize,
    depth: u32,
    children: u32,
    draws: u32,
    calls: u32,
    pub(in crate::simulation) call: Option<Call>,
    next_timer: u32,
    pub(in crate::simulation) timers: Vec<Timer>,
    /// A digest of all replies that the task took. The code is deterministic, so this identifies the state of
    /// the task.
    pub(in crate::simulation) log: u64,
    /// The task has ended or was dropped. A call that it sent, and that was not given up, is still on its
    /// way.
    is_gone: bool,
    /// The task maintains the cache.
    pub(in crate::simulation) is_maintaining: bool,
    /// The task was started by the one that maintains the cache, to repair a key.
    pub(in crate::simulation) is_repairing: bool,
}

impl TaskState {
    fn is_idle(&self) -> bool {
        self.call.is_none() && self.timers.is_empty()
    }
}

#[derive(Clone, Debug)]
pub(in crate::simulation) struct Slot {
    pub(in crate::simulation) entry: Entry,
    until: Timestamp,
}

/// A shared handle to the world.
pub(in crate::simulation) type Shared = Arc<Mutex<World>>;

pub(in crate::simulation) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(in crate::simulation) struct World {
    pub(in crate::simulation) now: Timestamp,
    /// The time for which the cache keeps a lease or a fence beyond its TTL.
    pub(in crate::simulation) excess: Duration,
    /// The events of a run that is traced.
    pub(in crate::simulation) log: Option<Log>,
    /// The task whose call takes effect.
    pub(in crate::simulation) acting: TaskId,
    /// The task that is being polled.
    pub(in crate::simulation) polling: TaskId,
    pub(in crate::simulation) tasks: BTreeMap<TaskId, TaskState>,
    pub(in crate::simulation) spawned: Vec<Spawned>,
    pub(in crate::simulation) slots: [Option<Slot>; 2],
    /// The entries that were replaced, the last one at the end, if the cache can lose a change.
    before: [Vec<Option<Slot>>; 2],
    pub(in crate::simulation) keeps_changes: bool,
    pub(in crate::simulation) rows: [Option<Record>; 2],
    /// The notes of rotations.
    pub(super) notes: Vec<Rotation>,
    pub(in crate::simulation) late: Vec<Late>,
    /// Every state that a row has had, with its expiry.
    pub(in crate::simulation) history: [Vec<Option<(Seen, Timestamp)>>; 2],
    /// Every version that a row has had.
    versions: [Vec<(Seen, Version)>; 2],
    /// The last state that an operation has committed, as a position in the history.
    pub(in crate::simulation) commits: BTreeMap<(usize, usize), usize>,
    /// A promise that was broken where no answer shows it.
    pub(in crate::simulation) wrong: Option<&'static str>,
    /// The number of reads of the database.
    pub(in crate::simulation) reads: u32,
    /// There was a fault.
    pub(in crate::simulation) is_troubled: bool,
    /// No write of the run can fail because of what it expects. After such a failure, a write queue would
    /// know less than it has written.
    pub(in crate::simulation) remembers: bool,
    /// Every touch of the run is one that must be due.
    pub(in crate::simulation) throttles: bool,
    /// The processes that have touched A.
    touched_by: BTreeSet<usize>,
    /// The token of the rival process's fence, if it holds one.
    pub(in crate::simulation) rival: Option<Token>,
    /// The process of each operation.
    homes: BTreeMap<usize, usize>,
    /// Every channel that was opened, by its number.
    channels: Vec<Channel>,
    /// The clock of the near caches' memories, in nanoseconds.
    pub(in crate::simulation) nanos: Arc<AtomicU64>,
}

pub(in crate::simulation) struct Spawned(
    pub(in crate::simulation) TaskId,
    pub(in crate::simulation) BoxFuture<()>,
);

impl std::fmt::Debug for Spawned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl World {
    pub(in crate::simulation) fn new(excess: Duration) -> Self {
        Self {
            now: START,
            excess,
            log: None,
            acting: TaskId(0),
            polling: TaskId(0),
            tasks: BTreeMap::new(),
            spawned: Vec::new(),
            slots: [None, None],
            before: [Vec::new(), Vec::new()],
            keeps_changes: false,
            rows: [None, None],
            notes: Vec::new(),
            late: Vec::new(),
            history: [Vec::new(), Vec::new()],
            versions: [Vec::new(), Vec::new()],
            commits: BTreeMap::new(),
            wrong: None,
            reads: 0,
            is_troubled: false,
            remembers: false,
            throttles: false,
            touched_by: BTreeSet::new(),
            rival: None,
            homes: BTreeMap::new(),
            channels: Vec::new(),
            nanos: Arc::new(AtomicU64::new(nanos(START))),
        }
    }

    pub(in crate::simulation) fn task(&mut self, id: TaskId) -> &mut TaskState {
        self.tasks.get_mut(&id).expect("a task that is there")
    }

    /// Notes that a task has ended, or was dropped.
    pub(in crate::simulation) fn end(&mut self, id: TaskId) {
        self.task(id).is_gone = true;
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|state| state.is_gone && state.is_idle()) {
            self.tasks.remove(&id);
        }
    }

    /// Notes an event, if the run is traced.
    pub(in crate::simulation) fn note(&mut self, event: impl FnOnce() -> Event) {
        if let Some(log) = &mut self.log {
            log.events.push(event());
        }
    }

    /// Notes the process of a task, if the run is traced.
    fn note_place(&mut self, id: TaskId, process: usize) {
        if let Some(log) = &mut self.log {
            log.places.insert(id, process);
        }
    }

    pub(in crate::simulation) fn begin(&mut self, id: TaskId, process: usize) {
        self.note_place(id, process);
        self.homes.insert(id.operation(), process);
        self.tasks.insert(id, TaskState { process, ..TaskState::default() });
    }

    /// Draws a number that depends only on the task and on how often it drew before. So it is the same in
    /// every interleaving that looks the same to the task.
    pub(in crate::simulation) fn draw(&mut self) -> u64 {
        let id = self.polling;
        let task = self.task(id);
        task.draws += 1;
        id.0 << 16 | u64::from(task.draws)
    }

    pub(in crate::simulation) fn spawn(&mut self, future: BoxFuture<()>) {
        let parent = self.polling;
        let state = self.task(parent);
        state.children += 1;
        let id = parent.child(state.depth, state.children);
        let (process, depth, is_repairing) = (state.process, state.depth + 1, state.is_maintaining);
        self.note_place(id, process);
        self.tasks.insert(id, TaskState { process, depth, is_repairing, ..TaskState::default() });
        self.spawned.push(Spawned(id, future));
    }

    pub(in crate::simulation) fn send(&mut self, effect: Effect, waker: &Waker) -> TaskId {
        let (id, now) = (self.polling, self.now);
        if let Effect::Exchange(_, _, Some(Entry { state: State::Fence(fence), .. }), _) = &effect
            && fence.holders.iter().any(|holder| holder.deadline + CLOCK_SLACK + AHEAD < now)
        {
            self.wrong = Some("a writer keeps a holder that is past its deadline on every clock");
        }
        let task = self.task(id);
        assert!(task.call.is_none(), "a task makes one call at a time");
        task.calls += 1;
        let (number, waker) = (task.calls, waker.clone());
        // All that can happen between the sending of a ping and its arrival can happen before the sending, too.
        let is_ping = matches!(effect, Effect::Ping(_));
        task.call = Some(Call { effect, sent_at: now, number, reply: None, has_arrived: false, waker });
        if is_ping {
            self.apply(id);
        }
        id
    }

    /// Takes the answer to the call of `sender`, if it has arrived. If not, `waker` is woken when it does.
    pub(in crate::simulation) fn take_reply(&mut self, sender: TaskId, waker: &Waker) -> Option<Reply> {
        let (polling, now) = (self.polling, self.now);
        let state = self.task(sender);
        let call = state.call.as_mut().expect("a call that is not answered");
        if !call.has_arrived {
            call.waker.clone_from(waker);
            return None;
        }
        let call = state.call.take()?;
        // The sender's knowledge went into the call, so the task that continues with the answer has it as
        // well.
        let before = if sender == polling { 0 } else { state.log };
        self.forget_if_over(sender);
        let reply = call.reply?;
        let task = self.task(polling);
        task.log = digest::of((task.log, before, digest::effect(&call.effect), digest::reply(&reply), now));
        Some(reply)
    }

    /// Notes that no task waits for the call of `task` any more.
    pub(in crate::simulation) fn abandon(&mut self, task: TaskId) {
        if let Some(call) = self.tasks.get_mut(&task).and_then(|state| state.call.take())
            && call.reply.is_none()
            && call.effect.is_write()
        {
            let Call { effect, sent_at, number, .. } = call;
            self.late.push(Late { task, effect, sent_at, number });
        }
        self.forget_if_over(task);
    }

    /// Gives up the call of `task` for the task that waits for it. The call may take effect later.
    pub(in crate::simulation) fn delay(&mut self, task: TaskId) {
        let call = self.task(task).call.as_ref().expect("a call to delay");
        let late = Late { task, effect: call.effect.clone(), sent_at: call.sent_at, number: call.number };
        self.late.push(late);
    }

    /// Returns the tasks with a call to which something may still happen.
    pub(in crate::simulation) fn open_calls(&self) -> Vec<TaskId> {
        let is_open = |task: &TaskState| task.call.as_ref().is_some_and(Call::is_open);
        self.tasks.iter().filter(|(_, task)| is_open(task)).map(|(id, _)| *id).collect()
    }

    /// Returns the first task with an open call for which `is_meant` is true.
    pub(in crate::simulation) fn call_of(&self, is_meant: impl Fn(TaskId) -> bool) -> Option<TaskId> {
        self.open_calls().into_iter().find(|id| is_meant(*id))
    }

    /// Returns `true` if a writer tries to replace the entry of A.
    pub(in crate::simulation) fn has_exchange_under_way(&self) -> bool {
        self.tasks.values().any(|task| {
            task.call
                .as_ref()
                .is_some_and(|call| call.reply.is_none() && matches!(call.effect, Effect::Exchange(0, ..)))
        })
    }

    /// Returns the tasks of a process, including those that have ended and still have calls on their way.
    pub(in crate::simulation) fn tasks_of(&self, process: usize) -> Vec<TaskId> {
        self.tasks.iter().filter(|(_, task)| task.process == process).map(|(id, _)| *id).collect()
    }

    /// Makes the answer to the call of a task available, and returns the waker to wake.
    pub(in crate::simulation) fn deliver(&mut self, task: TaskId) -> Option<Waker> {
        self.take_item(task);
        let call = self.tasks.get_mut(&task)?.call.as_mut().filter(|call| call.reply.is_some())?;
        call.has_arrived = true;
        Some(call.waker.clone())
    }

    pub(in crate::simulation) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        self.nanos.store(nanos(now), Ordering::SeqCst);
        self.note(|| Event::Time(now));
        for key in 0..KEYS.len() {
            if self.slots[key].is_some() && self.entry(key).is_none() {
                self.note(|| Event::Ended { key });
                self.lose(key);
            }
        }
        self.late.retain(|late| {
            !late.effect.is_statement() || late.sent_at + (WRITE_TIMEOUT + STATEMENT_BOUND) >= now
        });
    }

    /// Adds the digests of everything that decides what can still happen, except the order of events, which is in the
    /// oracle's.
    pub(in crate::simulation) fn add_places(&self, places: &mut Places) {
        places.add(places::CLOCK, self.now);
        for key in 0..KEYS.len() {
            let of = |slot: &Slot| (digest::entry(&slot.entry), slot.until);
            places.add(places::slot(key), self.slots[key].as_ref().map(of));
            self.before[key].iter().for_each(|slot| places.add(places::slot(key), slot.as_ref().map(of)));
            places.add(places::row(key), self.rows[key].as_ref().map(digest::record));
        }
        let late = self
            .late
            .iter()
            .map(|late| (digest::effect(&late.effect), late.effect.is_statement().then_some(late.sent_at)));
        let mut late: Vec<_> = late.collect();
        late.sort_unstable();
        let mut notes: Vec<_> = self.notes.iter().map(digest::rotation).collect();
        notes.sort_unstable();
        places.add(places::NOTES, notes);
        places.add(places::LATE, late);
        places.add(places::RIVAL, self.rival);
        places.add(places::TOUCHED, &self.touched_by);
        self.add_channels(places);
        for (id, task) in &self.tasks {
            let mut hasher = digest::Mixer::default();
            (id, task.log, task.children, task.is_gone).hash(&mut hasher);
            for timer in &task.timers {
                // The due time matters only for a timer that fires by time.
                let due = matches!(timer.purpose, Purpose::Wait | Purpose::Final).then_some(timer.due);
                (timer.purpose, due).hash(&mut hasher);
            }
            let call = task.call.as_ref().map(|call| {
                let counts_from = call.effect.is_statement() || matches!(call.effect, Effect::Ping(_));
                let sent_at = counts_from.then_some(call.sent_at);
                let reply = call.reply.as_ref().map(digest::reply);
                (digest::effect(&call.effect), sent_at, reply, call.has_arrived)
            });
            call.hash(&mut hasher);
            places.add(places::of_task(*id), hasher.finish());
        }
    }
}

/// Returns an instant as the clock of a memory shows it.
fn nanos(now: Timestamp) -> u64 {
    u64::try_from(now.as_micros()).expect("a run is after 1970") * 1_000
}
