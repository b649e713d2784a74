//! The simulated outside world: one cache, one database, one clock, and the calls on their way to them.
//!
//! A call has its effect when the scheduler says so, not when it is made.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use session_core::{
    Acquired, BoxFuture, Entry, Exchange, Expected, ExpiryWrite, Holder, Record, SessionTimes, Stamp, State,
    StoredKey, Timestamp, Token, Version, protocol,
};

use super::digest;

/// When every run begins.
pub(super) const START: Timestamp = Timestamp::from_secs(1_000_000);

/// The sessions of a run have one of these keys. They are session keys and stored keys alike.
pub(super) const KEYS: [&str; 2] = ["session-a", "session-b"];

/// Longer than any run.
pub(super) const FAR: Duration = Duration::from_secs(1_000_000);

/// The subject of all sessions of a run.
pub(super) const SUBJECT: &str = "somebody";

/// Times that are short enough for a run to pass them, and that keep the distances which the protocol relies on.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(10);
pub(super) const FENCE_TTL: Duration = Duration::from_secs(30);
pub(super) const CLOCK_SLACK: Duration = Duration::from_secs(2);
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const STATEMENT_BOUND: Duration = Duration::from_secs(10);
pub(super) const MAX_CACHE_AGE: Duration = Duration::from_secs(300);
pub(super) const CACHE_TIMEOUT: Duration = Duration::from_millis(100);
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Such that none of the pauses between two looks at the cache is as long as another timer.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(1_200);

/// How long a load waits for one more attempt.
const LONGEST_LOAD: Duration = Duration::from_millis(5_200);
/// The longest pause before an exchange is tried again.
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// How far the second process's clock is ahead: less than the clock slack.
pub(super) const AHEAD: Duration = Duration::from_secs(1);

/// How much longer than its TTL the cache keeps a value: its clock is not to be trusted.
pub(super) const VALUE_LAZINESS: Duration = Duration::from_secs(60);

/// Who does something. The upper half is the operation that it was begun for, counted from 1; every further five bits are
/// the number of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TaskId(pub(super) u64);

impl TaskId {
    pub(super) fn of_operation(operation: usize) -> Self {
        Self((operation as u64 + 1) << 32)
    }

    fn child(self, depth: u32, number: u32) -> Self {
        assert!(depth < 6 && number < 32, "tasks start too many tasks for this numbering");
        Self(self.0 | u64::from(number) << (25 - 5 * depth))
    }

    /// The operation on whose behalf this task was started.
    pub(super) fn operation(self) -> usize {
        usize::try_from(self.0 >> 32).expect("few operations") - 1
    }

    /// The task that has drawn this stamp or token.
    pub(super) fn that_drew(number: u64) -> Self {
        Self(number >> 16)
    }

    /// The task whose statement has committed this version.
    fn that_committed(version: Version) -> Self {
        Self(version.as_u64() >> 16)
    }
}

/// The operation that the exchanges of a rival process are counted to.
const RIVAL: usize = 97;

/// A session, as the oracle sees it. No operation leaves the fields as another one did, so they tell the versions of a
/// session apart; the first one has zeros. That every record has the version with which its fields were committed is
/// checked where records enter the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Seen(pub(super) [u8; 2]);

impl Seen {
    pub(super) const FIRST: Self = Self([0; 2]);

    pub(super) fn of(record: &Record) -> Self {
        let payload = record.payload();
        // `1{"a":0,"b":0}`
        Self([payload[6] - b'0', payload[12] - b'0'])
    }

    /// Whether one operation has written all of it, and did not merge.
    fn is_of_one(self) -> bool {
        self.0[0] == self.0[1]
    }
}

/// A call to the cache or to the database.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Get(usize),
    Acquire(usize, Entry, Duration),
    Exchange(usize, Expected, Option<Entry>, Duration),
    Load(usize, Timestamp),
    List(Timestamp),
    Insert(usize, Record),
    Update(usize, Record, Option<Version>, ExpiryWrite, Timestamp),
    /// The expiry, since when the session must have been idle, and the present.
    Touch(usize, Timestamp, Timestamp, Timestamp),
    Rename([usize; 2], Record, Option<Version>, ExpiryWrite, Timestamp),
    Delete(usize),
    DeleteExpired(Timestamp),
}

