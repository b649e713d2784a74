//! Measurements on tables of millions of sessions, with the aims that they have to reach.
//!
//! They take minutes and a server of their own, so they are ignored unless they are asked for:
//!
//! ```sh
//! CONFORMANCE_POSTGRES_URL=postgres://… cargo test -p conformance-tests --all-features --test scale -- \
//!     --ignored --nocapture --test-threads 1
//! ```
//!
//! `SCALE_ROWS` and `SCALE_WRITES` set other numbers of sessions and of writes than those of each measurement.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a test"
)]

mod aging;
mod migration;
mod reaping;
mod subjects;
mod table;
