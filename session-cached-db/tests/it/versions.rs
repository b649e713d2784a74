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
