#![doc = include_str!("../README.md")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a case fails by a panic"
)]

#[cfg(any())] pub mod cache;
#[cfg(any())] mod case;
#[cfg(any())] mod crowd;
pub mod linearize;
#[cfg(any())] pub mod pair;
#[cfg(any())] pub mod persistence;
#[cfg(any())] pub mod proxy;
#[cfg(any())] pub mod reference;
#[cfg(any())] pub mod scan;
#[cfg(feature = "simulation")]
pub mod sim;
#[cfg(any())] pub mod subject_index;
#[cfg(any())] mod suite;

//TMP pub use case::Case;
//TMP pub use suite::Suite;

pub use libtest_mimic;
