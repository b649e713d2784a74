//! Soaks: the store on real servers that break, and processes that die. `cargo xtask soak` runs it.
//!
//! Without `SOAK_PAIR` (and `SOAK_PHASES`, `SOAK_SEED`), it runs the tests of the soak itself, and, with
//! `SOAK_SHORT`, short soaks.

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
#[path = "../network/pair.rs"]
mod pair;
mod phases;
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
use phases::Phase;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let role = std::env::var(worker::ROLE).ok();
    let outcome = if role.as_deref() == Some("herd") {
        load::herd_process()
    } else if role.as_deref() == Some("phase") {
        phases::phase_worker::main()
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

/// Reads `SOAK_PHASES`: phases, or `faults`, each with its seconds, as in `faults:180,crowd:30`.
fn parts(text: &str) -> Result<Vec<(Option<Phase>, Duration)>, Failure> {
    let part = |part: &str| -> Result<_, Failure> {
        let (name, seconds) =
            part.split_once(':').ok_or_else(|| format!("a phase looks like crowd:30, not {part:?}"))?;
        let phase = if name == "faults" { None } else { Some(name.parse()?) };
        Ok((phase, Duration::from_secs(seconds.parse()?)))
    };
    text.split(',').map(part).collect()
}

fn soak(pair: &str) -> Result<(), Failure> {
    let parts = parts(&std::env::var("SOAK_PHASES").unwrap_or_else(|_| "faults:60".into()))?;
    let seed = match std::env::var("SOAK_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => fastrand::u64(..1 << 32),
    };
    let is_one_of_many = parts.len() > 1;
    let mut broken = Vec::new();
    for (phase, lasts) in parts {
        let Some(phase) = phase else {
            let report = block_on(run::run(run::Settings::new(pair, lasts, seed)?))?;
            println!("{report}");
            if !report.is_clean() {
                broken.push("faults".to_owned());
            }
            continue;
        };
        let settings = phases::Settings::new(pair, lasts, seed)?;
        if let Some(hindrance) = phases::hindrance(phase, &settings).filter(|_| is_one_of_many) {
            println!("{phase} is left out: {hindrance}");
            continue;
        }
        for verdict in block_on(phases::run(phase, &settings))? {
            println!("{verdict}");
            if !verdict.is_clean() {
                broken.push(phase.to_string());
            }
        }
    }
    if broken.is_empty() {
        Ok(())
    } else {
        Err(format!("promises were broken in {}", broken.join(", ")).into())
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(future)
}
