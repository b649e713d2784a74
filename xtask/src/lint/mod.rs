//! `cargo xtask lint`: everything that is checked without running the code.

mod closure;
mod features;
mod metadata;
mod native;
mod prose;
mod readme;
mod release;

use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt as _};

use crate::Result;
use crate::help::Help;
use crate::process::{cargo, run as run_process, succeeds};
use crate::stage::Stages;

pub(crate) const HELP: Help = Help {
    usage: "lint [STAGE..]",
    summary: "Checks everything that can be checked without running the code.",
    details: "Every stage runs, also after one that failed.",
    options: &[
        ("fmt", "Formatting."),
        ("clippy", "Clippy, with warnings denied."),
        ("docs", "Rustdoc, with warnings denied."),
        ("features", "Each crate compiles with each feature alone."),
        ("closure", "No feature pulls in what it must not."),
        ("native", "docs/native-code.md lists the features that bring code in C."),
        ("readme", "Each README lists its crate's features."),
        ("glossary", "Each name in the glossary of CONTRIBUTING.md is declared."),
        ("prose", "Plain English in comments, documents and the names of tests."),
        ("package", "Each published crate can be packaged."),
        ("msrv", "The oldest Rust that Cargo.toml promises compiles everything."),
        ("semver", "The interface keeps what the last release promised."),
        ("deny", "Licences, advisories and sources, if cargo-deny is installed."),
    ],
    examples: &[("lint", "every stage"), ("lint fmt clippy", "two stages")],
};

pub(crate) fn run(mut args: Parser) -> Result {
    let mut chosen = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Value(stage) => chosen.push(stage.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let known: Vec<_> = HELP.options.iter().map(|(stage, _)| *stage).collect();
    if let Some(unknown) = chosen.iter().find(|stage| !known.contains(&stage.as_str())) {
        return Err(format!("there is no stage {unknown:?}; there are {}", known.join(", ")).into());
    }
    stages(&chosen)
}

/// Runs every stage, also after one that failed.
pub(crate) fn all() -> Result {
    stages(&[])
}

/// Runs the stages that are chosen, or every one if none is.
fn stages(chosen: &[String]) -> Result {
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|one| one == name);
    let members = metadata::members()?;
    let features = || features::each_alone(&members);
    let closure = || closure::check(&members);
    let native = || native::check(&members);
    let readme = || readme::check(&members);
    let package = || release::package(&members);
    let work: [(&str, u64, &dyn Fn() -> Result); 10] = [
        ("fmt", 10, &fmt),
        ("clippy", 360, &clippy),
        ("docs", 180, &docs),
        ("features", 600, &features),
        ("closure", 60, &closure),
        ("native", 60, &native),
        ("readme", 1, &readme),
        ("glossary", 5, &prose::glossary::check),
        ("prose", 10, &prose::check),
        ("package", 60, &package),
    ];
    let mut stages = Stages::new("lint");
    for (name, budget, work) in work.into_iter().filter(|(name, ..)| is_chosen(name)) {
        // The failure is kept for the end.
        stages.run(name, Duration::from_secs(budget), work).ok();
    }
    if is_chosen("msrv") {
        release::oldest_rust(&mut stages, &members);
    }
    if is_chosen("semver") {
        release::semver(&mut stages, &members);
    }
    if is_chosen("deny") {
        deny(&mut stages);
    }
    stages.finish()
}

/// Packages with a workspace and a lock file of their own.
const OUTSIDE: &[&str] = &["conformance-tests/fuzz", "session-cached-db/benches/vs-tower-sessions"];

fn fmt() -> Result {
    run_process(cargo().args(["fmt", "--all", "--check"]))?;
    OUTSIDE.iter().try_for_each(|package| {
        run_process(cargo().args(["fmt", "--check", "--manifest-path", &format!("{package}/Cargo.toml")]))
    })
}

fn clippy() -> Result {
    let scope = ["clippy", "--workspace", "--all-targets", "--all-features"];
    run_process(cargo().args(scope).args(["--", "--deny=warnings"]))
}

fn docs() -> Result {
    let scope = ["doc", "--workspace", "--no-deps", "--all-features"];
    run_process(cargo().args(scope).env("RUSTDOCFLAGS", "--deny=warnings"))
}

fn deny(stages: &mut Stages) {
    if !succeeds(cargo().args(["deny", "--version"])) {
        let reason = "licences, advisories and sources NOT checked: `cargo install --locked cargo-deny`";
        return stages.skip("deny", reason);
    }
    let check = ["deny", "--workspace", "--all-features", "check", "--hide-inclusion-graph"];
    // The failure is kept for the end.
    stages.run("deny", Duration::from_secs(120), || run_process(cargo().args(check))).ok();
}
