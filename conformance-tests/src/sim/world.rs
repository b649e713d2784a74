//! The simulated outside world: one cache, one database, one clock, and the calls on their way to them.
//!
//! A call has its effect when the scheduler says so, not when it is made.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::{
    Acquired, BoxFuture, Entry, Exchange, Expected, ExpiryWrite, Record, Stamp, State, StoredKey, Timestamp,
    Version,
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

/// How far the second process's clock is ahead: less than the clock slack.
pub(super) const AHEAD: Duration = Duration::from_secs(1);

/// How much longer than its TTL the cache keeps a value: its clock is not to be trusted.
pub(super) const VALUE_LAZINESS: Duration = Duration::from_secs(60);

/// Who does something. The upper half is the operation that it was begun for, counted from 1; every further nibble is
/// the number of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TaskId(pub(super) u32);

impl TaskId {
    pub(super) fn of_operation(operation: usize) -> Self {
        Self((u32::try_from(operation).expect("few operations") + 1) << 16)
    }

    fn child(self, depth: u32, number: u32) -> Self {
        assert!(depth < 4 && number < 16, "tasks start too many tasks for this numbering");
        Self(self.0 | number << (12 - 4 * depth))
    }

    /// The operation on whose behalf this task was started.
    pub(super) fn operation(self) -> usize {
        (self.0 >> 16) as usize - 1
    }
}

/// A session, as the oracle sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Seen {
    pub(super) fields: [u8; 2],
    /// Who committed this version: 0 for the one that the run began with, otherwise an operation, counted from 1.
    pub(super) writer: u8,
}

impl Seen {
    pub(super) fn of(record: &Record) -> Self {
        let payload = record.payload();
        let writer = u8::try_from(record.version().as_u64() >> 32).expect("few operations");
        // `1{"a":0,"b":0}`
        Self { fields: [payload[6] - b'0', payload[12] - b'0'], writer }
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
    Touch(usize, Timestamp, Timestamp),
    Rename([usize; 2], Record, Option<Version>, ExpiryWrite, Timestamp),
    Delete(usize),
    DeleteExpired(Timestamp),
}

impl Effect {
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
    Listed(Vec<(StoredKey, Record)>),
    Committed(Version),
    Done,
    Deleted(bool),
    DeletedExpired(u64),
    NotFound,
    Conflict,
    AlreadyExists,
    /// It had no effect, and will have none.
    Refused,
    /// It may have had its effect, or may have it later.
    Ambiguous,
}

/// A call that was made and not answered yet.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) effect: Effect,
    pub(super) sent_at: Timestamp,
    pub(super) reply: Option<Reply>,
}

/// A call that nobody waits for any more. It may still have its effect.
#[derive(Clone, Debug)]
pub(super) struct Late {
    pub(super) task: TaskId,
    pub(super) effect: Effect,
    pub(super) sent_at: Timestamp,
}

