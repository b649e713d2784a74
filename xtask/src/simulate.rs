//! `cargo xtask simulate`: the proof by simulation that the cache never lies.

use std::ffi::OsString;

use lexopt::{Arg, Parser};

use crate::Result;
use crate::help::Help;
use crate::process::{cargo, run as run_process};

pub(crate) const HELP: Help = Help {
    usage: "simulate [--exhaustive | --compare | --mutants | --scenario NAME | --random N | --replay VECTOR [--mutant NAME]] [--seed SEED]",
    summary: "Drives the real store through interleavings and faults, and finds every seeded fault.",
    details: "Without options, it does what `cargo xtask test` does.",
    options: &[
        (
            "--exhaustive",
            "Tries every mix of two operations with up to two faults, and of three with one, near caches included. Goes on where it was stopped; delete target/simulate.state to begin anew.",
        ),
        (
            "--compare",
            "Tries every mix of two operations with all that the search leaves out, too, and compares.",
        ),
        ("--mutants", "Switches each seeded fault on in turn, and fails unless each is found."),
        ("--scenario NAME", "Tries one scenario in all orders."),
        ("--random N", "Tries N runs with more operations and faults, by chance."),
        ("--replay VECTOR", "Repeats one run and describes it step by step."),
        ("--mutant NAME", "Switches a seeded fault on for --replay."),
        ("--seed SEED", "Makes the choices by chance repeatable."),
    ],
    examples: &[
        ("simulate --seed 1", "the standard run, repeatable"),
        ("simulate --replay 'load@0+save@1/vacant/shared/2:1.2.1.0'", "one run, step by step"),
    ],
};

/// The file in which an exhaustive run keeps its progress.
const STATE: &str = "target/simulate.state";

pub(crate) fn run(mut args: Parser) -> Result {
    let mut what: Option<Vec<OsString>> = None;
    let mut seed = None;
    let mut mutant = None;
    let mut choose = |chosen: Vec<OsString>| match what.replace(chosen) {
        None => Ok(()),
        Some(_) => Err("choose one of --exhaustive, --compare, --mutants, --scenario, --random and --replay"),
    };
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("exhaustive") => choose(vec!["exhaustive".into(), STATE.into()])?,
            Arg::Long("compare") => choose(vec!["compare".into()])?,
            Arg::Long("mutants") => choose(vec!["mutants".into()])?,
            Arg::Long("scenario") => choose(vec!["scenario".into(), args.value()?])?,
            Arg::Long("random") => choose(vec!["random".into(), args.value()?])?,
            Arg::Long("replay") => choose(vec!["replay".into(), args.value()?])?,
            Arg::Long("mutant") => mutant = Some(args.value()?),
            Arg::Long("seed") => seed = Some(args.value()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let mut what = what.unwrap_or_else(|| vec!["standard".into()]);
    what.extend(mutant);
    simulate(seed, what)
}

/// Runs the simulations that every change is checked with.
pub(crate) fn standard() -> Result {
    simulate(None, vec!["standard".into()])
}

fn simulate(seed: Option<OsString>, what: Vec<OsString>) -> Result {
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--profile",
        "simulation",
        "--package",
        "conformance-tests",
        "--features",
        "simulation",
    ]);
    command.args(["--bin", "simulate", "--"]);
    if let Some(seed) = seed {
        command.arg("--seed").arg(seed);
    }
    run_process(command.args(what))
}
