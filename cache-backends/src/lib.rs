#![doc = include_str!("../README.md")]

#[cfg(feature = "moka")]
pub mod moka;
