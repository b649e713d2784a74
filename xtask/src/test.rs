//! `cargo xtask test`: runs every test of the workspace.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::help::Help;
use crate::process::{cargo, run as run_process};
use crate::stage::Stages;
use crate::table::IMAGES;
use crate::{Result, engine, fuzz, images, programs, services, simulate, soak};

pub(crate) const HELP: Help = Help {
    usage: "test [--provision] [-- FILTER..]",
    summary: "Runs every test, doc tests and examples included.",
    details: "A test that finds no server is reported as ignored.",
    options: &[
        (
            "--provision",
            "Sets up what a Debian machine lacks (a Docker engine, stand-ins for the server images, a browser, Python, PgBouncer, a C++ compiler), and counts a test that finds no server as failed.",
        ),
        (
            "FILTER",
            "Runs only the tests whose names contain one of these; simulation, fuzzing and soak are left out.",
        ),
    ],
    examples: &[
        ("test --provision", "everything, on a Debian machine, as root"),
        ("test -- expiry", "the tests whose names contain \"expiry\""),
    ],
};

const SETUP_BUDGET: Duration = Duration::from_secs(5 * 60);
const SIMULATION_BUDGET: Duration = Duration::from_secs(5 * 60);
const FUZZ_BUDGET: Duration = Duration::from_secs(5 * 60);
const SOAK_BUDGET: Duration = Duration::from_secs(8 * 60);
const MATRIX_BUDGET: Duration = Duration::from_secs(20 * 60);
const TEST_BUDGET: Duration = Duration::from_secs(30 * 60);

pub(crate) fn run(mut args: Parser) -> Result {
    let mut provision = false;
    let mut filters = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("provision") => provision = true,
            Arg::Value(filter) => filters.push(filter),
            other => return Err(other.unexpected().into()),
        }
    }
    all(provision, &filters)
}

pub(crate) fn all(provision: bool, filters: &[OsString]) -> Result {
    let mut stages = Stages::new("test");
    let outcome = steps(&mut stages, provision, filters);
    let summary = stages.finish();
    outcome.and(summary)
}

fn steps(stages: &mut Stages, provision: bool, filters: &[OsString]) -> Result {
    if provision {
        stages.run("engine", SETUP_BUDGET, engine::provision)?;
        stages.run("images", SETUP_BUDGET, || images::ensure(IMAGES))?;
        stages.run("programs", SETUP_BUDGET, programs::provision)?;
    }
    if filters.is_empty() {
        // A failure is kept for the end.
        let _ = stages.run("simulation", SIMULATION_BUDGET, simulate::standard);
        if provision || fuzz::has_compiler() {
            let _ = stages.run("fuzzing", FUZZ_BUDGET, fuzz::briefly);
        } else {
            stages.skip("fuzzing", "there is no C++ compiler; on Debian: `apt-get install g++`");
        }
    }
    if !provision {
        return stages.run("tests", TEST_BUDGET, || run_process(&mut tests(&[], filters)));
    }
    // First as on any machine with an engine: every server in a container of this run. Then everything, the
    // matrix included, on servers that are kept running and named by URL.
    let _ = stages.run("matrix", MATRIX_BUDGET, || {
        run_process(require_all(&mut tests(&["--test=matrix"], filters)).envs(images::variables(IMAGES)))
    });
    if filters.is_empty() {
        let _ = stages.run("soak", SOAK_BUDGET, soak::short);
    }
    let mut started = Vec::new();
    stages.run("services", SETUP_BUDGET, || {
        started = services::start_all()?;
        Ok(())
    })?;
    let tested = stages.run("tests", TEST_BUDGET, || {
        let mut command = tests(&["--no-fail-fast"], filters);
        run_process(require_all(&mut command).envs(images::variables(IMAGES)).envs(services::variables()))
    });
    services::stop(&started)?;
    tested
}

fn tests(args: &[&str], filters: &[OsString]) -> Command {
    let mut command = cargo();
    command.args(["test", "--workspace", "--all-features"]).args(args);
    if !filters.is_empty() {
        command.arg("--").args(filters);
    }
    command
}

/// Makes a test fail that finds no server.
fn require_all(command: &mut Command) -> &mut Command {
    command.env("CONFORMANCE_REQUIRE", "all")
}