impl Effect {
    /// The key of a statement.
    pub(super) fn statement_key(&self) -> Option<usize> {
        match self {
            Self::Insert(key, _) | Self::Update(key, ..) | Self::Touch(key, ..) | Self::Delete(key) => {
                Some(*key)
            }
            Self::Rename([old, _], ..) => Some(*old),
            _ => None,
        }
    }

    pub(super) fn is_cache(&self) -> bool {
        matches!(self, Self::Get(_) | Self::Acquire(..) | Self::Exchange(..))
    }

    pub(super) fn is_write(&self) -> bool {
        !matches!(self, Self::Get(_) | Self::Load(..) | Self::List(_))
    }

    pub(super) fn is_statement(&self) -> bool {
        self.is_write() && !self.is_cache()
    }
}

/// What comes back.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Found(Option<Entry>),
    Acquired(Acquired),
    Exchanged(Exchange),
    Loaded(Option<Record>),
    Listed(Vec<(StoredKey, SessionTimes)>),
    Committed(Version),
    Touched(bool),
    Deleted(bool),
    DeletedExpired(u64),
    NotFound,
    Conflict,
    AlreadyExists,
    /// It had no effect, and will have none.
    Refused,
    /// It may have had its effect, or may have it later.
    Unknown,
}

/// A call that was made, and whose answer nobody has yet.
///
/// It belongs to the task that sent it. That task may end or be dropped while the call lives on: several loads can hold the
/// attempt that it is part of. Whoever polled it last is woken by the answer.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) effect: Effect,
    pub(super) sent_at: Timestamp,
    /// Which of its task's calls it is.
    number: u32,
    pub(super) reply: Option<Reply>,
    /// The answer can be had.
    pub(super) has_arrived: bool,
    waker: Waker,
}

impl Call {
    /// Whether anything is left to happen to it.
    pub(super) fn is_open(&self) -> bool {
        !self.has_arrived
    }
}

/// A call that nobody waits for any more. It may still have its effect.
#[derive(Clone, Debug)]
pub(super) struct Late {
    pub(super) task: TaskId,
    pub(super) effect: Effect,
    pub(super) sent_at: Timestamp,
    number: u32,
}

/// What a timer is for, as its duration tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    /// The pause of the task that looks after the cache. It may end at any moment.
    Tend,
    /// The longest that a load waits for one more attempt. Ends only when so much time has passed.
    Load,
    /// The deadline of a call. That it passes is a fault, and looks like any other lost answer.
    Call,
}

#[derive(Debug)]
pub(super) struct Timer {
    number: u32,
    pub(super) purpose: Purpose,
    pub(super) due: Timestamp,
    has_fired: bool,
    waker: Waker,
}

/// What the world knows of a task.
#[derive(Debug, Default)]
pub(super) struct TaskState {
    pub(super) process: usize,
    depth: u32,
    children: u32,
    draws: u32,
    calls: u32,
    pub(super) call: Option<Call>,
    next_timer: u32,
    pub(super) timers: Vec<Timer>,
    /// A digest of all replies that it took: as the code is deterministic, this says in which state the task is.
    pub(super) log: u64,
    /// It has ended or was dropped. What it sent and nobody has given up is still on its way.
    is_gone: bool,
    /// It looks after the cache.
    pub(super) is_tending: bool,
    /// It was started by the task that looks after the cache, to repair a key.
    pub(super) is_repairing: bool,
}

impl TaskState {
    fn is_idle(&self) -> bool {
        self.call.is_none() && self.timers.is_empty()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) entry: Entry,
    until: Timestamp,
}

