//! conformance-tests

#[cfg(feature = "simulation")]
pub mod sim;
