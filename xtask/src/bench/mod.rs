//! `cargo xtask bench`: measures the store against the parts it is made of.
//!
//! Two programs measure, because the stores of tower-sessions cannot be linked with ours. Each reports its
//! progress on the error stream, and prints its figures as JSON at the end.

mod http;
mod plot;
mod scale;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lexopt::{Arg, Parser, ValueExt as _};
use serde_json::{Map, Value};

use crate::Result;
use crate::help::Help;
use crate::process::cargo;

pub(crate) const HELP: Help = Help {
    usage: "bench [--json] [--quick] [--crowds] [GROUP..]\n       cargo xtask bench scale [--background] [--status] [--fresh] [--svg FILE] [PART..]\n       cargo xtask bench http [--json] [--quick] [--add] [--svg FILE] [GROUP..]",
    summary: "Measures the store against the parts it is made of, as ratios, and plots them.",
    details: "Servers are found by the variables that `cargo xtask services up` prints.\n\
        `bench scale` measures every operation on tables of up to ten million sessions. It takes hours and 40 GB of disk; a run that was\n\
        cut off goes on where it was, and its tables stay.",
    options: &[
        (
            "GROUP",
            "Measures this group; may be repeated: moka, redis, memcached, sqlite, postgres, mysql, mariadb, crowd, near, lazy, size, reap, tower-sessions. Defaults to all.",
        ),
        ("--json", "Prints one object of all ratios instead of a table."),
        ("--quick", "Measures few rounds."),
        (
            "--crowds",
            "Prints a table of 1 to 512 savers of one session instead; its groups are pairs, such as redis+postgres.",
        ),
        ("--background", "scale: goes on in the background, with its progress in target/bench/scale.log."),
        (
            "--status",
            "scale: lists the parts and which are done, and prints their figures. Measures nothing.",
        ),
        ("--fresh", "scale: measures parts again that are done."),
        ("--svg FILE", "scale, http: writes the plot to this file, too."),
        ("PART", "scale: measures the parts that contain this text; may be repeated. `--status` lists all."),
        (
            "http",
            "Measures pages over HTTP instead, against tower-sessions and actix-session; its groups are axum, actix, moka+sqlite, redis+postgres, memcached+mysql, near+redis+postgres.",
        ),
        ("--add", "Keeps the rows over HTTP of earlier runs that this one does not measure."),
    ],
    examples: &[
        ("bench --quick moka redis", "few rounds of two groups"),
        ("bench scale --background", "all parts of the measurement on large tables"),
        ("bench scale postgres/moka/1000000", "one part of it"),
        ("bench --crowds redis+postgres", "the savers of one pair"),
        ("bench http redis+postgres axum", "the pages of one pair and one framework"),
    ],
};

/// The features with which all backends can be linked and reached together.
const FEATURES: &str = "memcached,moka,mysql-rsa,near,postgres,redis-cluster,sqlite";

const TOWER_SESSIONS: &str = "tower-sessions";
const TOWER_SESSIONS_MANIFEST: &str = "session-cached-db/benches/vs-tower-sessions/Cargo.toml";

/// The directory of the plots.
const PLOTS: &str = "target/bench";

/// One ratio, as a measuring program prints it.
pub(crate) struct Figure {
    name: String,
    what: String,
    value: f64,
    at_most: Option<f64>,
    at_least: Option<f64>,
    rounds: Vec<f64>,
}

