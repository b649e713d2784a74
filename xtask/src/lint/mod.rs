//! `cargo xtask lint`: everything that is checked without running the code.

mod closure;
mod features;
mod metadata;

use std::time::Duration;

use lexopt::Parser;

use crate::Result;
use crate::process::{cargo, run as run_process, succeeds};
use crate::stage::Stages;

pub(crate) const USAGE: &str = "lint";
pub(crate) const SUMMARY: &str = "Formatting, clippy and docs with warnings denied, each feature alone, what features must not \
     pull in, cargo-deny when installed.";

pub(crate) fn run(mut args: Parser) -> Result {
    if let Some(arg) = args.next()? {
        return Err(arg.unexpected().into());
    }
    all()
}

/// Runs every stage, also after one that failed.
pub(crate) fn all() -> Result {
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let mut stages = Stages::new("lint");
    let members = metadata::members()?;
    let outcomes = [
        stages.run("fmt", Duration::from_secs(10), || run_process(cargo().args(["fmt", "--all", "--check"]))),
        stages.run("clippy", minutes(6), || {
            let scope = ["clippy", "--workspace", "--all-targets", "--all-features"];
            run_process(cargo().args(scope).args(["--", "--deny=warnings"]))
        }),
        stages.run("docs", minutes(3), || {
            let scope = ["doc", "--workspace", "--no-deps", "--all-features"];
            run_process(cargo().args(scope).env("RUSTDOCFLAGS", "--deny=warnings"))
        }),
        stages.run("features", minutes(10), || features::each_alone(&members)),
        stages.run("closure", minutes(1), || closure::check(&members)),
        stages.run("deny", minutes(2), deny),
    ];
    let skipped = outcomes.iter().all(Result::is_ok) && !has_deny();
    stages.finish()?;
    if skipped {
        eprintln!("  cargo-deny is not installed: licences, advisories and duplicates were NOT checked");
    }
    Ok(())
}

fn has_deny() -> bool {
    succeeds(cargo().args(["deny", "--version"]))
}

fn deny() -> Result {
    if has_deny() {
        return run_process(cargo().args([
            "deny",
            "--workspace",
            "--all-features",
            "check",
            "--hide-inclusion-graph",
        ]));
    }
    eprintln!("SKIPPED: cargo-deny is not installed (`cargo install --locked cargo-deny`)");
    Ok(())
}
