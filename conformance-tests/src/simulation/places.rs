//! The places of a state: its parts, each with a digest, by which the search knows what a step has changed.

use super::digest;
use super::task_id::{FIRST_KEEPER, TaskId};

/// A set of places, one bit for each.
pub(super) type Set = u64;

/// The world's clock.
pub(super) const CLOCK: Set = 1;
/// The calls that no task waits for any more.
pub(super) const LATE: Set = 1 << 1;
/// The rival process.
pub(super) const RIVAL: Set = 1 << 2;
/// The processes that have touched A.
pub(super) const TOUCHED: Set = 1 << 3;
/// The faults that are left, and what those before excuse.
pub(super) const FAULTS: Set = 1 << 4;
/// The promises to loads, apart from keys that wait to be repaired.
pub(super) const PROMISES: Set = 1 << 5;
/// Tasks that belong to no operation.
pub(super) const OTHER_TASKS: Set = 1 << 6;
/// The channels and the memories of all processes.
pub(super) const CHANNELS: Set = channel(0) | channel(1);
/// The keys that stores wait to repair, and their breakers.
pub(super) const REPAIRS: Set = repair(0) | repair(1);
/// The ability of memories to answer a load.
pub(super) const SHOWS: Set = 1 << 17 | 1 << 18;

/// The notes of rotations.
pub(super) const NOTES: Set = 1 << 35;

/// Places in which steps of different operations change different parts.
pub(super) const DIVIDED: Set = loads_over(0) | loads_over(1) | all_over(0) | all_over(1);

/// The entry of the shared cache under a key.
pub(super) const fn slot(key: usize) -> Set {
    1 << (7 + key)
}

/// The row under a key.
pub(super) const fn row(key: usize) -> Set {
    1 << (9 + key)
}

/// The channels and the memory of a process.
pub(super) const fn channel(process: usize) -> Set {
    1 << (11 + process)
}

/// The attempts of a store to load sessions.
pub(super) const fn attempts(process: usize) -> Set {
    1 << (13 + process)
}

/// The write queues of a store.
pub(super) const fn queues(process: usize) -> Set {
    1 << (33 + process)
}

/// The keys that a store waits to repair, and its breakers.
pub(super) const fn repair(process: usize) -> Set {
    1 << (15 + process)
}

/// The ability of the memory of a process to answer a load.
pub(super) const fn shows(process: usize) -> Set {
    1 << (17 + process)
}

/// The loads of a process that are over.
pub(super) const fn loads_over(process: usize) -> Set {
    1 << (19 + process)
}

/// The operations of a process that are over.
pub(super) const fn all_over(process: usize) -> Set {
    1 << (21 + process)
}

/// The task that keeps the channels of a process.
pub(super) const fn keeper(process: usize) -> Set {
    1 << (23 + process)
}

/// An operation, with all its tasks.
pub(super) const fn operation(number: usize) -> Set {
    1 << (25 + number)
}

/// The number of places.
const COUNT: usize = 36;

/// The digests of all places.
#[derive(Clone, Debug)]
pub(super) struct Places {
    places: [u64; COUNT],
    /// A digest of what decides how later answers will be judged, and which task makes the next step. It follows from the order of
    /// beginnings, answers and commits.
    judgment: u64,
    /// Digests of the keys that the stores wait to repair, and of their breakers, with failures that make no difference any more.
    repairs: [u64; 2],
}

impl Places {
    pub(super) const fn new(judgment: u64) -> Self {
        Self { places: [0; COUNT], judgment, repairs: [0; 2] }
    }

    /// Notes all that a store waits to repair, and its breakers.
    pub(super) fn note_repair(&mut self, process: usize, digest: u64) {
        self.repairs[process] = digest;
    }

    /// Adds to the digest of one place.
    pub(super) fn add(&mut self, place: Set, value: impl std::hash::Hash) {
        let digest = &mut self.places[place.trailing_zeros() as usize];
        *digest = digest::of((*digest, value));
    }

    /// Returns a digest of the state.
    pub(super) fn digest(&self) -> u64 {
        digest::of((self.places, self.judgment))
    }

    /// Returns the places that are different in `after`.
    pub(super) fn changed(&self, after: &Self) -> Set {
        let differs = |place: &usize| self.places[*place] != after.places[*place];
        let changed = (0..COUNT).filter(differs).fold(0, |set, place| set | 1 << place);
        let repairs = (0..2).filter(|process| self.repairs[*process] != after.repairs[*process]);
        repairs.fold(changed & !REPAIRS, |set, process| set | repair(process))
    }
}

/// Returns the place of a task.
pub(super) fn of_task(id: TaskId) -> Set {
    match id.operation() {
        number if number < 8 => operation(number),
        number if id.is_keeper() => keeper(number - FIRST_KEEPER),
        _ => OTHER_TASKS,
    }
}
