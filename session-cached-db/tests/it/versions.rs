//! `docs/versions.md` has the versions of `Cargo.lock` and `Cargo.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

/// Returns the part of a version that must be equal for Cargo to take two versions for one.
fn compatible(version: &str) -> String {
    match version.split('.').collect::<Vec<_>>()[..] {
        ["0", minor, ..] => format!("0.{minor}"),
        [major, ..] => major.to_owned(),
        [] => unreachable!("a text has a first part"),
    }
}

/// Returns the versions of each crate in `Cargo.lock`.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let mut versions = BTreeMap::<_, BTreeSet<_>>::new();
    for package in read("Cargo.lock").split("[[package]]").skip(1) {
        let value = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_matches([' ', '=', '"']).to_owned()
        };
        versions.entry(value("name")).or_default().insert(compatible(&value("version")));
    }
    versions
}

/// Returns the versions that a text names right after the name of a crate, as in `axum-login 0.18`.
fn named(text: &str, name: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let version = |(start, _): (usize, &str)| {
        let (before, after) = (&text[..start], &text[start + name.len()..]);
        let after = after.trim_start_matches(['`', ']']).strip_prefix(' ')?;
        let number = after.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?.trim_end_matches('.');
        let is_one = !before.ends_with(is_name) && number.starts_with(|c: char| c.is_ascii_digit());
        is_one.then(|| number.to_owned())
    };
    text.match_indices(name).filter_map(version).collect()
}

#[test]
fn versions_in_sentences_are_the_locked_ones() {
    let locked = locked();
    let texts = [
        "README.md",
        "docs/versions.md",
        "session-cached-db/Cargo.toml",
        "session-cached-db/src/middleware/tower_sessions.rs",
        "session-cached-db/src/middleware/actix_session.rs",
    ];
    for name in ["actix-session", "actix-web", "axum", "axum-core", "axum-login", "sqlx", "tower-sessions"] {
        for text in texts {
            for version in named(&read(text), name) {
                assert!(locked[name].contains(&compatible(&version)), "{text}: {name} {version}");
            }
        }
    }
    // The test sees what it is to see.
    assert_eq!(named(&read("README.md"), "axum-login"), ["0.18"]);
    assert_eq!(named(&read(texts[3]), "tower-sessions"), ["0.15", "0.14"]);
    assert_eq!(named(&read(texts[3]), "axum-login"), ["0.18"]);
}

#[test]
fn versions_in_the_table_are_the_locked_ones() {
    let (document, mut locked) = (read("docs/versions.md"), locked());
    let manifest = read("Cargo.toml");
    let rust = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap();
    let rust = rust.split('"').next().unwrap();
    assert!(read("README.md").contains(&format!("Rust {rust} or newer")));
    locked.insert("Rust".to_owned(), BTreeSet::from([rust.to_owned()]));

    let table = document.split("| crate | version |").nth(1).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>()).collect();
    let names: BTreeSet<_> = rows.iter().map(|row| row[1].trim_matches('`')).collect();
    let needed = ["Rust", "actix-session", "axum", "axum-login", "redis", "sqlx", "tower-sessions"];
    assert!(needed.iter().all(|name| names.contains(name)), "{names:?}");
    for row in rows {
        let (name, versions) = (row[1].trim_matches('`'), row[2].split(", ").map(str::to_owned).collect());
        assert_eq!(locked.get(name), Some(&versions), "{name}: Cargo.lock, and docs/versions.md");
    }
}