/// What the world knows of a task.
#[derive(Debug, Default)]
pub(super) struct TaskState {
    pub(super) process: usize,
    depth: u32,
    children: u32,
    draws: u32,
    statements: u32,
    pub(super) call: Option<Call>,
    next_timer: u32,
    /// Number, when it is due, whether it has fired.
    pub(super) timers: Vec<(u32, Timestamp, bool)>,
    /// A digest of all replies so far: as the code is deterministic, this says in which state the task is.
    pub(super) log: u64,
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
    /// The last state that an operation has committed, as a position in the history.
    pub(super) commits: BTreeMap<(usize, usize), usize>,
    /// A promise that was broken where no answer shows it.
    pub(super) wrong: Option<&'static str>,
    /// How often the database was read.
    pub(super) reads: u32,
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
            commits: BTreeMap::new(),
            wrong: None,
            reads: 0,
        }
    }

    pub(super) fn task(&mut self, id: TaskId) -> &mut TaskState {
        self.tasks.entry(id).or_default()
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
        u64::from(id.0) << 16 | u64::from(task.draws)
    }

    pub(super) fn spawn(&mut self, future: BoxFuture<()>) {
        let parent = self.polling;
        let state = self.task(parent);
        state.children += 1;
        let id = parent.child(state.depth, state.children);
        let state = TaskState { process: state.process, depth: state.depth + 1, ..TaskState::default() };
        self.tasks.insert(id, state);
        self.spawned.push(Spawned(id, future));
    }

    pub(super) fn send(&mut self, effect: Effect) -> TaskId {
        let (id, now) = (self.polling, self.now);
        if let Effect::Exchange(_, _, Some(Entry { state: State::Fence(fence), .. }), _) = &effect
            && fence.holders.iter().any(|holder| holder.deadline + CLOCK_SLACK + AHEAD < now)
        {
            self.wrong = Some("a writer keeps a holder that is past its deadline on every clock");
        }
        let task = self.task(id);
        assert!(task.call.is_none(), "a task makes one call at a time");
        task.call = Some(Call { effect, sent_at: now, reply: None });
        id
    }

    /// Nobody waits for the call of `task` any more.
    pub(super) fn abandon(&mut self, task: TaskId) {
        let Some(call) = self.tasks.get_mut(&task).and_then(|state| state.call.take()) else { return };
        if call.reply.is_none() && call.effect.is_write() {
            self.late.push(Late { task, effect: call.effect, sent_at: call.sent_at });
        }
    }

    pub(super) fn set_timer(&mut self, duration: Duration) -> (TaskId, u32) {
        let (id, due) = (self.polling, self.now + duration);
        let task = self.task(id);
        task.next_timer += 1;
        let timer = task.next_timer;
        task.timers.push((timer, due, false));
        (id, timer)
    }

    pub(super) fn clear_timer(&mut self, task: TaskId, timer: u32) {
        if let Some(task) = self.tasks.get_mut(&task) {
            task.timers.retain(|(number, ..)| *number != timer);
        }
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

    /// Commits a row on behalf of `operation`.
    pub(super) fn commit(&mut self, key: usize, row: Option<Record>, operation: Option<usize>) {
        self.history[key].push(row.as_ref().map(|row| (Seen::of(row), row.expires_at())));
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

    /// Lets a call have its effect.
    pub(super) fn apply(&mut self, task: TaskId, effect: Effect) -> Reply {
        let operation = Some(task.operation());
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
                    self.place(key, new, ttl);
                    Reply::Exchanged(Exchange::Stored)
                } else {
                    Reply::Exchanged(Exchange::Lost(self.entry(key).cloned()))
                }
            }
            Effect::Load(key, now) => {
                self.reads += 1;
                Reply::Loaded(self.row(key).filter(|row| !row.is_expired(now)).cloned())
            }
            Effect::List(now) => {
                let rows = KEYS.iter().zip(&self.rows);
                let listed = rows.filter_map(|(key, row)| {
                    let row = row.as_ref().filter(|row| !row.is_expired(now) && row.subject().is_some())?;
                    Some((StoredKey::parse(key).expect("a valid key"), row.clone()))
                });
                Reply::Listed(listed.collect())
            }
            Effect::Insert(key, record) => {
                if self.rows[key].is_some() {
                    return Reply::AlreadyExists;
                }
                let version = self.new_version(task);
                self.commit(key, Some(record.with_version(version)), operation);
                Reply::Committed(version)
            }
            Effect::Update(key, record, expected, expiry, now) => {
                self.replace(task, [key, key], &record, expected, expiry, now)
            }
            Effect::Rename(keys, record, expected, expiry, now) => {
                self.replace(task, keys, &record, expected, expiry, now)
            }
            Effect::Touch(key, expires_at, now) => match self.rows[key].clone() {
                Some(row) if !row.is_expired(now) => {
                    let later = row.expires_at().max(expires_at);
                    let last_seen_at = row.last_seen_at().max(now);
                    let row = row.with_expires_at(later).with_last_seen_at(last_seen_at);
                    self.commit(key, Some(row), operation);
                    Reply::Done
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
        task: TaskId,
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
        let version = self.new_version(task);
        let written = Record::new(record.payload().clone(), row.created_at(), expires_at)
            .with_last_seen_at(record.last_seen_at())
            .with_subject(record.subject().cloned())
            .with_version(version);
        let operation = Some(task.operation());
        if old != new {
            self.commit(old, None, operation);
        }
        self.commit(new, Some(written), operation);
        Reply::Committed(version)
    }

    /// By who writes, and how often that one wrote before.
    fn new_version(&mut self, task: TaskId) -> Version {
        let state = self.task(task);
        state.statements += 1;
        Version::from_u64(u64::from(task.0) << 16 | u64::from(state.statements))
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
        for (id, task) in &self.tasks {
            (id, task.log, task.children, task.timers.len()).hash(&mut hasher);
            let call = task.call.as_ref().map(|call| {
                let sent_at = call.effect.is_statement().then_some(call.sent_at);
                (digest::effect(&call.effect), sent_at, call.reply.as_ref().map(digest::reply))
            });
            call.hash(&mut hasher);
        }
        hasher.finish()
    }
}
