//! `cargo xtask ci`: runs what `.ci/run` runs, for a developer.

use lexopt::Parser;

use crate::help::Help;
use crate::{Result, lint, test};

pub(crate) const HELP: Help = Help {
    usage: "ci",
    summary: "Lints, then tests with everything that has to be provisioned for it.",
    details: "This is what .ci/run does, for a developer.",
    options: &[],
    examples: &[("ci", "as root on a Debian machine")],
};

pub(crate) fn run(mut args: Parser) -> Result {
    if let Some(arg) = args.next()? {
        return Err(arg.unexpected().into());
    }
    lint::all()?;
    test::all(true, &[])
}
