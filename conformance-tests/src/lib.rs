#![doc = include_str!("../README.md")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a case fails by a panic"
)]

pub mod cache;
mod case;
mod crowd;
pub mod linearize;
pub mod pair;
pub mod persistence;
pub mod proxy;
pub mod reference;
pub mod scan;
#[cfg(feature = "simulation")]
pub mod sim;
pub mod subject_index;
mod suite;

pub use case::Case;
pub use suite::Suite;

pub use libtest_mimic;
