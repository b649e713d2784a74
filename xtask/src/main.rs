//! Everything that is run around the code. `cargo xtask` alone prints what there is.
//!
//! A command is a module with a `run` function and a line in [`COMMANDS`].

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

mod bench;
mod ci;
mod conformance;
mod engine;
mod fuzz;
mod images;
mod lint;
mod matrix;
mod packages;
mod process;
mod programs;
mod scaffold;
mod services;
mod simulate;
mod soak;
mod stage;
#[allow(dead_code, reason = "shared with the tests of conformance-tests, which use other parts of it")]
#[path = "../../conformance-tests/servers/table.rs"]
mod table;
mod test;

use std::path::Path;
use std::process::ExitCode;

use lexopt::Parser;

/// Errors here are read by people and by nobody else: a message that names what to do.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Command {
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    run: fn(Parser) -> Result,
}

const COMMANDS: &[Command] = &[
    Command { name: "test", usage: test::USAGE, summary: test::SUMMARY, run: test::run },
    Command {
        name: "conformance",
        usage: conformance::USAGE,
        summary: conformance::SUMMARY,
        run: conformance::run,
    },
    Command { name: "simulate", usage: simulate::USAGE, summary: simulate::SUMMARY, run: simulate::run },
    Command { name: "fuzz", usage: fuzz::USAGE, summary: fuzz::SUMMARY, run: fuzz::run },
    Command { name: "soak", usage: soak::USAGE, summary: soak::SUMMARY, run: soak::run },
    Command { name: "lint", usage: lint::USAGE, summary: lint::SUMMARY, run: lint::run },
    Command { name: "bench", usage: bench::USAGE, summary: bench::SUMMARY, run: bench::run },
    Command { name: "ci", usage: ci::USAGE, summary: ci::SUMMARY, run: ci::run },
    Command { name: "images", usage: images::USAGE, summary: images::SUMMARY, run: images::run },
    Command { name: "services", usage: services::USAGE, summary: services::SUMMARY, run: services::run },
    Command {
        name: "new-cache",
        usage: scaffold::CACHE_USAGE,
        summary: scaffold::CACHE_SUMMARY,
        run: scaffold::new_cache,
    },
    Command {
        name: "new-db",
        usage: scaffold::DB_USAGE,
        summary: scaffold::DB_SUMMARY,
        run: scaffold::new_db,
    },
    Command { name: "matrix", usage: matrix::USAGE, summary: matrix::SUMMARY, run: matrix::run },
];

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask has no parent directory")?;
    std::env::set_current_dir(root)?;

    let mut args = Parser::from_env();
    match args.next()? {
        None | Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h')) => {
            print!("{}", help());
            Ok(())
        }
        Some(lexopt::Arg::Value(name)) => {
            let Some(command) = COMMANDS.iter().find(|command| name == command.name) else {
                return Err(format!("there is no command {name:?}; `cargo xtask` lists them").into());
            };
            (command.run)(args).map_err(|error| match error.downcast::<lexopt::Error>() {
                Ok(misuse) => format!("{misuse}\nusage: cargo xtask {}", command.usage).into(),
                Err(error) => error,
            })
        }
        Some(other) => Err(other.unexpected().into()),
    }
}

fn help() -> String {
    let mut text = String::from("Everything that is run around the code.\n\n");
    for command in COMMANDS {
        text.push_str(&format!("cargo xtask {}\n    {}\n\n", command.usage, command.summary));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_shows_every_command_once() {
        let help = help();
        for command in COMMANDS {
            assert!(command.usage.starts_with(command.name), "{}", command.usage);
            assert_eq!(help.matches(&format!("cargo xtask {}\n", command.usage)).count(), 1);
        }
    }
}
