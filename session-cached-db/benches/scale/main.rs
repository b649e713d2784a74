//! The store on tables of up to ten million sessions. Run by `cargo xtask bench scale`, one part at a time: each
//! prints its figures as one JSON object, and its progress on the error stream.
//!
//! | arguments | measures |
//! |---|---|
//! | `table DATABASE CACHE SESSIONS` | every operation on a table of so many sessions |
//! | `logins DATABASE` | a login of a subject that has 5 sessions, and of one that has 50,000 |
//! | `memory CACHE` | the memory that cached sessions take |
//!
//! The URLs of servers are in `CONFORMANCE_<NAME>_URL`; the file of SQLite is in `target/bench`. Tables stay, so that a part
//! that was cut off goes on where it was, and the next one finds them.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a program that measures, and that may stop when it cannot"
)]

mod database;
mod logins;
mod memory;
mod operations;
mod pages;
mod times;

use serde_json::Value;

fn main() {
    // `cargo bench` passes this to every benchmark.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let figures = match arguments[..] {
        ["table", database, cache, sessions] => {
            let sessions = sessions.parse().unwrap();
            let mut figures = alone(operations::measure(database, cache, sessions));
            figures["per_second"] = together(operations::throughput(database, cache, sessions));
            figures
        }
        ["logins", database] => logins::measure(database),
        ["memory", cache] => alone(memory::measure(cache)),
        _ => panic!("usage: table DATABASE CACHE SESSIONS, logins DATABASE, or memory CACHE"),
    };
    println!("{figures}");
}

/// Runs work that is done one thing at a time. On one thread, so that no task wakes another thread.
fn alone(work: impl Future<Output = Value>) -> Value {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Runs work of many tasks.
fn together(work: impl Future<Output = Value>) -> Value {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}
