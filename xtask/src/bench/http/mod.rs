//! `cargo xtask bench http`: pages with our sessions, against the same pages with the stores of tower-sessions and
//! actix-session, under the load of wrk.
//!
//! Two programs serve the pages, because the two kinds of stores cannot be linked together. Both run while a page
//! is measured, and take turns.

mod load;
mod rows;
mod site;

use std::path::{Path, PathBuf};

use serde_json::Value;

use self::load::Load;
use self::rows::{PAIRS, Peer, Row, STACKS};
use self::site::{Programs, Site};
use super::{Figure, PLOTS, plot};
use crate::Result;
use crate::packages::install;
use crate::process::which;
use crate::table;

/// The lengths of a measurement.
struct Effort {
    rounds: usize,
    seconds: u64,
}

/// Measures the pages of the chosen pairs and stacks. With `adds`, keeps the rows of earlier runs that this one does
/// not measure. Writes the plot to `svg`, too.
pub(super) fn run(words: &[String], is_quick: bool, adds: bool, as_json: bool, svg: Option<&Path>) -> Result {
    let rows = chosen(words)?;
    require_servers(&rows, |variable| std::env::var_os(variable).is_some())?;
    require_programs()?;
    let programs = Programs::build()?;
    let effort = if is_quick { Effort { rounds: 1, seconds: 1 } } else { Effort { rounds: 3, seconds: 2 } };

    let file = Path::new(PLOTS).join("http.json");
    std::fs::create_dir_all(PLOTS)?;
    let earlier = if adds { earlier(&file)? } else { Vec::new() };
    let mut measured = Vec::new();
    for group in rows.chunk_by(|one, other| (one.pair, one.stack) == (other.pair, other.stack)) {
        measure(group, &programs, &effort, rows.len(), &mut measured)?;
    }
    let is_new = |row: &Value| measured.iter().any(|new: &Value| new["name"] == row["name"]);
    let kept = earlier.into_iter().filter(|row| !is_new(row));
    let all: Vec<_> = kept.chain(measured.iter().cloned()).collect();
    std::fs::write(&file, Value::from(all.clone()).to_string())?;

    let figures: Vec<_> = all.iter().filter_map(Figure::read).collect();
    if as_json {
        println!("{}", super::object(&figures));
    } else {
        print!("{}", rows::table(&all));
    }
    let plots = plot::write(Path::new(PLOTS), "http", &figures)?;
    eprintln!("plots: {}", plots.display());
    if let Some(svg) = svg {
        std::fs::copy(plots.with_extension("svg"), svg)
            .map_err(|error| format!("{}: {error}", svg.display()))?;
    }
    Ok(())
}

/// Returns the rows that the words choose: all of them, if there are none.
fn chosen(words: &[String]) -> Result<Vec<Row>> {
    if let Some(unknown) = words.iter().find(|word| !PAIRS.contains(&&***word) && !STACKS.contains(&&***word))
    {
        let known = PAIRS.iter().chain(STACKS).copied().collect::<Vec<_>>().join(", ");
        return Err(format!("there is no pair or stack {unknown:?}; there are {known}").into());
    }
    let is_chosen = |of: &[&str], this: &str| {
        let mut named = words.iter().filter(|word| of.contains(&&***word)).peekable();
        named.peek().is_none() || named.any(|word| word == this)
    };
    let rows: Vec<_> = rows::all()
        .into_iter()
        .filter(|row| is_chosen(PAIRS, row.pair) && is_chosen(STACKS, row.stack))
        .collect();
    if rows.is_empty() { Err(format!("nothing is measured of {}", words.join(" ")).into()) } else { Ok(rows) }
}

/// Fails and names the first server that the rows need and that is not set up.
fn require_servers(rows: &[Row], is_set: impl Fn(&str) -> bool) -> Result {
    for row in rows {
        // actix-session's own store is in Redis, whatever ours is in.
        let theirs = (row.stack == "actix" && row.pair != "moka+sqlite").then_some("redis");
        for server in row.pair.split('+').chain(theirs).filter_map(table::server) {
            if !is_set(server.url_var) {
                return Err(format!(
                    "{} needs {}, and {} is not set: `eval \"$(cargo xtask services up {})\"`",
                    row.pair, server.name, server.url_var, server.name
                )
                .into());
            }
        }
    }
    Ok(())
}

