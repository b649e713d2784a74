//! `cargo xtask conformance`: runs the matrix of all backends, with progress, a summary and a report.
//!
//! cargo-nextest has progress and JUnit XML, and does not fit: it runs each case in a process of its own, and
//! the cases share the containers that the process of the matrix starts. The three reports are written by
//! hand, because a crate for JUnit or for HTML brings more crates than it saves lines, and all of them are
//! compiled before any command of xtask can run.

mod html;
mod junit;
mod markdown;
mod progress;
mod results;
mod selection;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use lexopt::{Arg, Parser, ValueExt};

use crate::help::Help;
use crate::process::{cargo, shown};
use crate::table::IMAGES;
use crate::{Result, images};
use progress::Progress;
use results::{Event, Results};
use selection::Selection;

pub(crate) const HELP: Help = Help {
    usage: "conformance [--cache NAME].. [--db NAME].. [--report DIR]",
    summary: "Runs the conformance suite on real servers: each cache, each database and every pair.",
    details: "",
    options: &[
        ("--cache NAME", "Tests this cache, alone and in its pairs; may be repeated."),
        ("--db NAME", "Tests this database, alone and in its pairs; may be repeated."),
        ("--report DIR", "Writes the results to DIR as JUnit XML, Markdown and one HTML page."),
    ],
    examples: &[(
        "conformance --cache redis --db postgres --report target/conformance",
        "one pair, with a report",
    )],
};

pub(crate) fn run(mut args: Parser) -> Result {
    let (mut caches, mut databases, mut report) = (Vec::new(), Vec::new(), None::<PathBuf>);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("cache") => caches.push(args.value()?.string()?),
            Arg::Long("db") => databases.push(args.value()?.string()?),
            Arg::Long("report") => report = Some(args.value()?.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    let selection = Selection::new(caches, databases)?;
    if let Some(directory) = &report {
        // Before the tests, so that a bad path fails at once and not after ten minutes.
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("{} cannot be made: {error}", directory.display()))?;
    }
    let begun = Instant::now();
    let mut results = Results::default();
    let mut has_ended_well = true;
    for target in selection.targets() {
        has_ended_well &= test(target, &selection, &mut results)?;
    }
    results.took = begun.elapsed();
    print!("\n{}", markdown::summary(&results));
    if let Some(directory) = &report {
        write_report(directory, &results)?;
    }
    results.verdict()?;
    if has_ended_well { Ok(()) } else { Err("the tests ended with an error, see above".into()) }
}

/// Runs one test target, and returns whether it ended without an error.
fn test(target: &str, selection: &Selection, results: &mut Results) -> Result<bool> {
    let mut command = command(target, selection);
    let line = shown(&command);
    eprintln!("$ {line}");
    let failed = |error: std::io::Error| format!("`{line}` could not be run: {error}");
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut progress = Progress::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            match Event::parse(&line.map_err(failed)?) {
                Some(Event::Begun(count)) => progress.expect(count),
                Some(Event::Ended(case)) => {
                    progress.report(&case);
                    if selection.has(&case) {
                        results.cases.push(case);
                    }
                }
                None => {}
            }
        }
    }
    progress.end();
    Ok(child.wait().map_err(failed)?.success())
}

fn command(target: &str, selection: &Selection) -> Command {
    let mut command = cargo();
    command.args(["test", "--workspace", "--all-features", "--test", target]);
    command.args(["--", "--format", "json"]);
    let built = IMAGES.iter().copied().filter(|image| images::is_built(image)).collect::<Vec<_>>();
    command.envs(images::variables(&built)).envs(selection.variables());
    command
}

fn write_report(directory: &Path, results: &Results) -> Result {
    let files = [
        ("conformance.xml", junit::document(results)),
        ("conformance.md", markdown::document(results)),
        ("conformance.html", html::page(results)),
    ];
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("{}", path.display());
    }
    Ok(())
}
