//! The numbering of tasks.

use session_core::Version;

/// The first number of the tasks that keep the channels of near caches, one for each process.
pub(super) const FIRST_KEEPER: usize = 90;

/// The number of a task. The upper half is the operation for which it was begun, counted from 1; every
/// further five bits are the number of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TaskId(pub(super) u64);

impl TaskId {
    pub(super) fn of_operation(operation: usize) -> Self {
        Self((operation as u64 + 1) << 32)
    }

    pub(super) fn child(self, depth: u32, number: u32) -> Self {
        assert!(depth < 6 && number < 32, "tasks start too many tasks for this numbering");
        Self(self.0 | u64::from(number) << (25 - 5 * depth))
    }

    /// Returns the operation for which this task was started.
    pub(super) fn operation(self) -> usize {
        usize::try_from(self.0 >> 32).expect("few operations") - 1
    }

    /// Returns `true` for the task that keeps the channel of a near cache.
    pub(super) fn is_keeper(self) -> bool {
        (FIRST_KEEPER..FIRST_KEEPER + 2).contains(&self.operation())
    }

    /// Returns the task that drew this stamp or token.
    pub(super) fn that_drew(number: u64) -> Self {
        Self(number >> 16)
    }

    /// Returns the task whose statement committed this version.
    pub(super) fn that_committed(version: Version) -> Self {
        Self(version.as_u64() >> 16)
    }
}