/// The shared handle.
pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Timestamp,
    /// How much longer than its TTL the cache keeps a lease or a fence.
    pub(super) laziness: Duration,
    /// The task that is being polled.
    pub(super) polling: TaskId,
    pub(super) tasks: BTreeMap<TaskId, TaskState>,
    pub(super) spawned: Vec<Spawned>,
    pub(super) slots: [Option<Slot>; 2],
    pub(super) rows: [Option<Record>; 2],
    pub(super) late: Vec<Late>,
    /// Every state that a row has had, with its expiry.
    pub(super) history: [Vec<Option<(Seen, Timestamp)>>; 2],
    /// Every version that a row has had.
    versions: [Vec<(Seen, Version)>; 2],
    /// The last state that an operation has committed, as a position in the history.
    pub(super) commits: BTreeMap<(usize, usize), usize>,
    /// A promise that was broken where no answer shows it.
    pub(super) wrong: Option<&'static str>,
    /// How often the database was read.
    pub(super) reads: u32,
    /// There was a fault.
    pub(super) is_troubled: bool,
    /// No write of the run can fail because of what it expects, after which a write queue knows less than it has written.
    pub(super) remembers: bool,
    /// In whose name a rival process holds a fence, if it does.
    pub(super) rival: Option<Token>,
}

pub(super) struct Spawned(pub(super) TaskId, pub(super) BoxFuture<()>);

impl std::fmt::Debug for Spawned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl World {
    pub(super) fn new(laziness: Duration) -> Self {
        Self {
            now: START,
            laziness,
            polling: TaskId(0),
            tasks: BTreeMap::new(),
            spawned: Vec::new(),
            slots: [None, None],
            rows: [None, None],
            late: Vec::new(),
            history: [Vec::new(), Vec::new()],
            versions: [Vec::new(), Vec::new()],
            commits: BTreeMap::new(),
            wrong: None,
            reads: 0,
            is_troubled: false,
            remembers: false,
            rival: None,
        }
    }

    pub(super) fn task(&mut self, id: TaskId) -> &mut TaskState {
        self.tasks.get_mut(&id).expect("a task that is there")
    }

