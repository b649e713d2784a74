//! Completions for shells.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::{Arguments, Completions};
use crate::exit::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(command: &Completions, output: &Output) -> Result<Exit, Failure> {
    output.raw(&script(command.shell))?;
    Ok(Exit::Done)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "sessionctl", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for command in Arguments::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }
}
