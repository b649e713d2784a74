#![doc = include_str!("../README.md")]

mod connect;
#[cfg(feature = "moka")]
pub mod moka;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
mod url;

pub use connect::ConnectError;
