#![doc = include_str!("../README.md")]

mod connect;
mod inspect;
#[cfg(any(feature = "memcached", feature = "redis"))]
mod lazy;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "moka")]
pub mod moka;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "memcached", feature = "moka", feature = "redis"))]
mod url;

pub use connect::{ConnectError, connect, connect_to_inspect};
pub use inspect::{Inspect, Inspection};
