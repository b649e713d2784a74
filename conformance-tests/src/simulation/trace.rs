//! Traces: the steps of a run in the words of the [specification](super::specification).

use std::collections::{BTreeMap, BTreeSet};

use session_core::{Entry, Fence, State as Content, Timestamp};

use super::settings::{AHEAD, KEYS, START};
use super::specification::{Cached, Refusal, Row, State, Step};
use super::task_id::TaskId;

/// An event of a run.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A call has changed an entry.
    Placed { key: usize, before: Option<Entry>, after: Option<Entry>, by: TaskId },
    /// An entry was evicted.
    Evicted { key: usize },
    /// An entry has ended by itself.
    Ended { key: usize },
    /// A statement has changed a row, or has found nothing to delete.
    Committed { key: usize, before: Row, row: Row, by: TaskId },
    /// A process has not had an answer from the cache.
    NoAnswer { process: usize },
    /// Time has passed.
    Time(Timestamp),
    /// A load begins.
    Begun { number: usize, key: usize },
    /// A load answers.
    Answered { number: usize, key: usize, row: Row },
}

/// The events of a run that were not looked at yet, and the processes of all its tasks.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) events: Vec<Event>,
    pub(super) places: BTreeMap<TaskId, usize>,
}

/// Follows a run by the rules of the specification.
#[derive(Debug)]
pub(super) struct Tracer {
    keys: [State; KEYS.len()],
    now: Timestamp,
    /// The deadline of each token, in the world's time.
    deadlines: BTreeMap<u64, Timestamp>,
    /// Processes that have had no answer from the cache, and may write without a fence.
    cut_off: BTreeSet<usize>,
    /// Writers that have written without a fence.
    degraded: BTreeSet<u64>,
    /// The steps so far.
    steps: Vec<(usize, Step)>,
}

impl Tracer {
    /// Begins to follow a run, from these rows and entries.
    pub(super) fn new(beginning: [(Row, Option<&Entry>); KEYS.len()]) -> Self {
        let keys = beginning.map(|(row, entry)| {
            let mut state = State::new(row);
            if let Some(Entry { state: Content::Value(value), .. }) = entry {
                state.cache = Cached::Value(value.record.version().as_u64());
            }
            state
        });
        Self {
            keys,
            now: START,
            deadlines: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            degraded: BTreeSet::new(),
            steps: Vec::new(),
        }
    }

    /// Returns the number of steps that were followed.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Returns the writers of each key whose fence was lost, and who are not done.
    pub(super) fn unprotected(&self) -> Vec<(usize, TaskId)> {
        let of = |(key, state): (usize, &State)| {
            state.unprotected.iter().map(|writer| (key, TaskId(*writer))).collect::<Vec<_>>()
        };
        self.keys.iter().enumerate().flat_map(of).collect()
    }

    /// Returns `true` if this writer has written without a fence.
    pub(super) fn has_degraded(&self, writer: TaskId) -> bool {
        self.degraded.contains(&writer.0)
    }

    /// Notes that a writer is done.
    pub(super) fn done(&mut self, key: usize, writer: TaskId) -> Result<(), Refusal> {
        self.step(key, Step::Done { writer: writer.0 })
    }