pub(crate) fn run(mut args: Parser) -> Result {
    let first = args.try_raw_args().and_then(|arguments| arguments.peek().map(ToOwned::to_owned));
    if first.is_some_and(|first| first == scale::NAME) {
        args.next()?;
        return scale::run(args);
    }
    let (mut as_json, mut is_quick, mut crowds, mut adds) = (false, false, false, false);
    let (mut svg, mut groups) = (None, Vec::new());
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("json") => as_json = true,
            Arg::Long("quick") => is_quick = true,
            Arg::Long("crowds") => crowds = true,
            Arg::Long("add") => adds = true,
            Arg::Long("svg") => svg = Some(PathBuf::from(args.value()?)),
            Arg::Value(group) => groups.push(group.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if let Some((_, rest)) = groups.split_first().filter(|(first, _)| *first == "http") {
        return http::run(rest, is_quick, adds, as_json, svg.as_deref());
    }
    if adds || svg.is_some() {
        return Err("--add and --svg are options of `bench http`, and --svg of `bench scale`".into());
    }
    if crowds {
        return crate::process::run(ratios().arg("--crowds").args(&groups));
    }
    let wants_all = groups.is_empty();
    let wants_theirs = wants_all || groups.iter().any(|group| group == TOWER_SESSIONS);
    groups.retain(|group| group != TOWER_SESSIONS);

    let mut figures = Vec::new();
    if wants_all || !groups.is_empty() {
        let mut command = ratios();
        command.args(is_quick.then_some("--quick")).args(&groups);
        figures.extend(measure(&mut command)?);
    }
    if wants_theirs {
        let mut command = cargo();
        command.args(["run", "--release", "--manifest-path", TOWER_SESSIONS_MANIFEST]);
        command.args(["--target-dir", "target/vs-tower-sessions", "--"]).args(is_quick.then_some("--quick"));
        figures.extend(measure(&mut command)?);
    }
    if as_json {
        println!("{}", object(&figures));
    } else {
        print!("{}", table(&figures));
    }
    let plots = plot::write(Path::new(PLOTS), "ratios", &figures)?;
    eprintln!("plots: {}", plots.display());
    Ok(())
}

/// Returns the program that measures our stores.
fn ratios() -> Command {
    benchmark("ratios")
}

/// Returns the command that runs a benchmark of the store. The arguments that follow are the benchmark's own.
fn benchmark(name: &str) -> Command {
    let mut command = cargo();
    command.args(["bench", "--package", "session-cached-db", "--bench", name, "--features", FEATURES, "--"]);
    command
}

/// Runs a program that measures, and returns its figures.
fn measure(command: &mut Command) -> Result<Vec<Figure>> {
    let line = crate::process::shown(command);
    eprintln!("$ {line}");
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("`{line}` failed: {}", output.status).into());
    }
    let printed: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    printed.iter().map(|figure| Figure::read(figure).ok_or_else(|| "a figure is incomplete".into())).collect()
}

impl Figure {
    fn read(figure: &Value) -> Option<Self> {
        Some(Self {
            name: figure["name"].as_str()?.to_owned(),
            what: figure["what"].as_str()?.to_owned(),
            value: figure["value"].as_f64()?,
            at_most: figure["at_most"].as_f64(),
            at_least: figure["at_least"].as_f64(),
            rounds: figure["rounds"].as_array()?.iter().filter_map(Value::as_f64).collect(),
        })
    }

    fn meets_its_aim(&self) -> bool {
        self.at_most.is_none_or(|aim| self.value <= aim) && self.at_least.is_none_or(|aim| self.value >= aim)
    }

    fn aim(&self) -> String {
        match (self.at_most, self.at_least) {
            (Some(aim), _) => format!("at most {aim}"),
            (_, Some(aim)) => format!("at least {aim}"),
            _ => String::new(),
        }
    }
}

/// Returns the median. For an even number of values, it is the greater of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn object(figures: &[Figure]) -> Value {
    let rounded = |value: f64| Value::from((value * 1_000.0).round() / 1_000.0);
    Value::Object(
        figures.iter().map(|figure| (figure.name.clone(), rounded(figure.value))).collect::<Map<_, _>>(),
    )
}

/// Returns a table in Markdown, which can be pasted into a document.
fn table(figures: &[Figure]) -> String {
    let mut table = String::from("| ratio | measured | aim | what against what |\n|---|---|---|---|\n");
    for figure in figures {
        let missed = if figure.meets_its_aim() { "" } else { " (missed)" };
        table.push_str(&format!(
            "| `{}` | {:.2}{missed} | {} | {} |\n",
            figure.name,
            figure.value,
            figure.aim(),
            figure.what
        ));
    }
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn figure(name: &str, value: f64, at_most: Option<f64>) -> Figure {
        let printed = json!({
            "name": name, "what": "this against <that>", "value": value,
            "at_most": at_most, "at_least": null, "rounds": [value * 0.9, value, value * 1.1],
        });
        Figure::read(&printed).unwrap()
    }

    #[test]
    fn json_is_one_object_of_named_ratios() {
        let figures = [figure("moka_hit", 1.234_56, Some(1.25)), figure("save.sqlite", 2.0, None)];
        assert_eq!(object(&figures), json!({ "moka_hit": 1.235, "save.sqlite": 2.0 }));
    }

    #[test]
    fn table_marks_a_missed_aim() {
        let table = table(&[figure("met", 1.0, Some(1.2)), figure("not_met", 1.3, Some(1.2))]);
        assert!(table.contains("| `met` | 1.00 | at most 1.2 |"), "{table}");
        assert!(table.contains("| `not_met` | 1.30 (missed) | at most 1.2 |"), "{table}");
    }
}
