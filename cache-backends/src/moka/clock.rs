use std::time::Duration;

/// The time beyond its TTL that an entry may be kept: twice the [`LAG`].
pub(crate) const GRANULARITY: Duration = Duration::from_millis(20);

/// The time that [`Clock::now`] may be behind, in nanoseconds: the tick of a kernel that ticks a hundred
/// times a second.
pub(crate) const LAG: u64 = 10_000_000;

/// An instant, in nanoseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(pub(crate) u64);

impl Tick {
    /// Returns an instant at which `ttl` has certainly passed, if this is [`Clock::now`].
    pub(crate) fn after(self, ttl: Duration) -> Self {
        let ttl = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(LAG).saturating_add(ttl))
    }
}

/// The source of the time.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    System,
    /// Advanced by a test or by the simulator, in nanoseconds.
    #[cfg(any(test, feature = "__simulation"))]
    Manual(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    pub(crate) fn now(&self) -> Tick {
        match self {
            Self::System => system_now(),
            #[cfg(any(test, feature = "__simulation"))]
            Self::Manual(nanos) => Tick(nanos.load(std::sync::atomic::Ordering::SeqCst)),
        }
    }
}

/// Returns the kernel's last tick. Every hit reads the clock, and the exact time costs six times as much.
#[cfg(target_os = "linux")]
fn system_now() -> Tick {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Tick(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(not(target_os = "linux"))]
fn system_now() -> Tick {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    Tick(u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