    /// Follows `events`.
    pub(super) fn follow(&mut self, log: &mut Log) -> Result<(), Refusal> {
        for event in std::mem::take(&mut log.events) {
            match event {
                Event::Placed { key, before, after, by } => {
                    self.placed(key, before.as_ref(), after.as_ref(), by, &log.places)?;
                }
                Event::Evicted { key } => self.step(key, Step::Evict)?,
                Event::Ended { key } => self.step(key, Step::End)?,
                Event::Committed { key, before, row, by } => {
                    self.committed(key, before, row, by, &log.places)?;
                }
                Event::NoAnswer { process } => {
                    self.cut_off.insert(process);
                }
                Event::Time(now) => self.pass(now)?,
                Event::Begun { number, key } => self.step(key, Step::Begin { load: number as u64 })?,
                Event::Answered { number, key, row } => {
                    self.step(key, Step::Answer { load: number as u64, row })?;
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, key: usize, step: Step) -> Result<(), Refusal> {
        let verdict = self.keys[key].step(&step);
        self.steps.push((key, step));
        verdict
    }

    fn pass(&mut self, now: Timestamp) -> Result<(), Refusal> {
        self.now = now;
        let over: Vec<_> = self
            .deadlines
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in over {
            self.deadlines.remove(&token);
            for key in 0..KEYS.len() {
                self.step(key, Step::Over { token })?;
            }
        }
        Ok(())
    }

    fn committed(
        &mut self,
        key: usize,
        before: Row,
        row: Row,
        by: TaskId,
        places: &BTreeMap<TaskId, usize>,
    ) -> Result<(), Refusal> {
        let writer = by.0;
        if let (None, Some(row)) = (before, row) {
            return self.step(key, Step::Insert { writer, row });
        }
        let is_cut_off = places.get(&by).is_some_and(|process| self.cut_off.contains(process));
        if is_cut_off && !self.keys[key].is_fenced(writer) {
            self.degraded.insert(writer);
            self.step(key, Step::Degrade { writer })?;
        }
        self.step(key, Step::Commit { writer, row })
    }

    fn placed(
        &mut self,
        key: usize,
        before: Option<&Entry>,
        after: Option<&Entry>,
        by: TaskId,
        places: &BTreeMap<TaskId, usize>,
    ) -> Result<(), Refusal> {
        let old = before.map_or_else(BTreeSet::new, tokens);
        let Some(after) = after else {
            return match before.map(|entry| &entry.state) {
                None => Ok(()),
                Some(Content::Fence(_)) => {
                    let writer = self.settler(key, &old, by, places);
                    self.step(key, Step::Clear { writer })
                }
                Some(Content::Value(_) | Content::Lease) => self.step(key, Step::Remove),
            };
        };
        match &after.state {
            Content::Lease => self.step(key, Step::Acquire { lease: after.stamp.0.get() }),
            Content::Value(value) => {
                let row = value.record.version().as_u64();
                match before {
                    Some(Entry { state: Content::Fence(_), .. }) => {
                        self.step(key, Step::Publish { writer: by.0, row })
                    }
                    // No lease has the number 0.
                    _ => self
                        .step(key, Step::Fill { lease: before.map_or(0, |entry| entry.stamp.0.get()), row }),
                }
            }
            Content::Fence(fence) => {
                let new = tokens(after);
                let without: BTreeSet<_> = old.difference(&new).copied().collect();
                match new.difference(&old).next() {
                    Some(&token) => {
                        let writer = TaskId::that_drew(token);
                        self.note_deadline(fence, token, places.get(&writer).copied());
                        self.step(key, Step::Fence { token, writer: writer.0, without })?;
                        // The call may have been on its way for longer than that.
                        self.pass(self.now)?;
                    }
                    None => {
                        let writer = self.settler(key, &without, by, places);
                        self.step(key, Step::Leave { writer, without })?;
                    }
                }
                match &self.keys[key].cache {
                    Cached::Fence(holders, dirty, _) if *holders == new && *dirty == fence.dirty => Ok(()),
                    _ => Err(
                        "a fence has other holders than it should have, or is clean although it should be dirty",
                    ),
                }
            }
        }
    }

    /// Notes when the deadline of `token` passes in the world's time.
    fn note_deadline(&mut self, fence: &Fence, token: u64, process: Option<usize>) {
        let ahead = if process == Some(1) { AHEAD } else { std::time::Duration::ZERO };
        let holder = fence.holders.iter().find(|holder| holder.token.0.get() == token);
        self.deadlines.extend(holder.map(|holder| (token, holder.deadline - ahead)));
    }

    /// Returns the writer in whose name a fence is settled that loses the tokens `without`. A repair settles in the name of a
    /// writer of its process.
    fn settler(
        &self,
        key: usize,
        without: &BTreeSet<u64>,
        by: TaskId,
        places: &BTreeMap<TaskId, usize>,
    ) -> u64 {
        let is_alive =
            |token: &&u64| self.deadlines.contains_key(token) && !self.keys[key].is_settled(**token);
        let mut owners = without.iter().filter(is_alive).map(|token| TaskId::that_drew(*token));
        let is_mate = |owner: &TaskId| places.contains_key(&by) && places.get(owner) == places.get(&by);
        owners.find(is_mate).unwrap_or(by).0
    }
}

fn tokens(entry: &Entry) -> BTreeSet<u64> {
    match &entry.state {
        Content::Fence(fence) => fence.holders.iter().map(|holder| holder.token.0.get()).collect(),
        Content::Value(_) | Content::Lease => BTreeSet::new(),
    }
}
