//! The features that bring code in C are those that `docs/native-code.md` lists, no more and no less.

use std::collections::{BTreeMap, BTreeSet};

use super::metadata::Member;
use crate::Result;

const TABLE: &str = "docs/native-code.md";

/// Crates that compile or find code in another language while a crate is built.
const BUILDERS: &[&str] = &["bindgen", "cc", "cmake", "nasm-rs", "pkg-config", "vcpkg"];

/// Crates that are named like bindings to a C library, and are Rust alone.
const PURE_RUST: &[&str] = &["linux-raw-sys"];

/// Arguments of `cargo tree` for one line per crate that is linked, or runs in a build: its depth and its name.
const LINKED_OR_RUN: &[&str] = &["--edges=normal,build", "--prefix=depth", "--format= {p}"];

pub(crate) fn check(members: &[Member]) -> Result {
    let text = std::fs::read_to_string(TABLE).map_err(|error| format!("{TABLE}: {error}"))?;
    let allowed = allowed(&text);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for member in members.iter().filter(|member| member.is_published) {
        for feature in member.builds() {
            let enabled = feature.map(|name| member.closure(name)).unwrap_or_default();
            for native in native(&member.tree(feature, LINKED_OR_RUN)?) {
                let features = allowed.get(native.as_str());
                match enabled.iter().find_map(|name| features?.get(name.rsplit('/').next()?)) {
                    Some(feature) => drop(seen.insert((native, (*feature).to_owned()))),
                    None => wrong.push(format!(
                        "{} with {} has {native}, which {TABLE} does not say",
                        member.name,
                        feature.unwrap_or("no features")
                    )),
                }
            }
        }
    }
    let rows = allowed.iter().flat_map(|(native, features)| features.iter().map(move |one| (*native, *one)));
    let is_stale =
        |(native, feature): &(&str, &str)| !seen.contains(&((*native).to_owned(), (*feature).to_owned()));
    wrong.extend(
        rows.filter(is_stale).map(|(native, feature)| format!("{TABLE}: {feature} does not bring {native}")),
    );
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Returns the crates that need one of [`BUILDERS`], or are named as bindings are.
fn native(tree: &str) -> BTreeSet<String> {
    let mut path: Vec<&str> = Vec::new();
    let mut found = BTreeSet::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (Some(depth), Some(name)) =
            (words.next().and_then(|word| word.parse::<usize>().ok()), words.next())
        else {
            continue;
        };
        path.truncate(depth);
        if BUILDERS.contains(&name) {
            // One builder may use another.
            found.extend(
                path.last().filter(|parent| !BUILDERS.contains(*parent)).map(|one| (*one).to_owned()),
            );
        } else if name.ends_with("-sys") && !PURE_RUST.contains(&name) {
            found.insert(name.to_owned());
        }
        path.push(name);
    }
    found
}

/// Returns the crates in the first column, with the features in the second.
fn allowed(table: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let rows = table.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let native = cells.next()?.split('`').next()?;
        Some((native, cells.next()?.split('`').skip(1).step_by(2).collect()))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_that_needs_a_compiler_or_is_a_binding_is_native() {
        let tree = "0 ours v1\n1 ring v0.17\n2 cfg-if v1\n2 cc v1\n3 shlex v1\n1 linux-raw-sys v0.9\n1 foo-sys v1\n2 pkg-config v0.3";
        assert_eq!(native(tree), BTreeSet::from(["foo-sys".to_owned(), "ring".to_owned()]));
    }

    #[test]
    fn the_table_says_which_feature_brings_what() {
        let table = "| crate | features |\n|---|---|\n| `ring` | `redis-tls`, `mysql-tls` | C |\n";
        assert_eq!(allowed(table), BTreeMap::from([("ring", BTreeSet::from(["mysql-tls", "redis-tls"]))]));
    }
}
