//! A simulator that drives the real store through every interleaving of a few operations and faults.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a simulator that is wrong about its own state must stop at once, not go on and prove nothing"
)]

mod backends;
mod call;
mod digest;
mod explore;
mod mutants;
mod operation;
mod oracle;
mod run;
mod scenario;
mod settings;
mod sweep;
mod task_id;
mod world;

pub use explore::{Explored, Replayed, SAMPLED, Vector, Violation, explore, random_run, replay};
pub use mutants::{Detection, detect, detect_all};
pub use operation::Operation;
pub use scenario::{Beginning, Scenario};
pub use sweep::{SweepError, sweep};

pub use session_cached_db::simulation::{Mutant, select_mutant};
