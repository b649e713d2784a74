//! Explores many scenarios on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::explore::{Explored, Violation, explore};
use super::scenario::Scenario;

/// Explores all of `scenarios`, and tells `progress` of each that is done. Stops at the first violation.
///
/// # Errors
///
/// The violation; or that nothing was explored, which proves nothing.
pub fn sweep(
    scenarios: &[Scenario],
    progress: impl Fn(&Scenario, Explored) + Sync,
) -> Result<Explored, SweepError> {
    let next = AtomicUsize::new(0);
    let sum = Mutex::new((Explored::default(), None::<Violation>));
    let locked = || sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (explored, violation) = explore(scenario, false);
                    // The shortest is easier to understand, and takes as long again to find.
                    let violation = violation.map(|found| explore(scenario, true).1.unwrap_or(found));
                    let mut sum = locked();
                    sum.0 += explored;
                    if violation.is_some() {
                        sum.1 = violation;
                        next.store(scenarios.len(), Ordering::Relaxed);
                        return;
                    }
                    drop(sum);
                    progress(scenario, explored);
                }
            });
        }
    });
    let (explored, violation) = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    match violation {
        Some(violation) => Err(SweepError::Broken(violation)),
        None if explored.states == 0 || explored.ends == 0 => Err(SweepError::Nothing),
        None => Ok(explored),
    }
}

/// Why a sweep proves nothing, or the opposite of what it should.
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
