//! The behaviour of sessions, over moka and SQLite. One binary, so that it is linked once, with a module per
//! concept.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::large_futures,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

mod bad_input;
mod builder;
mod cache;
mod codec;
mod coherence;
mod crowd;
mod database;
mod deployments_doc;
mod expiry;
mod fences;
mod flights;
mod grace;
mod grace_crowds;
mod grace_notes;
mod hooks;
mod identity;
mod keys;
mod left_out;
mod limits;
mod login;
mod map;
mod merge;
#[cfg(feature = "metrics")]
mod metrics;
mod near;
mod operations_doc;
mod outage;
mod parity;
mod plain_keys;
mod reaper;
mod runtimes;
#[cfg(all(feature = "compress", feature = "seal"))]
mod seal;
mod shutdown;
mod store_operations;
mod subjects;
mod sweeps;
mod touches;
#[cfg(feature = "tower")]
mod tower;
#[cfg(feature = "tower")]
mod tower_cookie;
#[cfg(all(feature = "django", feature = "tower"))]
mod tower_django;
#[cfg(feature = "tower")]
mod tower_ends;
#[cfg(feature = "tower")]
mod tower_errors;
#[cfg(feature = "tower")]
mod tower_guard;
#[cfg(feature = "tower")]
mod tower_header;
#[cfg(feature = "tower")]
mod tower_jar;
#[cfg(feature = "tower")]
mod tower_replaced;
#[cfg(feature = "tower")]
mod tower_saving;
#[cfg(feature = "tower")]
mod tower_stack;
mod traces;
mod typed;
mod unknown_outcomes;
mod versions;
mod watch;
