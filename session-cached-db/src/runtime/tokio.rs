use std::cell::RefCell;
use std::num::NonZeroU64;
use std::time::Duration;

use session_core::{BoxFuture, Runtime, Timestamp};

/// The [`Runtime`] of a program: tokio's timers and tasks, the system's clock.
#[derive(Clone, Debug)]
pub struct TokioRuntime {
    handle: tokio::runtime::Handle,
}

impl TokioRuntime {
    /// Returns the tokio runtime that is running here, which must have timers enabled, or `None` outside of one.
    #[must_use]
    pub fn current() -> Option<Self> {
        tokio::runtime::Handle::try_current().ok().map(|handle| Self { handle })
    }
}

// The only place that reads the system's clock and starts tasks and timers.
#[allow(clippy::disallowed_methods)]
impl Runtime for TokioRuntime {
    fn now(&self) -> Timestamp {
        std::time::SystemTime::now().into()
    }

    /// Returns the time of the kernel's last tick. There are a hundred ticks or more in a second, and the exact time costs ten
    /// times as much.
    #[cfg(target_os = "linux")]
    fn coarse_now(&self) -> Timestamp {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let micros = time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1_000);
        Timestamp::from_micros(micros)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        // The caller may be polled outside of the runtime, where no timer can be made.
        let _inside = self.handle.enter();
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<()>) {
        self.handle.spawn(task);
    }

    fn enter(&self, poll: &mut dyn FnMut()) {
        let _inside = self.handle.enter();
        poll();
    }

    fn random_u64(&self) -> NonZeroU64 {
        thread_local! {
            static RANDOM: RefCell<fastrand::Rng> = RefCell::new(fastrand::Rng::with_seed(seed()));
        }
        RANDOM.with_borrow_mut(|random| {
            std::iter::repeat_with(|| random.u64(..)).find_map(NonZeroU64::new).unwrap_or(NonZeroU64::MIN)
        })
    }
}

/// Returns a seed from the operating system, or else from addresses and times that differ between threads and processes.
fn seed() -> u64 {
    getrandom::u64().unwrap_or_else(|_| fastrand::Rng::new().u64(..))
}
