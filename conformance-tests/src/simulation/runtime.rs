//! The runtime of a simulated process, on which no time passes by itself.

use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use session_core::{BoxFuture, Runtime, Timestamp};

use super::settings::NEAR_WAIT;
use super::task_id::TaskId;
use super::world::{Shared, lock};

#[derive(Debug)]
pub(super) struct SimRuntime {
    pub(super) world: Shared,
    /// The time by which the clock of this process is ahead.
    pub(super) ahead: Duration,
}

impl Runtime for SimRuntime {
    fn now(&self) -> Timestamp {
        lock(&self.world).now + self.ahead
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let mut sleeping = Sleeping { world: Arc::clone(&self.world), duration, timer: None };
        if duration == NEAR_WAIT {
            // This wait is polled long after it has begun.
            sleeping.timer = lock(&self.world).set_timer(duration, Waker::noop());
        }
        Box::pin(sleeping)
    }

    fn spawn(&self, task: BoxFuture<()>) {
        lock(&self.world).spawn(task);
    }

    fn random_u64(&self) -> NonZeroU64 {
        NonZeroU64::new(lock(&self.world).draw()).expect("tasks are counted from one")
    }
}

struct Sleeping {
    world: Shared,
    duration: Duration,
    timer: Option<(TaskId, u32)>,
}

impl Future for Sleeping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let world = Arc::clone(&self.world);
        let mut world = lock(&world);
        let Some((task, timer)) = self.timer else {
            self.timer = world.set_timer(self.duration, context.waker());
            return if self.timer.is_none() { Poll::Ready(()) } else { Poll::Pending };
        };
        if world.has_fired(task, timer, context.waker()) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        if let Some((task, timer)) = self.timer {
            lock(&self.world).clear_timer(task, timer);
        }
    }
}
