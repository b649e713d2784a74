//! sessionctl: a program with which operators look after sessions. See `docs/sessionctl.md`.

#![allow(
    clippy::disallowed_methods,
    reason = "the rule is for the library: this is a program, on a machine with a clock"
)]

mod args;
mod check;
mod clear_expired;
mod clock;
mod completions;
mod connect;
mod doctor;
mod exit;
mod interrupt;
mod list;
mod migrate;
mod output;
mod progress;
mod revoke;
mod rewrite;
mod show;
mod stats;
mod sweep;
mod vacuum;

use std::process::ExitCode;

use args::{Arguments, Command};
use exit::{Exit, Failure};
use interrupt::Interrupt;
use output::Output;
use rewrite::Rewriting;

fn main() -> ExitCode {
    let arguments = match args::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            // If the help cannot be written, an error message cannot be either.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    match run(arguments) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::complain(&failure.to_string());
            failure.exit().into()
        }
    }
}

fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Usage(format!("no runtime could be made: {error}")))?;
    runtime.block_on(async {
        let interrupt = Interrupt::listen();
        let output = Output::new(arguments.json);
        let at = &arguments.connection;
        match arguments.command {
            // These change nothing, or the database undoes them: they end at once.
            Command::Migrate(command) => interrupt.ends(migrate::run(at, command, &output)).await,
            Command::Vacuum => interrupt.ends(vacuum::run(at, &output)).await,
            Command::Stats(command) => interrupt.ends(stats::run(at, &command, &output)).await,
            Command::List(command) => interrupt.ends(list::run(at, &command, &output)).await,
            Command::Show(command) => interrupt.ends(show::run(at, &command, &output)).await,
            Command::Check(command) => interrupt.ends(check::run(at, &command, &output)).await,
            Command::Doctor => interrupt.ends(doctor::run(at, &output)).await,
            Command::Completions(command) => completions::run(&command, &output),
            // These write in batches, and end between two batches.
            Command::ClearExpired(command) => clear_expired::run(at, &command, &output, &interrupt).await,
            Command::Revoke(command) => revoke::run(at, &command, &output, &interrupt).await,
            Command::HashKeys(command) => {
                rewrite::run(Rewriting::HashKeys, at, &command, &output, &interrupt).await
            }
            Command::Reseal(command) => {
                rewrite::run(Rewriting::Reseal, at, &command, &output, &interrupt).await
            }
        }
    })
}