/// Installs wrk and curl where they are missing.
fn require_programs() -> Result {
    let missing: Vec<_> = ["wrk", "curl"].into_iter().filter(|program| which(program).is_none()).collect();
    install(&missing)
}

fn earlier(file: &Path) -> Result<Vec<Value>> {
    match std::fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Measures rows of one pair and one stack, and adds them.
fn measure(
    rows: &[Row],
    programs: &Programs,
    effort: &Effort,
    total: usize,
    measured: &mut Vec<Value>,
) -> Result {
    let Some(Row { pair, stack, .. }) = rows.first() else { return Ok(()) };
    let dir = Scratch::new(format!("{PLOTS}/http-{}", std::process::id()))?;
    let ours = Site::start(&programs.ours, stack, pair, &dir.0)?;
    let theirs = Site::start(&programs.theirs, stack, rows::theirs(pair), &dir.0)?;
    let has_bare = rows.iter().any(|row| row.peer == Peer::Bare);
    let bare = if has_bare { Some(Site::start(&programs.ours, "bare", pair, &dir.0)?) } else { None };
    for row in rows {
        let peer = bare.as_ref().filter(|_| row.peer == Peer::Bare).unwrap_or(&theirs);
        let mut rounds = Vec::new();
        for round in 0..effort.rounds {
            // The second one finds warmer servers, so the order changes from round to round.
            let (first, second) = if round % 2 == 0 { (&ours, peer) } else { (peer, &ours) };
            let loads = [
                Load::put(first, row.page, row.connections, effort.seconds, &dir.0)?,
                Load::put(second, row.page, row.connections, effort.seconds, &dir.0)?,
            ];
            let [first, second] = loads;
            rounds.push(if round % 2 == 0 { (first, second) } else { (second, first) });
        }
        let figure = row.figure(&rounds);
        eprintln!("{:>3}/{total} {}", measured.len() + 1, rows::line(&figure));
        measured.push(figure);
    }
    Ok(())
}

/// A directory that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: String) -> Result<Self> {
        std::fs::create_dir_all(&path)?;
        Ok(Self(std::fs::canonicalize(path)?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn rows_are_chosen_by_pair_and_by_stack() {
        let all = chosen(&[]).unwrap();
        let axum = chosen(&words("redis+postgres axum")).unwrap();
        assert!(axum.len() < all.len());
        assert!(axum.iter().all(|row| row.pair == "redis+postgres" && row.stack == "axum"));
        let two = chosen(&words("redis+postgres memcached+mysql")).unwrap();
        assert!(two.iter().any(|row| row.pair == "memcached+mysql" && row.stack == "actix"));
    }

    #[test]
    fn unknown_word_is_refused_with_those_that_are_known() {
        let error = chosen(&words("redis+oracle")).err().unwrap().to_string();
        assert!(error.contains("redis+oracle") && error.contains("redis+postgres"), "{error}");
        let error = chosen(&words("near+redis+postgres actix")).err().unwrap().to_string();
        assert!(error.contains("near+redis+postgres actix"), "{error}");
    }

    #[test]
    fn missing_server_is_named_with_the_command_that_starts_it() {
        let rows = chosen(&words("redis+postgres axum")).unwrap();
        let error = require_servers(&rows, |variable| variable != "CONFORMANCE_POSTGRES_URL").unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("CONFORMANCE_POSTGRES_URL") && error.contains("services up postgres"),
            "{error}"
        );
        require_servers(&rows, |_| true).unwrap();
        require_servers(&chosen(&words("moka+sqlite")).unwrap(), |_| false).unwrap();
    }

    #[test]
    fn peer_on_actix_needs_redis_beside_the_pair() {
        let rows = chosen(&words("memcached+mysql actix")).unwrap();
        let error = require_servers(&rows, |variable| variable != "CONFORMANCE_REDIS_URL").unwrap_err();
        assert!(error.to_string().contains("CONFORMANCE_REDIS_URL"), "{error}");
    }
}
