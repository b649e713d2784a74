//! The suite that any backend can run: the cases of each layer, and the reference that passes them.

pub mod cache;
mod case;
mod concurrent;
pub mod database_notices;
pub mod notices;
pub mod pair;
pub mod persistence;
pub mod reference;
pub mod rotations;
mod runner;
pub mod scan;
pub mod subject_index;

pub use case::Case;
pub use runner::Suite;
