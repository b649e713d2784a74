#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// Every backend has the same files: `builder` (options and URLs), `connect` (connections), `error` (the
// driver's errors as ours), `commands` (the commands and their replies) and `inspect`. `moka` is in this
// process, without connections, errors and commands.

mod connect;
mod error;
mod inspect;
#[cfg(feature = "_server")]
mod lazy;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "moka")]
pub mod moka;
#[cfg(feature = "redis")]
pub mod redis;
mod scheme;
#[allow(dead_code, reason = "each backend uses some parts, and any backend may be disabled")]
mod url;

pub use connect::{connect, connect_to_inspect};
pub use error::ConnectError;
pub use inspect::{Inspect, Inspection};
