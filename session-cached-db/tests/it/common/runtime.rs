//! A runtime whose clock and timers a test moves by hand.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use session_core::{BoxFuture, Runtime, Timestamp};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::soon;

/// The time at which every test's clock starts.
pub const START: Timestamp = Timestamp::from_secs(1_700_000_000);

/// A runtime whose clock stands still and whose timers do not end until [`advance`](Self::advance) is called.
/// Its tasks are tokio's. Its random numbers are counted up, so that every run draws the same ones.
#[derive(Clone, Debug)]
pub struct ManualRuntime {
    handle: Handle,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Mutex<Clock>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Clock {
    now: Timestamp,
    tokens: u64,
    timers_made: u64,
    timers: BTreeMap<u64, Timer>,
}

#[derive(Debug)]
struct Timer {
    asked: Duration,
    due: Timestamp,
    ring: oneshot::Sender<()>,
}

impl ManualRuntime {
    /// Returns a runtime whose tasks run on the tokio runtime in which this is called.
    pub fn new() -> Self {
        let clock = Clock { now: START, tokens: 0, timers_made: 0, timers: BTreeMap::new() };
        let shared = Shared { clock: Mutex::new(clock), changed: watch::Sender::new(()) };
        Self { handle: Handle::current(), shared: Arc::new(shared) }
    }

    /// Returns a runtime with the same clock, whose tasks run on another tokio runtime.
    pub fn on(&self, handle: Handle) -> Self {
        Self { handle, shared: Arc::clone(&self.shared) }
    }

    /// Moves the clock, and ends the timers that are due then.
    pub fn advance(&self, duration: Duration) {
        let mut clock = self.lock();
        clock.now = clock.now + duration;
        let now = clock.now;
        for (_, timer) in clock.timers.extract_if(.., |_, timer| timer.due <= now) {
            // The sleeper may have been dropped since.
            let _ = timer.ring.send(());
        }
    }

    /// Returns the time of the clock after `duration`.
    pub fn now_plus(&self, duration: Duration) -> Timestamp {
        self.lock().now + duration
    }

    /// Moves the clock without ending timers. The next [`advance`](Self::advance) ends them.
    pub fn jump(&self, duration: Duration) {
        let mut clock = self.lock();
        clock.now = clock.now + duration;
    }

    /// Returns the durations of the timers that run now, in the order in which they started.
    pub fn sleeps(&self) -> Vec<Duration> {
        self.lock().timers.values().map(|timer| timer.asked).collect()
    }

    /// Waits until a timer runs whose duration `matches`, and returns that duration.
    pub async fn sleeping(&self, matches: impl Fn(Duration) -> bool) -> Duration {
        let mut changes = self.shared.changed.subscribe();
        loop {
            if let Some(asked) = self.sleeps().into_iter().find(|asked| matches(*asked)) {
                return asked;
            }
            soon(changes.changed()).await.unwrap();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Clock> {
        self.shared.clock.lock().unwrap()
    }
}

impl Runtime for ManualRuntime {
    fn now(&self) -> Timestamp {
        self.lock().now
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        if duration.is_zero() {
            return Box::pin(std::future::ready(()));
        }
        let (ring, rung) = oneshot::channel();
        let mut clock = self.lock();
        clock.timers_made += 1;
        let number = clock.timers_made;
        let due = clock.now + duration;
        clock.timers.insert(number, Timer { asked: duration, due, ring });
        drop(clock);
        self.shared.changed.send_replace(());
        Box::pin(Sleep { runtime: self.clone(), number, rung })
    }

    fn spawn(&self, task: BoxFuture<()>) {
        self.handle.spawn(task);
    }

    fn random_u64(&self) -> NonZeroU64 {
        let mut clock = self.lock();
        clock.tokens += 1;
        NonZeroU64::new(clock.tokens).unwrap()
    }
}

struct Sleep {
    runtime: ManualRuntime,
    number: u64,
    rung: oneshot::Receiver<()>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.rung).poll(context).map(drop)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.runtime.lock().timers.remove(&self.number);
    }
}
