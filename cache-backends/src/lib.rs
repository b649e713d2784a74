#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

/// The place of a seeded fault of the protocol: asks whether the simulator has selected it, or runs the faulty code
/// instead. A normal build contains nothing of it.
#[cfg(feature = "__simulation")]
#[allow(unused_macros, reason = "only near caches have seeded faults")]
macro_rules! mutant {
    ($name:ident) => {
        session_core::simulation::is_selected(session_core::simulation::Mutant::$name)
    };
    ($name:ident => $instead:expr) => {
        if mutant!($name) {
            $instead
        }
    };
}
#[cfg(not(feature = "__simulation"))]
#[allow(unused_macros, reason = "only near caches have seeded faults")]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
    ($name:ident => $instead:expr) => {};
}

// Every backend has the same files: `builder` (options and URLs), `connect` (connections), `error` (the
// driver's errors as ours), `commands` (the commands and their replies) and `inspect`. `moka` is in this
// process, without connections, errors and commands. `near` joins two of them.

mod connect;
mod error;
mod inspect;
#[cfg(feature = "_server")]
mod lazy;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "moka")]
pub mod moka;
#[cfg(feature = "near")]
pub mod near;
#[cfg(feature = "redis")]
pub mod redis;
mod scheme;
#[allow(dead_code, reason = "each backend uses some parts, and any backend may be disabled")]
mod url;

pub use connect::{connect, connect_to_inspect};
pub use error::ConnectError;
pub use inspect::{ChannelInspection, Inspect, Inspection};
