//! Soaks: the store on real servers that break, and processes that die. `cargo xtask soak` runs it.
//!
//! Without `SOAK_PAIR` (and `SOAK_SECONDS`, `SOAK_SEED`), what is run are the tests of the soak itself, and, with `SOAK_SHORT`,
//! short soaks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod broken;
mod checker;
mod engine;
mod faults;
mod history;
mod ledger;
mod load;
mod oracle;
mod report;
mod run;
#[allow(dead_code, reason = "shared with the matrix and with xtask, which use other parts of it")]
#[path = "../../servers/table.rs"]
mod table;
mod trials;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use conformance_tests::libtest_mimic;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let role = std::env::var(worker::ROLE).ok();
    let outcome = if role.as_deref() == Some("herd") {
        load::herd_process()
    } else if role.is_some() {
        worker::main()
    } else if let Ok(pair) = std::env::var("SOAK_PAIR") {
        soak(&pair)
    } else {
        libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials::all()).exit()
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn soak(pair: &str) -> Result<(), Failure> {
    let seconds = std::env::var("SOAK_SECONDS").map_or(Ok(60), |text| text.parse())?;
    let seed = match std::env::var("SOAK_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => fastrand::u64(..1 << 32),
    };
    let report = block_on(run::run(run::Settings::new(pair, Duration::from_secs(seconds), seed)?))?;
    println!("{report}");
    if report.is_clean() { Ok(()) } else { Err("a promise was broken".into()) }
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(future)
}
