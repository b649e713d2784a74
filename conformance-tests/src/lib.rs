#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a case fails by a panic"
)]

#[cfg(feature = "simulation")]
pub mod simulation;
mod suite;
mod support;

pub use suite::{
    Case, Suite, cache, database_notices, notices, pair, persistence, reference, rotations, scan,
    subject_index,
};
pub use support::{linearize, proxy};

pub use libtest_mimic;