    /// A task has ended, or was dropped.
    pub(super) fn end(&mut self, id: TaskId) {
        self.task(id).is_gone = true;
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|state| state.is_gone && state.is_idle()) {
            self.tasks.remove(&id);
        }
    }

    pub(super) fn begin(&mut self, id: TaskId, process: usize) {
        self.tasks.insert(id, TaskState { process, ..TaskState::default() });
    }

    /// A number that depends only on who draws it, and how often that one drew before: the same in every
    /// interleaving that looks the same to the task.
    pub(super) fn draw(&mut self) -> u64 {
        let id = self.polling;
        let task = self.task(id);
        task.draws += 1;
        id.0 << 16 | u64::from(task.draws)
    }

    pub(super) fn spawn(&mut self, future: BoxFuture<()>) {
        let parent = self.polling;
        let state = self.task(parent);
        state.children += 1;
        let id = parent.child(state.depth, state.children);
        let (process, depth, is_repairing) = (state.process, state.depth + 1, state.is_tending);
        self.tasks.insert(id, TaskState { process, depth, is_repairing, ..TaskState::default() });
        self.spawned.push(Spawned(id, future));
    }

    pub(super) fn send(&mut self, effect: Effect, waker: &Waker) -> TaskId {
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
        task.call = Some(Call { effect, sent_at: now, number, reply: None, has_arrived: false, waker });
        id
    }

    /// Takes the answer to the call of `sender`, if it has arrived. If not, `waker` is woken when it does.
    pub(super) fn take_reply(&mut self, sender: TaskId, waker: &Waker) -> Option<Reply> {
        let (polling, now) = (self.polling, self.now);
        let state = self.task(sender);
        let call = state.call.as_mut().expect("a call that is not answered");
        if !call.has_arrived {
            call.waker.clone_from(waker);
            return None;
        }
        let call = state.call.take()?;
        // What the sender has learned before belongs to what was sent, and is known to whoever goes on with it.
        let before = if sender == polling { 0 } else { state.log };
        self.forget_if_over(sender);
        let reply = call.reply?;
        let task = self.task(polling);
        task.log = digest::of((task.log, before, digest::effect(&call.effect), digest::reply(&reply), now));
        Some(reply)
    }

    /// Nobody waits for the call of `task` any more.
    pub(super) fn abandon(&mut self, task: TaskId) {
        if let Some(call) = self.tasks.get_mut(&task).and_then(|state| state.call.take())
            && call.reply.is_none()
            && call.effect.is_write()
        {
            let Call { effect, sent_at, number, .. } = call;
            self.late.push(Late { task, effect, sent_at, number });
        }
        self.forget_if_over(task);
    }

    /// Gives up the call of `task` in the name of whoever waits for it. It may have its effect later.
    pub(super) fn delay(&mut self, task: TaskId) {
        let call = self.task(task).call.as_ref().expect("a call to delay");
        let late = Late { task, effect: call.effect.clone(), sent_at: call.sent_at, number: call.number };
        self.late.push(late);
    }

    /// The tasks whose calls something may still happen to.
    pub(super) fn open_calls(&self) -> Vec<TaskId> {
        let is_open = |task: &TaskState| task.call.as_ref().is_some_and(Call::is_open);
        self.tasks.iter().filter(|(_, task)| is_open(task)).map(|(id, _)| *id).collect()
    }

    /// The first task with a call of those that `are_meant`.
    pub(super) fn call_of(&self, are_meant: impl Fn(TaskId) -> bool) -> Option<TaskId> {
        self.open_calls().into_iter().find(|id| are_meant(*id))
    }

    /// Whether a writer tries to replace what is under A.
    pub(super) fn has_exchange_under_way(&self) -> bool {
        self.tasks.values().any(|task| {
            task.call
                .as_ref()
                .is_some_and(|call| call.reply.is_none() && matches!(call.effect, Effect::Exchange(0, ..)))
        })
    }

    /// The tasks of a process, and those that ended and have calls on their way.
    pub(super) fn tasks_of(&self, process: usize) -> Vec<TaskId> {
        self.tasks.iter().filter(|(_, task)| task.process == process).map(|(id, _)| *id).collect()
    }

    pub(super) fn set_timer(&mut self, duration: Duration, waker: &Waker) -> Option<(TaskId, u32)> {
        let purpose = match duration {
            // To pause before an exchange makes no difference to anything but the time, and little to that.
            pause if pause <= LONGEST_PAUSE => return None,
            CACHE_TIMEOUT => Purpose::Call,
            pause if pause <= PROBE_INTERVAL => Purpose::Tend,
            LONGEST_LOAD => Purpose::Load,
            _ => Purpose::Call,
        };
        let (id, due) = (self.polling, self.now + duration);
        let task = self.task(id);
        if purpose == Purpose::Tend {
            // It goes round in a loop, and is at its beginning.
            task.is_tending = true;
            task.log = 0;
        }
        task.next_timer += 1;
        let number = task.next_timer;
        task.timers.push(Timer { number, purpose, due, has_fired: false, waker: waker.clone() });
        Some((id, number))
    }

    /// Whether a timer has fired. If not, `waker` is woken when it does.
    pub(super) fn has_fired(&mut self, task: TaskId, number: u32, waker: &Waker) -> bool {
        let timer = self.task(task).timers.iter_mut().find(|timer| timer.number == number);
        let timer = timer.expect("a timer that was not cleared");
        timer.waker.clone_from(waker);
        timer.has_fired
    }

    /// Lets the first timer of a task fire, and returns whom that wakes.
    pub(super) fn fire(&mut self, task: TaskId) -> Waker {
        let first = self.task(task).timers.iter_mut().min_by_key(|timer| timer.due);
        let first = first.expect("a timer that fires");
        first.has_fired = true;
        first.waker.clone()
    }

    /// Lets the answer to the call of a task be had, and returns whom that wakes.
    pub(super) fn deliver(&mut self, task: TaskId) -> Option<Waker> {
        let call = self.tasks.get_mut(&task)?.call.as_mut().filter(|call| call.reply.is_some())?;
        call.has_arrived = true;
        Some(call.waker.clone())
    }

    pub(super) fn clear_timer(&mut self, task: TaskId, timer: u32) {
        if let Some(state) = self.tasks.get_mut(&task) {
            state.timers.retain(|other| other.number != timer);
        }
        self.forget_if_over(task);
    }

    /// What is under `key`, as far as the cache still keeps it.
    pub(super) fn entry(&self, key: usize) -> Option<&Entry> {
        let slot = self.slots[key].as_ref()?;
        let late = if matches!(slot.entry.state, State::Value(_)) { VALUE_LAZINESS } else { self.laziness };
        (self.now < slot.until + late).then_some(&slot.entry)
    }

    pub(super) fn row(&self, key: usize) -> Option<&Record> {
        self.rows[key].as_ref()
    }

    /// Puts something into the cache as it is at the beginning of a run.
    pub(super) fn place(&mut self, key: usize, entry: Option<Entry>, ttl: Duration) {
        self.slots[key] = entry.filter(|_| !ttl.is_zero()).map(|entry| Slot { entry, until: self.now + ttl });
    }

    /// A rival process, which writes nothing, fences A, or settles its fence if it has one there. Either replaces the stamp.
    pub(super) fn rival(&mut self) {
        self.polling = TaskId::of_operation(RIVAL);
        let now = self.now;
        match self.rival.take() {
            None => {
                let token = Token(self.draw_number());
                self.rival = Some(token);
                let holder = Holder { token, deadline: now + FENCE_TTL };
                let fence = protocol::fence(self.entry(0), holder, now, CLOCK_SLACK);
                let ttl = fence.ttl(now);
                let stamp = Stamp(self.draw_number());
                self.place(0, Some(Entry::fence(stamp, fence)), ttl);
            }
            Some(token) => match protocol::settle(self.entry(0), token, None, now, CLOCK_SLACK) {
                protocol::Settlement::Keep => {}
                protocol::Settlement::Fence(fence) => {
                    let ttl = fence.ttl(now);
                    let stamp = Stamp(self.draw_number());
                    self.place(0, Some(Entry::fence(stamp, fence)), ttl);
                }
                protocol::Settlement::Remove | protocol::Settlement::Publish => {
                    self.place(0, None, Duration::ZERO);
                }
            },
        }
    }

    fn draw_number(&mut self) -> std::num::NonZeroU64 {
        std::num::NonZeroU64::new(self.draw()).expect("tasks are counted from one")
    }

    /// Begins the rival process.
    pub(super) fn begin_rival(&mut self, process: usize) {
        self.begin(TaskId::of_operation(RIVAL), process);
    }

    /// Commits a row on behalf of `operation`.
    pub(super) fn commit(&mut self, key: usize, row: Option<Record>, operation: Option<usize>) {
        self.history[key].push(row.as_ref().map(|row| (Seen::of(row), row.expires_at())));
        if let Some(row) = &row {
            self.versions[key].push((Seen::of(row), row.version()));
        }
        self.rows[key] = row;
        if let Some(operation) = operation {
            self.commits.insert((operation, key), self.history[key].len() - 1);
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        for key in 0..KEYS.len() {
            if self.entry(key).is_none() {
                self.slots[key] = None;
            }
        }
        self.late.retain(|late| {
            !late.effect.is_statement() || late.sent_at + (WRITE_TIMEOUT + STATEMENT_BOUND) >= now
        });
    }

    /// Lets the call of a task have its effect.
    pub(super) fn apply(&mut self, id: TaskId) {
        let Some(call) = self.task(id).call.as_ref().filter(|call| call.reply.is_none()) else { return };
        let (effect, number) = (call.effect.clone(), call.number);
        let reply = self.take_effect(id, effect, number);
        self.task(id).call.as_mut().expect("it is still there").reply = Some(reply);
    }

    /// Lets a call that nobody waits for have its effect.
    pub(super) fn land(&mut self, position: usize) {
        let Late { task, effect, number, .. } = self.late.remove(position);
        let _ = self.take_effect(task, effect, number);
    }

    fn take_effect(&mut self, task: TaskId, effect: Effect, number: u32) -> Reply {
        let operation = Some(task.operation());
        let version = Version::from_u64(task.0 << 16 | u64::from(number));
        match effect {
            Effect::Get(key) => Reply::Found(self.entry(key).cloned()),
            Effect::Acquire(key, lease, ttl) => Reply::Acquired(match self.entry(key).cloned() {
                Some(found) => Acquired::Found(found),
                None => {
                    self.place(key, Some(lease), ttl);
                    Acquired::Placed
                }
            }),
            Effect::Exchange(key, expected, new, ttl) => {
                let is_as_expected = match (self.entry(key), expected) {
                    (None, Expected::Vacant) => true,
                    (Some(found), Expected::Stamp(stamp)) => found.stamp == stamp,
                    _ => false,
                };
                if is_as_expected {
                    self.check_cached(key, new.as_ref());
                    self.place(key, new, ttl);
                    Reply::Exchanged(Exchange::Stored)
                } else {
                    self.check_loss(task, key, new.as_ref());
                    Reply::Exchanged(Exchange::Lost(self.entry(key).cloned()))
                }
            }
            Effect::Load(key, now) => {
                self.reads += 1;
                if self.is_of(task, key) {
                    self.wrong = Some("a write queue reads what it has written itself");
                }
                Reply::Loaded(self.row(key).filter(|row| !row.is_expired(now)).cloned())
            }
            Effect::List(now) => {
                let rows = KEYS.iter().zip(&self.rows);
                let listed = rows.filter_map(|(key, row)| {
                    let row = row.as_ref().filter(|row| !row.is_expired(now) && row.subject().is_some())?;
                    Some((StoredKey::parse(key).expect("a valid key"), SessionTimes::from(row)))
                });
                Reply::Listed(listed.collect())
            }
            Effect::Insert(key, record) => {
                if self.rows[key].is_some() {
                    return Reply::AlreadyExists;
                }
                self.commit(key, Some(record.with_version(version)), operation);
                Reply::Committed(version)
            }
            Effect::Update(key, record, expected, expiry, now) => {
                let reply = self.replace(version, [key, key], &record, expected, expiry, now);
                let is_merge = !Seen::of(&record).is_of_one();
                if matches!(reply, Reply::Conflict) && is_merge && self.is_of(task, key) {
                    self.wrong = Some("a save conflicts with what its own write queue has written");
                }
                reply
            }
            Effect::Rename(keys, record, expected, expiry, now) => {
                self.replace(version, keys, &record, expected, expiry, now)
            }
            Effect::Touch(key, expires_at, idle_since, now) => match self.rows[key].clone() {
                Some(row) if !row.is_expired(now) && row.last_seen_at() > idle_since => Reply::Touched(false),
                Some(row) if !row.is_expired(now) => {
                    let later = row.expires_at().max(expires_at);
                    let last_seen_at = row.last_seen_at().max(now);
                    let row = row.with_expires_at(later).with_last_seen_at(last_seen_at);
                    self.commit(key, Some(row), operation);
                    Reply::Touched(true)
                }
                _ => Reply::NotFound,
            },
            Effect::Delete(key) => {
                let was_there = self.rows[key].is_some();
                self.commit(key, None, operation);
                Reply::Deleted(was_there)
            }
            Effect::DeleteExpired(before) => {
                let mut deleted = 0;
                for key in 0..KEYS.len() {
                    if self.rows[key].as_ref().is_some_and(|row| row.is_expired(before)) {
                        self.commit(key, None, operation);
                        deleted += 1;
                    }
                }
                Reply::DeletedExpired(deleted)
            }
        }
    }

    /// Whether `task`, a write queue's, was the last to write the session under `key`, and must know what it wrote.
    fn is_of(&self, task: TaskId, key: usize) -> bool {
        !self.is_troubled
            && self.remembers
            && self.row(key).is_some_and(|row| TaskId::that_committed(row.version()) == task)
    }

    /// What enters the cache is what the database has had, with the version that it had.
    fn check_cached(&mut self, key: usize, new: Option<&Entry>) {
        if let Some(Entry { state: State::Value(value), .. }) = new
            && !self.versions[key].contains(&(Seen::of(&value.record), value.record.version()))
        {
            self.wrong = Some("what the database has never had enters the cache");
        }
    }

    /// In a run without faults, no process loses the exchange for a fence to a writer of its own: they come one after the
    /// other.
    fn check_loss(&mut self, loser: TaskId, key: usize, new: Option<&Entry>) {
        let places_fence = matches!(new, Some(Entry { state: State::Fence(_), .. }));
        let Some(Entry { state: State::Fence(fence), .. }) = self.entry(key) else { return };
        let process_of = |task: TaskId| self.tasks.get(&task).map(|task| task.process);
        let mut winners = fence.holders.iter().map(|holder| TaskId::that_drew(holder.token.0.get()));
        if places_fence
            && !self.is_troubled
            && process_of(loser).is_some()
            && winners.any(|winner| winner != loser && process_of(winner) == process_of(loser))
        {
            self.wrong = Some("a process loses an exchange to itself");
        }
    }

    /// Drops calls that nobody waits for and that can have no effect any more: what they expect is not there, and
    /// nothing on its way puts it there. No stamp comes twice.
    pub(super) fn forget_the_futile(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let stamped = |effect: &Effect, wanted: Stamp| match effect {
            Effect::Acquire(_, entry, _) | Effect::Exchange(_, _, Some(entry), _) => entry.stamp == wanted,
            _ => false,
        };
        let (late, tasks, slots) = (&self.late, &self.tasks, &self.slots);
        let is_possible = |late_one: &Late| {
            let Effect::Exchange(key, Expected::Stamp(wanted), ..) = &late_one.effect else { return true };
            slots[*key].as_ref().is_some_and(|slot| slot.entry.stamp == *wanted)
                || late.iter().any(|other| stamped(&other.effect, *wanted))
                || tasks.values().any(|task| {
                    task.call
                        .as_ref()
                        .is_some_and(|call| call.reply.is_none() && stamped(&call.effect, *wanted))
                })
        };
        let possible: Vec<_> = late.iter().filter(|late| is_possible(late)).cloned().collect();
        self.late = possible;
    }

    fn replace(
        &mut self,
        version: Version,
        [old, new]: [usize; 2],
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> Reply {
        let row = match &self.rows[old] {
            Some(row) if !row.is_expired(now) => row.clone(),
            _ => return Reply::NotFound,
        };
        if expected.is_some_and(|expected| expected != row.version()) {
            return Reply::Conflict;
        }
        if old != new && self.rows[new].is_some() {
            return Reply::AlreadyExists;
        }
        let expires_at = match expiry {
            ExpiryWrite::Extend => row.expires_at().max(record.expires_at()),
            ExpiryWrite::Replace => record.expires_at(),
        };
        let written = Record::new(record.payload().clone(), row.created_at(), expires_at)
            .with_last_seen_at(record.last_seen_at())
            .with_subject(record.subject().cloned())
            .with_version(version);
        let operation = Some(TaskId::that_committed(version).operation());
        if old != new {
            self.commit(old, None, operation);
        }
        self.commit(new, Some(written), operation);
        Reply::Committed(version)
    }

    /// Everything that decides what can still happen, but for the order of events, which is the oracle's.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = digest::Mixer::default();
        self.now.hash(&mut hasher);
        for key in 0..KEYS.len() {
            let slot = self.slots[key].as_ref().map(|slot| (digest::entry(&slot.entry), slot.until));
            slot.hash(&mut hasher);
            self.rows[key].as_ref().map(digest::record).hash(&mut hasher);
        }
        let late = self
            .late
            .iter()
            .map(|late| (digest::effect(&late.effect), late.effect.is_statement().then_some(late.sent_at)));
        let mut late: Vec<_> = late.collect();
        late.sort_unstable();
        late.hash(&mut hasher);
        self.rival.hash(&mut hasher);
        for (id, task) in &self.tasks {
            (id, task.log, task.children, task.is_gone).hash(&mut hasher);
            for timer in &task.timers {
                // When it is due matters only where it may fire.
                let due = (timer.purpose == Purpose::Load).then_some(timer.due);
                (timer.purpose, due).hash(&mut hasher);
            }
            let call = task.call.as_ref().map(|call| {
                let sent_at = call.effect.is_statement().then_some(call.sent_at);
                let reply = call.reply.as_ref().map(digest::reply);
                (digest::effect(&call.effect), sent_at, reply, call.has_arrived)
            });
            call.hash(&mut hasher);
        }
        hasher.finish()
    }
}
