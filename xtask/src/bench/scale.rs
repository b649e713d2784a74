//! `cargo xtask bench scale`: the store on tables of up to ten million sessions.
//!
//! It needs Postgres, MySQL, Redis and memcached, 40 GB of disk, and hours.
//!
//! A run has many parts and takes hours, so each part is a process of its own, and its figures are a line of a file: a run
//! that was cut off goes on with the part that is missing.

mod plot;
mod report;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt as _};
use serde_json::{Value, json};

use crate::Result;
use crate::process::shown;

/// The first argument that chooses this command.
pub(crate) const NAME: &str = "scale";

const DIRECTORY: &str = "target/bench";
const FIGURES: &str = "target/bench/scale.jsonl";
const LOG: &str = "target/bench/scale.log";
const PLOT: &str = "target/bench/scale.svg";

/// One part of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// The arguments of the program that measures, which also name the part.
    arguments: Vec<String>,
}

impl Part {
    fn new(arguments: &[&str]) -> Self {
        Self { arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect() }
    }

    fn name(&self) -> String {
        self.arguments.join("/")
    }

    /// Returns `true` if `texts` is empty, or a text is in the name, in which numbers stand whole.
    fn is_wanted(&self, texts: &[String]) -> bool {
        let name = format!("{}/", self.name());
        let is_in = |text: &String| {
            let is_whole = text.ends_with(|last: char| last.is_ascii_digit());
            name.contains(&if is_whole { format!("{text}/") } else { text.clone() })
        };
        texts.is_empty() || texts.iter().any(is_in)
    }

    /// Returns the servers that the part needs.
    fn servers(&self) -> impl Iterator<Item = &str> {
        let servers = self.arguments.iter().map(|argument| argument.trim_end_matches("-hash"));
        servers.filter(|name| ["postgres", "mysql", "redis", "memcached"].contains(name))
    }
}

/// Returns all parts, the fastest first.
fn parts() -> Vec<Part> {
    let mut parts: Vec<_> = ["moka", "redis", "memcached"].map(|cache| Part::new(&["memory", cache])).into();
    parts.extend(["sqlite", "postgres", "mysql"].map(|database| Part::new(&["logins", database])));
    for sessions in ["100000", "1000000", "10000000"] {
        for database in ["postgres", "sqlite", "mysql"] {
            // InnoDB keeps a table in the order of its keys, so its growth is that of its primary key: one size tells it.
            if database != "mysql" || sessions == "1000000" {
                parts.extend(["moka", "redis"].map(|cache| Part::new(&["table", database, cache, sessions])));
            }
        }
    }
    // One table in partitions by the hash of the key, against the whole one of the same size.
    parts.push(Part::new(&["table", "postgres-hash", "moka", "1000000"]));
    parts
}

pub(crate) fn run(mut args: Parser) -> Result {
    let (mut in_background, mut is_status, mut is_fresh, mut svg, mut texts) =
        (false, false, false, None, Vec::new());
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("background") => in_background = true,
            Arg::Long("status") => is_status = true,
            Arg::Long("fresh") => is_fresh = true,
            Arg::Long("svg") => svg = Some(PathBuf::from(args.value()?)),
            Arg::Value(text) => texts.push(text.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let all = parts();
    let wanted: Vec<_> = all.iter().filter(|part| part.is_wanted(&texts)).cloned().collect();
    if wanted.is_empty() {
        let names: Vec<_> = all.iter().map(Part::name).collect();
        return Err(format!("there is no part {}; there are {}", texts.join(", "), names.join(", ")).into());
    }
    fs::create_dir_all(DIRECTORY)?;
    let figures = read(Path::new(FIGURES))?;
    if is_status {
        for part in &wanted {
            let state = if figure_of(&figures, part).is_some() { "done" } else { "to do" };
            eprintln!("{:<40} {state}", part.name());
        }
        return finish(&figures, svg.as_deref());
    }
    let left: Vec<_> =
        wanted.into_iter().filter(|part| is_fresh || figure_of(&figures, part).is_none()).collect();
    check_servers(&left)?;
    if in_background {
        return go_to_background();
    }
    measure(&left)?;
    finish(&read(Path::new(FIGURES))?, svg.as_deref())
}

/// Returns the figures that were measured, one for each part.
fn read(file: &Path) -> Result<Vec<Value>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", file.display()).into()),
    };
    let mut figures: Vec<Value> = Vec::new();
    // A line that was cut off is a part that was not measured.
    for figure in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        figures.retain(|earlier| earlier.get("part") != figure.get("part"));
        figures.push(figure);
    }
    Ok(figures)
}

fn figure_of<'f>(figures: &'f [Value], part: &Part) -> Option<&'f Value> {
    figures.iter().find(|figure| figure["part"] == part.name().as_str())
}

