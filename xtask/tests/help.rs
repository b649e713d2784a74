//! The help as a caller gets it: on the output, with exit code 0.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output};

fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).output().unwrap()
}

#[test]
fn help_of_every_command_is_printed_with_exit_code_0() {
    let list = String::from_utf8(xtask(&[]).stdout).unwrap();
    let commands: Vec<_> =
        list.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(commands.len() > 10, "{list}");
    for command in commands {
        for line in [&[command, "--help"][..], &[command, "-h"], &["help", command]] {
            let output = xtask(line);
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(0), "{line:?}");
            assert!(text.contains(&format!("\nUsage: cargo xtask {command}")), "{line:?}: {text}");
            assert!(text.contains("\n  -h, --help") && text.contains("\nExample"), "{line:?}: {text}");
        }
    }
}

#[test]
fn unknown_option_fails_and_names_the_help() {
    let output = xtask(&["lint", "--no-such-option"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("`cargo xtask lint --help`"), "{error}");
}
