//! `docs/operations.md` lists the metrics, log events and hooks of the code, and nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(directory: &Path, text: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // The programs are not part of the library.
            if !path.ends_with("bin") {
                sources(&path, text);
            }
        } else {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// Returns every text between `before` and `after` in the sources of `libraries`.
fn in_sources(libraries: &[&str], before: &str, after: &str) -> BTreeSet<String> {
    let mut text = String::new();
    for library in libraries {
        sources(&root().join(library).join("src"), &mut text);
    }
    let found = text.split(before).skip(1).filter_map(|rest| rest.split(after).next());
    found.map(str::to_owned).collect()
}

/// Returns the names in the first column of the tables under a heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let document = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let section = document.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

#[test]
fn every_metric_is_documented() {
    let is_name = |name: &String| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let spans = ["session_load", "session_write", "session_cached_db"];
    let names: BTreeSet<_> = in_sources(&["session-cached-db"], "\"session_", "\"")
        .into_iter()
        .map(|rest| format!("session_{rest}"))
        .filter(is_name)
        .filter(|name| !spans.contains(&name.as_str()))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    assert_eq!(documented("Metrics"), names);
}

#[test]
fn every_log_event_is_documented() {
    let libraries = ["cache-backends", "db-backends", "session-cached-db", "session-core"];
    let names = in_sources(&libraries, "event = \"", "\"");
    assert!(names.len() > 15, "{names:?}");
    assert_eq!(documented("Events in the log"), names);
}

#[test]
fn every_log_line_has_a_target_and_an_event() {
    let mut text = String::new();
    for library in ["cache-backends", "db-backends", "session-cached-db", "session-core"] {
        sources(&root().join(library).join("src"), &mut text);
    }
    let mut count = 0;
    for level in ["trace", "debug", "info", "warn", "error"] {
        for call in text.split(&format!("tracing::{level}!(")).skip(1) {
            let arguments = call.split(");").next().unwrap();
            count += 1;
            assert!(
                arguments.contains("target: \"") && arguments.contains("event = \""),
                "{level}!({arguments}"
            );
        }
    }
    assert!(count > 15, "{count}");
}

#[test]
fn every_hook_is_documented() {
    let hooks = std::fs::read_to_string(root().join("session-cached-db/src/telemetry/hooks.rs")).unwrap();
    let of_trait = hooks.split("pub trait Hooks").nth(1).unwrap().split("\n}\n").next().unwrap().to_owned();
    let hooks: BTreeSet<_> =
        of_trait.split("    fn ").skip(1).map(|rest| rest.split('(').next().unwrap().to_owned()).collect();
    assert_eq!(documented("Hooks"), hooks);
}

/// An event that clients, or an outage under load, can cause any number of times is bounded where it is emitted.
#[test]
fn events_that_are_bounded_say_so_and_no_others() {
    let document = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let said = rows.filter_map(|row| {
        let (name, rest) = row.split_once("` | ")?;
        rest.split('|').next()?.contains("bounded").then(|| name.to_owned())
    });
    let bounded = in_sources(&["session-cached-db"], "admit(\"", "\"");
    let bounded = bounded.into_iter().filter(|name| name != "event" && name != "other");
    assert_eq!(said.collect::<BTreeSet<_>>(), bounded.collect::<BTreeSet<_>>());
}
