use std::fmt;
use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::time::Duration;

use crate::Timestamp;

/// An owned, boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The source of time, timers, detached tasks and random numbers.
///
/// Everything that makes a run unrepeatable enters through this trait, so that a simulation can replace it.
///
/// # Behavior
///
/// - `now` returns wall-clock time, the same on all nodes up to the clock slack that a store is configured
///   with.
/// - `coarse_now` returns the same instant or an earlier one, by 20 milliseconds at most. It is for callers
///   that ask often and need no more precision.
/// - `sleep` ends after at least `duration` of monotonic time. Dropping its future cancels it.
/// - `spawn` runs `task` to its end without a caller that waits for it. The task is dropped when the runtime
///   shuts down.
/// - `enter` calls `poll` once, at once. The connections, timers and tasks that a backend makes meanwhile
///   belong to this runtime, also when the caller runs on another one, which may end before.
/// - `random_u64` returns a number that differs from every other one drawn on any node, with overwhelming
///   probability, also after a restart. It need not be secret.
pub trait Runtime: Send + Sync + fmt::Debug + 'static {
    /// Returns the time of the wall clock.
    fn now(&self) -> Timestamp;
    /// Returns the time of the wall clock, with less precision if that is cheaper. Defaults to
    /// [`now`](Self::now).
    fn coarse_now(&self) -> Timestamp {
        self.now()
    }
    /// Waits for `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;
    /// Starts a detached task.
    fn spawn(&self, task: BoxFuture<()>);
    /// Calls `poll`, which polls a future of a backend, in the context of this runtime. Defaults to calling it
    /// in that of the caller.
    fn enter(&self, poll: &mut dyn FnMut()) {
        poll();
    }
    /// Returns a random number.
    fn random_u64(&self) -> NonZeroU64;
}
