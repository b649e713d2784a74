//! Everything that is run around the code. `cargo xtask` alone lists the commands.
//!
//! A command is a module with a `run` function, its [`Help`] and a line in [`COMMANDS`].
//!
//! Kept tools do the work; these modules start them in the right order, on servers that are there, and say what to do
//! when one is missing. A module that does a tool's work itself says why:
//!
//! | module | the tool that does the work | the part that is ours, and why |
//! |---|---|---|
//! | `test`, `ci`, `stage` | cargo | the order of the stages, their budgets, and a word on what could not run |
//! | `conformance` | libtest-mimic | progress and reports: cases share containers, which the processes of cargo-nextest cannot |
//! | `simulate`, `soak` | the programs of `conformance-tests` | profiles, seeds and servers for them |
//! | `beside` | git, cargo | the programs of an older revision, which run beside the present ones |
//! | `fuzz` | libFuzzer | its build without cargo-fuzz, so that nothing has to be installed |
//! | `lint` | rustfmt, clippy, rustdoc, cargo-deny, cargo-semver-checks | the rules that only this project has |
//! | `bench` | the programs in `session-cached-db/benches`, wrk | aims, and a page of dots: a plotting crate draws axes and series |
//! | `images` | mmdebstrap, docker | recipes for machines that reach no container registry |
//! | `services`, `engine` | docker | the table of servers that the tests have, too: Debian's engine has no Compose |
//! | `scaffold` | | edits of files that exist: cargo-generate makes directories |
//! | `programs`, `packages` | apt | the list of what the tests use beside servers |
//! | `matrix`, `help`, `process` | lexopt | a few dozen lines each |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

mod bench;
mod beside;
mod ci;
mod conformance;
mod engine;
mod fuzz;
mod help;
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

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use help::Help;
use lexopt::Parser;

/// The result of a command. A person reads the error: its message says what to do.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Command {
    name: &'static str,
    help: Help,
    run: fn(Parser) -> Result,
}

const COMMANDS: &[Command] = &[
    Command { name: "test", help: test::HELP, run: test::run },
    Command { name: "conformance", help: conformance::HELP, run: conformance::run },
    Command { name: "simulate", help: simulate::HELP, run: simulate::run },
    Command { name: "fuzz", help: fuzz::HELP, run: fuzz::run },
    Command { name: "soak", help: soak::HELP, run: soak::run },
    Command { name: "lint", help: lint::HELP, run: lint::run },
    Command { name: "bench", help: bench::HELP, run: bench::run },
    Command { name: "ci", help: ci::HELP, run: ci::run },
    Command { name: "images", help: images::HELP, run: images::run },
    Command { name: "services", help: services::HELP, run: services::run },
    Command { name: "new-cache", help: scaffold::CACHE_HELP, run: scaffold::new_cache },
    Command { name: "new-db", help: scaffold::DB_HELP, run: scaffold::new_db },
    Command { name: "matrix", help: matrix::HELP, run: matrix::run },
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
    match Request::parse(std::env::args_os().skip(1))? {
        Request::List => print!("{}", list()),
        Request::Help(command) => print!("{}", command.help.text()),
        Request::Run(command, arguments) => return command.start(arguments),
    }
    Ok(())
}

