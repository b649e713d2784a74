//! Completions for shells.

use clap::CommandFactory as _;

use crate::args::{Arguments, Completions};
use crate::exit::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(command: &Completions, output: &Output) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(command.shell, &mut Arguments::command(), "sessionctl", &mut script);
    output.raw(&script)?;
    Ok(Exit::Done)
}
