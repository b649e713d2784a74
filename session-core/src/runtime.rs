use std::fmt;
use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::time::Duration;

use crate::Timestamp;

/// An owned, boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The world outside: time, timers, detached tasks and random tokens.
///
/// Everything that makes a run unrepeatable enters through this trait, so that a simulation can replace it.
///
/// # Behavior
///
/// - `now` is wall-clock time, the same on all nodes up to the clock slack that a store is configured with.
/// - `coarse_now` is the same instant or an earlier one, by 20 milliseconds at most. For callers that can do with that,
///   and ask often.
/// - `sleep` ends after at least `duration` of monotonic time; dropping it cancels it.
/// - `spawn` runs `task` to its end on its own; nobody has to wait for it. When the runtime is shut down, the task
///   is dropped.
/// - `token` differs from every other token drawn on any node, with overwhelming probability, also after a restart.
///   It need not be secret.
pub trait Runtime: Send + Sync + fmt::Debug + 'static {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// The wall clock, less exact if that is cheaper. Provided: [`now`](Self::now).
    fn coarse_now(&self) -> Timestamp {
        self.now()
    }
    /// A timer.
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;
    /// Starts a detached task.
    fn spawn(&self, task: BoxFuture<()>);
    /// A random number.
    fn random_u64(&self) -> NonZeroU64;
}
