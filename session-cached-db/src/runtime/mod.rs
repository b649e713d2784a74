//! The runtime of operations: time, bounded waits, and tasks that outlive their callers.

#[cfg(feature = "__simulation")]
mod mutants;
mod periodic;
pub(crate) mod tasks;
mod timeout;
mod tokio;

pub(crate) use self::periodic::run_until;
pub(crate) use self::tasks::{Admission, Tasks};
pub(crate) use self::timeout::within;
pub use self::tokio::TokioRuntime;
