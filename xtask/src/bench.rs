//! `cargo xtask bench`: what the store costs on top of the parts it is made of.

use lexopt::{Arg, Parser};

use crate::Result;
use crate::process::{cargo, run as run_process};

pub(crate) const USAGE: &str = "bench [--json]";
pub(crate) const SUMMARY: &str =
    "Measure the store against the parts it is made of, as ratios. With --json, print one JSON object.";

pub(crate) fn run(mut args: Parser) -> Result {
    let mut command = cargo();
    command.args(["bench", "--package", "session-cached-db", "--bench", "ratios", "--"]);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("json") => command.arg("--json"),
            other => return Err(other.unexpected().into()),
        };
    }
    run_process(&mut command)
}