/// One invocation: help is recognized here, for every command alike.
enum Request {
    List,
    Help(&'static Command),
    Run(&'static Command, Vec<OsString>),
}

impl Request {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self> {
        let Some(first) = arguments.next() else { return Ok(Self::List) };
        if is_help(&first) {
            return Ok(Self::List);
        }
        if first == "help" {
            return match arguments.next() {
                Some(name) if !is_help(&name) => Command::named(&name).map(Self::Help),
                _ => Ok(Self::List),
            };
        }
        let command = Command::named(&first)?;
        let arguments: Vec<_> = arguments.collect();
        // The arguments after `--` are for another program.
        let is_asking = arguments.iter().take_while(|argument| *argument != "--").any(|one| is_help(one));
        Ok(if is_asking { Self::Help(command) } else { Self::Run(command, arguments) })
    }
}

fn is_help(argument: &OsStr) -> bool {
    argument == "--help" || argument == "-h"
}

impl Command {
    fn named(name: &OsStr) -> Result<&'static Self> {
        COMMANDS.iter().find(|command| name == command.name).ok_or_else(|| {
            let kind = if name.to_string_lossy().starts_with('-') { "option" } else { "command" };
            format!("there is no {kind} {name:?}; `cargo xtask --help` lists the commands").into()
        })
    }

    fn start(&self, arguments: Vec<OsString>) -> Result {
        (self.run)(Parser::from_args(arguments)).map_err(|error| match error.downcast::<lexopt::Error>() {
            Ok(misuse) => {
                let Self { name, help, .. } = self;
                format!(
                    "{misuse}\nusage: cargo xtask {}\n`cargo xtask {name} --help` explains each option",
                    help.usage
                )
                .into()
            }
            Err(error) => error,
        })
    }
}

fn list() -> String {
    let summaries = COMMANDS.iter().map(|command| (command.name, command.help.summary));
    format!(
        "Everything that is run around the code.\n\nUsage: cargo xtask COMMAND [OPTION..]\n\n{}\n\
         `cargo xtask COMMAND --help` explains a command.\n",
        help::columns(summaries, "")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Request {
        Request::parse(line.iter().map(OsString::from)).unwrap()
    }

    #[test]
    fn help_of_every_command_is_recognized_in_each_form() {
        for command in COMMANDS {
            for line in [&["help", command.name][..], &[command.name, "-h"], &[command.name, "x", "--help"]] {
                let Request::Help(found) = parsed(line) else { panic!("{line:?}") };
                assert_eq!(found.name, command.name);
            }
        }
    }

    #[test]
    fn help_of_every_command_is_complete() {
        for Command { name, help, .. } in COMMANDS {
            assert!(help.usage.starts_with(name), "{name}");
            assert!(!help.examples.is_empty(), "{name}");
            for (example, _) in help.examples {
                assert!(example.starts_with(name), "{example}");
            }
            for (left, about) in help.options {
                assert!(about.ends_with('.') && !about.contains('\n'), "{name} {left}: {about}");
                let is_in_usage = help.usage.contains(left);
                assert!(is_in_usage || *name == "lint", "{name}: the usage does not show {left}");
            }
        }
    }

    /// Returns the files of a command that is a folder.
    fn parts_of(name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(format!("{}/src/{name}", env!("CARGO_MANIFEST_DIR")));
        let files =
            entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        files
            .filter(|file| file.ends_with(".rs") && file != "mod.rs")
            .map(|file| format!("{name}/{file}"))
            .collect()
    }

    #[test]
    fn help_lists_the_options_that_the_code_takes() {
        let read =
            |path: String| std::fs::read_to_string(format!("{}/src/{path}", env!("CARGO_MANIFEST_DIR")));
        for Command { name, help, .. } in COMMANDS {
            let parts = [format!("{name}.rs"), format!("{name}/mod.rs")].into_iter().chain(parts_of(name));
            let source: String = parts.filter_map(|path| read(path).ok()).collect();
            // Both scaffolds are one module, and take a name only.
            if source.is_empty() {
                continue;
            }
            let taken = source.split("Arg::Long(\"").skip(1).filter_map(|rest| rest.split('"').next());
            for option in taken {
                let is_listed =
                    |(left, _): &(&str, &str)| left.split(' ').next() == Some(format!("--{option}").as_str());
                assert!(help.options.iter().any(is_listed), "{name}: --{option} has no line");
            }
            for (left, _) in help.options {
                let option = left.split(' ').next().unwrap().strip_prefix("--");
                assert!(option.is_none_or(|it| source.contains(&format!("\"{it}\""))), "{name}: {left}");
            }
        }
    }

    #[test]
    fn help_behind_two_dashes_is_left_to_the_other_program() {
        let Request::Run(command, arguments) = parsed(&["test", "--", "--help"]) else { panic!() };
        assert_eq!((command.name, arguments.len()), ("test", 2));
    }

    #[test]
    fn help_without_a_command_lists_every_command() {
        for line in [&[][..], &["help"], &["--help"], &["-h"], &["help", "--help"]] {
            assert!(matches!(parsed(line), Request::List), "{line:?}");
        }
        let list = list();
        for Command { name, help, .. } in COMMANDS {
            let is_line = |line: &&str| line.trim_start().starts_with(&format!("{name} "));
            assert_eq!(list.lines().filter(is_line).count(), 1, "{name}");
            assert!(list.contains(help.summary), "{name}");
        }
    }

    #[test]
    fn unknown_option_of_a_command_names_its_help() {
        for command in COMMANDS {
            let error = command.start(vec!["--no-such-option".into()]).unwrap_err().to_string();
            let expected = format!("`cargo xtask {} --help`", command.name);
            assert!(error.contains("--no-such-option") && error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn unknown_command_or_option_names_the_list() {
        for name in ["tset", "--no-such-option"] {
            for line in [&[name][..], &["help", name]] {
                let error = Request::parse(line.iter().map(OsString::from)).err().unwrap().to_string();
                assert!(error.contains(name) && error.contains("`cargo xtask --help`"), "{error}");
            }
        }
    }
}
