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
    let members = metadata::members()?;
    let features = || features::each_alone(&members);
    let closure = || closure::check(&members);
    let work: [(&str, u64, &dyn Fn() -> Result); 5] = [
        ("fmt", 10, &fmt),
        ("clippy", 360, &clippy),
        ("docs", 180, &docs),
        ("features", 600, &features),
        ("closure", 60, &closure),
    ];
    let mut stages = Stages::new("lint");
    for (name, budget, work) in work {
        // The failure is kept for the end.
        stages.run(name, Duration::from_secs(budget), work).ok();
    }
    if succeeds(cargo().args(["deny", "--version"])) {
        stages.run("deny", Duration::from_secs(120), deny).ok();
    } else {
        stages.skip(
            "deny",
            "licences, advisories and sources NOT checked: `cargo install --locked cargo-deny`",
        );
    }
    stages.finish()
}

fn fmt() -> Result {
    run_process(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result {
    let scope = ["clippy", "--workspace", "--all-targets", "--all-features"];
    run_process(cargo().args(scope).args(["--", "--deny=warnings"]))
}

fn docs() -> Result {
    let scope = ["doc", "--workspace", "--no-deps", "--all-features"];
    run_process(cargo().args(scope).env("RUSTDOCFLAGS", "--deny=warnings"))
}

fn deny() -> Result {
    run_process(cargo().args(["deny", "--workspace", "--all-features", "check", "--hide-inclusion-graph"]))
}
