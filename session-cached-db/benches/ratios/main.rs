//! The costs of the store on top of the parts that it is made of. Each figure is the ratio of two kinds of
//! work that were measured in turn in one run: the median over several rounds. Run by `cargo xtask bench`.
//!
//! There are 10,000 sessions of ten keys and about 1 KB. A figure is for one task at a time, or for 64 tasks
//! if its name ends with `_64`. The URLs of servers are in `CONFORMANCE_<NAME>_URL`.
//!
//! With `--crowds`, prints a table instead: the costs of saves of one session that 1 to 512 savers make at
//! once.

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
    reason = "a program that measures, and that may stop when it cannot"
)]

mod counted;
mod crowds;
mod databases;
mod figure;
mod in_memory;
mod lazy;
mod near;
mod notified;
mod raw;
mod reap;
mod servers;
mod sessions;
mod size;
mod staleness;

use figure::Report;
use futures_util::FutureExt as _;

/// The amount of work that is measured.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// Number of rows and sessions in the figures that need a million.
    pub(crate) million: usize,
}

impl Effort {
    const FULL: Self = Self { rounds: 15, million: 1_000_000 };
    const QUICK: Self = Self { rounds: 3, million: 100_000 };
}

fn main() {
    let mut effort = Effort::FULL;
    let mut groups = Vec::new();
    let (mut is_table, mut is_node) = (false, false);
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            // `cargo bench` passes this to every benchmark.
            "--bench" => {}
            "--quick" => effort = Effort::QUICK,
            "--crowds" => is_table = true,
            size::CHILD => return size::measure_here(),
            staleness::CHILD => is_node = true,
            group => groups.push(group.to_owned()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if is_node {
        return runtime.block_on(staleness::measure_here());
    }
    // Run in a worker of the runtime, as the handlers of a web server do: outside of one, every spawned task
    // would wake a thread.
    if is_table {
        return runtime.block_on(async {
            tokio::spawn(async move { crowds::print_table(&groups).await }).await.unwrap();
        });
    }
    let report = runtime.block_on(async { tokio::spawn(measure(effort, groups)).await.unwrap() });
    println!("{}", report.json());
}

async fn measure(effort: Effort, groups: Vec<String>) -> Report {
    let wanted = |group: &str| groups.is_empty() || groups.iter().any(|wanted| wanted == group);
    let mut report = Report::default();
    if wanted("moka") {
        in_memory::measure(effort, &mut report).boxed().await;
    }
    if wanted("redis") {
        servers::redis(effort, &mut report).boxed().await;
    }
    if wanted("memcached") {
        servers::memcached(effort, &mut report).boxed().await;
    }
    for name in ["sqlite", "postgres", "mysql", "mariadb"] {
        if wanted(name) {
            databases::measure(name, effort, &mut report).boxed().await;
        }
    }
    if wanted("crowd") {
        crowds::measure(effort, &mut report).boxed().await;
    }
    if wanted("near") {
        near::measure(effort, &mut report).boxed().await;
        notified::measure(effort, &mut report).boxed().await;
    }
    if wanted("lazy") {
        lazy::measure(effort, &mut report).boxed().await;
    }
    if wanted("size") {
        size::measure(effort, &mut report);
    }
    if wanted("reap") {
        reap::measure(effort, &mut report).boxed().await;
    }
    report
}