/// Fails if a server is missing, and names it.
fn check_servers(parts: &[Part]) -> Result {
    let mut missing = Vec::new();
    for server in ["postgres", "mysql", "redis", "memcached"] {
        if !parts.iter().any(|part| part.servers().any(|needed| needed == server)) {
            continue;
        }
        let variable = format!("CONFORMANCE_{}_URL", server.to_uppercase());
        match std::env::var(&variable) {
            Err(_) => missing.push(format!("{server} ({variable} is not set)")),
            Ok(url) if !answers(&url) => {
                missing.push(format!("{server} (nothing answers where {variable} leads)"));
            }
            Ok(_) => {}
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "missing: {}; `cargo xtask services up` starts servers and prints their variables",
        missing.join(", ")
    )
    .into())
}

/// Returns `true` if the server of `url` takes connections.
fn answers(url: &str) -> bool {
    let authority =
        url.split("://").nth(1).unwrap_or_default().split(['/', '?', ',']).next().unwrap_or_default();
    let address = authority.rsplit('@').next().unwrap_or_default();
    let addresses = address.to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    addresses.iter().any(|address| TcpStream::connect_timeout(address, Duration::from_secs(3)).is_ok())
}

/// Starts this command again without `--background`, in a process group of its own.
fn go_to_background() -> Result {
    let log = OpenOptions::new().create(true).append(true).open(LOG)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1).filter(|argument| argument != "--background"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let process = command.spawn()?.id();
    eprintln!("process {process} measures; `tail -f {LOG}` shows its progress, `kill -- -{process}` ends it");
    Ok(())
}

/// Measures the parts one after another, and writes down the figures of each at once.
fn measure(parts: &[Part]) -> Result {
    for (number, part) in (1..).zip(parts) {
        eprintln!("part {number} of {}: {}", parts.len(), part.name());
        let mut command = super::benchmark(NAME);
        command.args(&part.arguments);
        let line = shown(&command);
        eprintln!("$ {line}");
        let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("{}: `{line}` failed: {}", part.name(), output.status).into());
        }
        let figures: Value = serde_json::from_slice(&output.stdout)?;
        append(Path::new(FIGURES), &json!({ "part": part.name(), "command": line, "figures": figures }))?;
    }
    Ok(())
}

fn append(file: &Path, figure: &Value) -> Result {
    let mut file: File = OpenOptions::new().create(true).append(true).open(file)?;
    // Begins with a line break, because the line before may have been cut off.
    file.write_all(format!("\n{figure}\n").as_bytes())?;
    Ok(file.sync_all()?)
}

/// Prints the figures, and draws them.
fn finish(figures: &[Value], svg: Option<&Path>) -> Result {
    let curves = report::curves(figures);
    print!("{}", report::text(figures, &curves));
    let plot = plot::svg(&curves);
    for file in std::iter::once(Path::new(PLOT)).chain(svg) {
        fs::write(file, &plot).map_err(|error| format!("{}: {error}", file.display()))?;
        eprintln!("plot: {}", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_different_names_and_are_chosen_by_them() {
        let parts = parts();
        let wanted = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            parts.iter().filter(|part| part.is_wanted(&texts)).map(Part::name).collect::<Vec<_>>()
        };
        assert_eq!(wanted(&["table/postgres/moka/1000000"]), ["table/postgres/moka/1000000"]);
        assert_eq!(wanted(&["memory/redis", "logins/mysql"]), ["memory/redis", "logins/mysql"]);
        assert_eq!(wanted(&["/10000000"]).len(), 4);
        let mut names = wanted(&[]);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), parts.len());
    }

    #[test]
    fn missing_server_is_named_with_its_variable() {
        // No test sets this variable, and nothing listens at port 1.
        let error = check_servers(&[Part::new(&["memory", "memcached"])]);
        if std::env::var_os("CONFORMANCE_MEMCACHED_URL").is_none() {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("memcached (CONFORMANCE_MEMCACHED_URL is not set)"), "{error}");
        }
        assert!(!answers("postgres://user:pass@word@127.0.0.1:1/sessions"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(answers(&format!("postgres://user:password@127.0.0.1:{port}/sessions?table=a")));
        assert!(answers(&format!("memcache://127.0.0.1:{port},127.0.0.1:1")));
    }

    #[test]
    fn figures_survive_a_line_that_was_cut_off() {
        let file = std::env::temp_dir().join(format!("scale-{}.jsonl", std::process::id()));
        let part = Part::new(&["memory", "moka"]);
        append(&file, &json!({ "part": part.name(), "figures": 1 })).unwrap();
        fs::write(&file, fs::read_to_string(&file).unwrap() + "{\"part\": \"memory/red").unwrap();
        append(&file, &json!({ "part": part.name(), "figures": 2 })).unwrap();
        let figures = read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(figures.len(), 1);
        assert_eq!(figure_of(&figures, &part).unwrap()["figures"], 2);
    }
}
