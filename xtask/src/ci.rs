//! `cargo xtask ci`: what `.ci/run` does, for a developer.

use lexopt::Parser;

use crate::{Result, lint, test};

pub(crate) const USAGE: &str = "ci";
pub(crate) const SUMMARY: &str = "Lint, then test with everything that has to be provisioned for it.";

pub(crate) fn run(mut args: Parser) -> Result {
    if let Some(arg) = args.next()? {
        return Err(arg.unexpected().into());
    }
    lint::all()?;
    test::all(true, &[])
}
