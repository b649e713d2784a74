//! `cargo xtask fuzz`: feeds the parsers with hostile input that libFuzzer makes up, guided by the code that
//! it reaches.
//!
//! The package in [`PACKAGE`] is laid out for cargo-fuzz, which can run it too: `cargo fuzz run --sanitizer
//! none TARGET` on a stable toolchain, any sanitizer on a nightly one. Here it is built without that program,
//! so that nothing has to be installed but a C++ compiler.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lexopt::{Arg, Parser, ValueExt as _};

use crate::Result;
use crate::help::Help;
use crate::process::{cargo, output, run as run_process, shown, which};

pub(crate) const HELP: Help = Help {
    usage: "fuzz [TARGET..] [--seconds N] [--replay FILE]",
    summary: "Feeds what reads foreign bytes with input that libFuzzer makes up.",
    details: "Targets read cache entries, records, payloads, keys, URLs and Django's rows.",
    options: &[
        ("TARGET", "Fuzzes this target; may be repeated. Defaults to all."),
        ("--seconds N", "Fuzzes each target for N seconds. Defaults to 10."),
        ("--replay FILE", "Runs one target with one file."),
    ],
    examples: &[("fuzz envelope --seconds 60", "one target for a minute")],
};

pub(crate) const PACKAGE: &str = "conformance-tests/fuzz";
const BUILT: &str = "target/fuzz";

/// The effort for each target in `cargo xtask test`: a number of inputs, within a number of seconds.
const BRIEFLY: Effort = Effort { seconds: 5, runs: Some(20_000), seed: Some(1) };

/// The effort spent on one target.
#[derive(Clone, Copy)]
struct Effort {
    seconds: u32,
    runs: Option<u32>,
    seed: Option<u32>,
}

/// Coverage for libFuzzer to go by. No sanitizer: these need a nightly compiler, and there is no unsafe code
/// here.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Ccodegen-units=1",
];

pub(crate) fn run(mut args: Parser) -> Result {
    let mut targets = Vec::new();
    let mut seconds = 10;
    let mut replay = None;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("seconds") => seconds = args.value()?.string()?.parse()?,
            Arg::Long("replay") => replay = Some(PathBuf::from(args.value()?)),
            Arg::Value(target) => targets.push(target.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let known = all_targets()?;
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        return Err(format!("there is no target {unknown:?}; there are {}", known.join(", ")).into());
    }
    let effort = Effort { seconds, runs: None, seed: None };
    match (replay, &targets[..]) {
        (Some(file), [target]) => {
            let programs = build()?;
            run_process(Command::new(programs.join(target)).arg(file))
        }
        (Some(_), _) => Err("--replay takes one target".into()),
        (None, []) => fuzz(&known, effort),
        (None, targets) => fuzz(targets, effort),
    }
}

/// Fuzzes every target briefly, with the same inputs every time as far as time allows. Part of `cargo xtask
/// test`.
pub(crate) fn briefly() -> Result {
    fuzz(&all_targets()?, BRIEFLY)
}

/// Returns whether libFuzzer can be built.
pub(crate) fn has_compiler() -> bool {
    ["c++", "g++", "clang++"].iter().any(|compiler| which(compiler).is_some())
}

fn fuzz(targets: &[String], effort: Effort) -> Result {
    let programs = build()?;
    let mut failed = Vec::new();
    for target in targets {
        match one(&programs, target, effort) {
            Ok(line) => eprintln!("{target:<10} {line}"),
            Err(error) => {
                eprintln!("{target:<10} FAILED: {error}");
                failed.push(target.as_str());
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("fuzzing failed: {}", failed.join(", ")).into()) }
}

fn all_targets() -> Result<Vec<String>> {
    let files = std::fs::read_dir(Path::new(PACKAGE).join("fuzz_targets"))?;
    let mut targets = Vec::new();
    for file in files {
        targets.extend(file?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    targets.sort();
    Ok(targets)
}

/// Builds all targets, and returns their directory.
fn build() -> Result<PathBuf> {
    if !has_compiler() {
        return Err("libFuzzer needs a C++ compiler; on Debian: `apt-get install g++`".into());
    }
    let about = output(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
    let mut command = cargo();
    command
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(Path::new(PACKAGE).join("Cargo.toml"));
    // Naming the target keeps the flags from build scripts and macros.
    command.args(["--target", host, "--target-dir", BUILT]).env("RUSTFLAGS", FLAGS.join(" "));
    run_process(&mut command)?;
    Ok(Path::new(BUILT).join(host).join("release"))
}

/// Runs one target, and returns its result as a line.
fn one(programs: &Path, target: &str, effort: Effort) -> Result<String> {
    // libFuzzer keeps what it finds in the first directory, and reads the seeds from the second.
    let (found, seeds) =
        (Path::new(BUILT).join("corpus").join(target), Path::new(PACKAGE).join("corpus").join(target));
    let artifacts = Path::new(PACKAGE).join("artifacts").join(target);
    std::fs::create_dir_all(&found)?;
    std::fs::create_dir_all(&artifacts)?;
    let mut command = Command::new(programs.join(target));
    command.arg(&found).arg(&seeds).arg(format!("-max_total_time={}", effort.seconds));
    command.args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=2048", "-max_len=4096"]);
    let mut prefix = OsString::from("-artifact_prefix=");
    prefix.push(&artifacts);
    prefix.push("/");
    command.arg(prefix);
    command.args(effort.runs.map(|runs| format!("-runs={runs}")));
    command.args(effort.seed.map(|seed| format!("-seed={seed}")));
    let done = command.stdin(Stdio::null()).output();
    let done = done.map_err(|error| format!("`{}` could not be started: {error}", shown(&command)))?;
    let log = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        let lines: Vec<_> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
        return Err(format!(
            "{}\n{last}\nthe input is in {}; run it again with `cargo xtask fuzz {target} --replay FILE`, and keep it as a seed \
             in {} when it is mended",
            done.status,
            artifacts.display(),
            seeds.display()
        )
        .into());
    }
    let stat = |name: &str| {
        let line =
            log.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    let runs = stat("number_of_executed_units");
    if runs <= 1 {
        return Err("no input was run".into());
    }
    Ok(format!(
        "{runs:>9} inputs, {:>7} per second, {:>5} of them new",
        stat("average_exec_per_sec"),
        stat("new_units_added")
    ))
}
