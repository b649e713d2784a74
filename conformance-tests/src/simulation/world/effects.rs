//! The effects of calls, in the cache and in the database.

use std::time::Duration;

use session_core::{
    Acquired, Entry, Exchange, Expected, ExpiryWrite, Record, RecordWrite, Rotation, SessionTimes, Stamp,
    State, StoredKey, Timestamp, Version,
};

use super::{Item, Slot, World};
use crate::simulation::call::{Effect, Late, LateId, Reply, Seen};
use crate::simulation::settings::{KEYS, TOUCH_INTERVAL, VALUE_TTL_EXCESS, stored_keys};
use crate::simulation::task_id::TaskId;
use crate::simulation::trace::Event;

impl World {
    /// Returns the entry under `key`, if the cache still keeps it.
    pub(in crate::simulation) fn entry(&self, key: usize) -> Option<&Entry> {
        let slot = self.slots[key].as_ref()?;
        let late = if matches!(slot.entry.state, State::Value(_)) { VALUE_TTL_EXCESS } else { self.excess };
        (self.now < slot.until + late).then_some(&slot.entry)
    }

    pub(in crate::simulation) fn row(&self, key: usize) -> Option<&Record> {
        self.rows[key].as_ref()
    }

    /// Puts an entry into the cache, or removes the one that is there.
    pub(in crate::simulation) fn place(&mut self, key: usize, entry: Option<Entry>, ttl: Duration) {
        if self.keeps_changes {
            let before = self.slots[key].clone();
            self.before[key].push(before);
        }
        if self.log.is_some() {
            let (before, after) = (self.entry(key).cloned(), entry.clone().filter(|_| !ttl.is_zero()));
            let by = self.acting;
            self.note(|| Event::Placed { key, before, after, by });
        }
        self.slots[key] = entry.filter(|_| !ttl.is_zero()).map(|entry| Slot { entry, until: self.now + ttl });
        self.note_change(key);
    }

    /// Returns `true` if the cache can lose the last change of the entry under `key`.
    pub(in crate::simulation) fn may_revert(&self, key: usize) -> bool {
        !self.before[key].is_empty()
    }

    /// Lets the cache lose the last change of the entry under `key`, which it has acknowledged.
    pub(in crate::simulation) fn revert(&mut self, key: usize) {
        self.slots[key] = self.before[key].pop().flatten();
        self.note_change(key);
    }

    /// Returns the version with which these fields were committed.
    pub(in crate::simulation) fn version_of(&self, key: usize, seen: Seen) -> u64 {
        let of = self.versions[key].iter().rev().find(|(other, _)| *other == seen);
        of.map_or(0, |(_, version)| version.as_u64())
    }

    /// Commits a row on behalf of `operation`.
    pub(in crate::simulation) fn commit(
        &mut self,
        key: usize,
        row: Option<Record>,
        operation: Option<usize>,
    ) {
        self.history[key].push(row.as_ref().map(|row| (Seen::of(row), row.expires_at())));
        if let Some(row) = &row {
            self.versions[key].push((Seen::of(row), row.version()));
        }
        let (version, by) = (|row: &Record| row.version().as_u64(), self.acting);
        let (before, after) = (self.rows[key].as_ref().map(version), row.as_ref().map(version));
        self.note(|| Event::Committed { key, before, row: after, by });
        self.rows[key] = row;
        if let Some(operation) = operation {
            self.commits.insert((operation, key), self.history[key].len() - 1);
            let process = self.homes.get(&operation).copied();
            self.note_commit(key, process);
        }
    }

    /// Lets the call of a task take effect.
    pub(in crate::simulation) fn apply(&mut self, id: TaskId) {
        let Some(call) = self.task(id).call.as_ref().filter(|call| call.reply.is_none()) else { return };
        let (effect, number) = (call.effect.clone(), call.number);
        let reply = self.take_effect(id, effect, number);
        self.task(id).call.as_mut().expect("it is still there").reply = Some(reply);
    }

    /// Lets a call take effect that no task waits for.
    pub(in crate::simulation) fn take_effect_late(&mut self, id: LateId) {
        let position = self.late.iter().position(|late| late.id() == id).expect("a call that was given up");
        let Late { task, effect, number, .. } = self.late.remove(position);
        let _ = self.take_effect(task, effect, number);
    }

    fn take_effect(&mut self, task: TaskId, effect: Effect, number: u32) -> Reply {
        self.acting = task;
        match effect {
            Effect::Get(key) => Reply::Found(self.entry(key).cloned()),
            Effect::Watch(channel, key) => self.answer_by(channel, Some(key), Item::Answer(task, number)),
            Effect::Ping(channel) => self.answer_by(channel, None, Item::Answer(task, number)),
            Effect::Acquire(key, lease, ttl) => Reply::Acquired(match self.entry(key).cloned() {
                Some(found) => Acquired::Found(found),
                None => {
                    self.place(key, Some(lease), ttl);
                    Acquired::Placed
                }
            }),
            Effect::Exchange(key, expected, new, ttl) => {
                Reply::Exchanged(self.exchange(task, key, expected, new, ttl))
            }
            statement => self.run_statement(task, statement, number),
        }
    }

