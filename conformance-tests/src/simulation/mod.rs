//! A simulator that drives the real store through every interleaving of a few operations and faults.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a simulator that is wrong about its own state must stop at once, not go on and prove nothing"
)]

mod arrangement;
mod backends;
mod call;
mod campaign;
mod digest;
mod explore;
mod mutants;
mod named;
mod operation;
mod oracle;
mod places;
mod run;
mod runtime;
mod scenario;
mod search;
mod settings;
pub mod specification;
mod sweep;
mod task_id;
mod trace;
mod world;

pub use arrangement::Arrangement;
pub use campaign::{Checkpoint, resume};
pub use explore::{Explored, Replayed, SAMPLED, Vector, Violation, random_run, replay, trace};
pub use mutants::{Detection, SHOWN_IN, UNSPECIFIED, detect, detect_all, detect_in};
pub use operation::Operation;
pub use scenario::{Beginning, Scenario};
pub use search::{Reduction, Searched, explore, search};
pub use sweep::{SweepError, sweep, sweep_until};

pub use session_cached_db::simulation::{Mutant, select_mutant};
