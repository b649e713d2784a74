//! Explores many scenarios on all cores.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::explore::{Explored, Violation};
use super::scenario::Scenario;
use super::search::explore;

/// Explores all of `scenarios`, and calls `progress` for each that is done. Stops at the first violation.
///
/// # Errors
///
/// Returns the violation, or that nothing was explored, which proves nothing.
pub fn sweep(
    scenarios: &[Scenario],
    progress: impl Fn(&Scenario, Explored) + Sync,
) -> Result<Explored, SweepError> {
    sweep_until(scenarios, None, progress).map(|(explored, _)| explored)
}

/// Explores `scenarios` in their order, begins none after `until`, and calls `progress` for each that is done. Stops at the
/// first violation. Returns the number of those that were explored, too.
///
/// # Errors
///
/// As [`sweep`] does.
pub fn sweep_until(
    scenarios: &[Scenario],
    until: Option<Instant>,
    progress: impl Fn(&Scenario, Explored) + Sync,
) -> Result<(Explored, usize), SweepError> {
    let sum = Mutex::new((Explored::default(), None::<Violation>, 0));
    let locked = || sum.lock().unwrap_or_else(PoisonError::into_inner);
    on_all_cores(scenarios, |scenario| {
        if until.is_some_and(|until| Instant::now() > until) {
            return ControlFlow::Break(());
        }
        let (explored, violation) = explore(scenario, false);
        // The shortest violation is easier to understand, and takes as long again to find.
        let violation = violation.map(|found| explore(scenario, true).1.unwrap_or(found));
        let mut sum = locked();
        sum.0 += explored;
        if violation.is_some() {
            sum.1 = violation;
            return ControlFlow::Break(());
        }
        sum.2 += 1;
        drop(sum);
        progress(scenario, explored);
        ControlFlow::Continue(())
    });
    let (explored, violation, done) = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    match violation {
        Some(violation) => Err(SweepError::Broken(violation)),
        None if explored.states == 0 || explored.ends == 0 => Err(SweepError::Nothing),
        None => Ok((explored, done)),
    }
}

/// Does `work` with each of `items`, one after the other on each core, until it breaks.
pub(super) fn on_all_cores<T: Sync>(items: &[T], work: impl Fn(&T) -> ControlFlow<()> + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if work(item).is_break() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// An error of a sweep: it proves nothing, or disproves a promise.
#[derive(Clone, Debug)]
pub enum SweepError {
    /// A run broke a promise.
    Broken(Violation),
    /// There was nothing to explore, or no run came to its end.
    Nothing,
}

impl std::fmt::Display for SweepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(violation) => {
                write!(f, "{}\n{}", violation.reason, violation.vector)
            }
            Self::Nothing => f.write_str("nothing was explored, which proves nothing"),
        }
    }
}

impl std::error::Error for SweepError {}