    fn exchange(
        &mut self,
        task: TaskId,
        key: usize,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Exchange {
        let is_as_expected = match (self.entry(key), expected) {
            (None, Expected::Vacant) => true,
            (Some(found), Expected::Stamp(stamp)) => found.stamp == stamp,
            _ => false,
        };
        if is_as_expected {
            self.check_cached(key, new.as_ref());
            self.place(key, new, ttl);
            Exchange::Stored
        } else {
            self.check_loss(task, key, new.as_ref());
            Exchange::Lost(self.entry(key).cloned())
        }
    }

    fn run_statement(&mut self, task: TaskId, statement: Effect, number: u32) -> Reply {
        // In one function, because it is one choice with an arm for each statement.
        let operation = Some(task.operation());
        let version = Version::from_u64(task.0 << 16 | u64::from(number));
        match statement {
            Effect::Load(key, now) => {
                self.reads += 1;
                if self.must_know(task, key) {
                    self.wrong = Some("a write queue reads a session that it has just written itself");
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
                let write = RecordWrite::new(&record).with_expected(expected).with_expiry(expiry);
                let reply = self.replace(version, [key, key], write, now);
                let is_merge = !Seen::of(&record).has_one_writer();
                if matches!(reply, Reply::Conflict) && is_merge && self.must_know(task, key) {
                    self.wrong = Some("a save conflicts with a write of its own write queue");
                }
                reply
            }
            Effect::Rename(keys, record, expected, expiry, now) => {
                let write = RecordWrite::new(&record).with_expected(expected).with_expiry(expiry);
                self.replace(version, keys, write, now)
            }
            Effect::Touch(key, expires_at, idle_since, now) => match self.rows[key].clone() {
                Some(row) if !row.is_expired(now) && row.last_seen_at() > idle_since => {
                    self.check_touch(task, &row, false, now);
                    Reply::Touched(false)
                }
                Some(row) if !row.is_expired(now) => {
                    self.check_touch(task, &row, true, now);
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
            Effect::DeleteAll(keys) => {
                let (there, gone) = keys.into_iter().partition::<Vec<_>, _>(|key| self.rows[*key].is_some());
                for key in there.iter().chain(&gone) {
                    self.commit(*key, None, operation);
                }
                Reply::DeletedAll(there.into_iter().map(|key| stored_keys()[key]).collect())
            }
            Effect::DeleteExpired(before) => {
                let mut deleted = Vec::new();
                for key in 0..KEYS.len() {
                    if self.rows[key].as_ref().is_some_and(|row| row.is_expired(before)) {
                        self.commit(key, None, operation);
                        deleted.push(stored_keys()[key]);
                    }
                }
                Reply::DeletedExpired(deleted)
            }
            Effect::Note(rotation) => {
                self.notes.push(rotation);
                Reply::Noted
            }
            Effect::Notes(key, now) => {
                let about = |note: &&Rotation| note.old == stored_keys()[key] && note.expires_at > now;
                Reply::Notes(self.notes.iter().filter(about).cloned().collect())
            }
            Effect::Get(_)
            | Effect::Acquire(..)
            | Effect::Exchange(..)
            | Effect::Watch(..)
            | Effect::Ping(_) => panic!("not a statement"),
        }
    }

    /// Checks that a touch which is not due does not change `row`, and that no process asks for one that it has made itself.
    fn check_touch(&mut self, task: TaskId, row: &Record, takes_effect: bool, now: Timestamp) {
        if !self.throttles {
            return;
        }
        if takes_effect && row.last_seen_at() + TOUCH_INTERVAL > now {
            self.wrong = Some("a touch that is not due changes the session");
        }
        let Some(process) = self.tasks.get(&task).map(|task| task.process) else { return };
        if takes_effect {
            self.touched_by.insert(process);
        } else if !self.is_troubled && self.touched_by.contains(&process) {
            self.wrong = Some("a process repeats its own touch");
        }
    }

    /// Returns `true` if `task`, that of a write queue, was the last to write the session under `key`, and
    /// must know what it wrote.
    fn must_know(&self, task: TaskId, key: usize) -> bool {
        !self.is_troubled
            && self.remembers
            && self.row(key).is_some_and(|row| TaskId::that_committed(row.version()) == task)
    }

    /// Checks that a value that enters the cache was in the database, with the same version.
    fn check_cached(&mut self, key: usize, new: Option<&Entry>) {
        if let Some(Entry { state: State::Value(value), .. }) = new
            && !self.versions[key].contains(&(Seen::of(&value.record), value.record.version()))
        {
            self.wrong = Some("a value that was never in the database enters the cache");
        }
    }

    /// Checks that, in a run without faults, no process loses the exchange for a fence to a writer of its
    /// own: these come one after the other.
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

    fn replace(
        &mut self,
        version: Version,
        [old, new]: [usize; 2],
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Reply {
        let RecordWrite { record, expected, expiry, .. } = write;
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
        let written = Record::clone(record)
            .with_created_at(row.created_at())
            .with_expires_at(expires_at)
            .with_version(version);
        let operation = Some(TaskId::that_committed(version).operation());
        if old != new {
            self.commit(old, None, operation);
        }
        self.commit(new, Some(written), operation);
        Reply::Committed(version)
    }

    /// Drops calls that no task waits for and that can have no effect any more: the stamp that they expect is
    /// not there, and nothing on its way puts it there. No stamp comes twice.
    pub(in crate::simulation) fn drop_inert_calls(&mut self) {
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
}
