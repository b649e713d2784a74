//! Scaffolds a cache and a database in a copy of the workspace, and runs the result.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{CACHE, DB, Kind, plan};
use crate::process::cargo;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |target| root().join(target))
}

/// Copies the workspace, always to the same place and with the same times, so that an earlier build of it is
/// used again.
fn copy(name: &str) -> PathBuf {
    let place = target().join("scaffold").join(name);
    match fs::remove_dir_all(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", place.display()),
        _ => copy_directory(&root(), &place),
    }
    place
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, name, kind) = (entry.path(), entry.file_name(), entry.file_type().unwrap());
        if kind.is_dir() {
            if path != target() && name != "target" && name != ".git" {
                copy_directory(&path, &to.join(name));
            }
        } else if kind.is_file() {
            let copied = to.join(name);
            fs::copy(&path, &copied).unwrap();
            let modified = entry.metadata().unwrap().modified().unwrap();
            fs::File::options().write(true).open(&copied).unwrap().set_modified(modified).unwrap();
        }
    }
}

/// Returns the contents of every file.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut contents = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                contents.insert(path, bytes);
            }
        }
    }
    contents
}

/// Copies the crates of the backends and the suite: enough to scaffold in.
fn small_copy(name: &str) -> PathBuf {
    let place = target().join("scaffold").join(name);
    let _ = fs::remove_dir_all(&place);
    for directory in ["cache-backends", "db-backends", "conformance-tests"] {
        copy_directory(&root().join(directory), &place.join(directory));
    }
    fs::copy(root().join("rustfmt.toml"), place.join("rustfmt.toml")).unwrap();
    place
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = cargo();
    command.current_dir(directory).args(arguments).env("CARGO_TARGET_DIR", target());
    // A scaffold needs no crate that was not there before.
    command.env("CARGO_NET_OFFLINE", "true").env_remove("CONFORMANCE_REQUIRE");
    // The variable that names a server: without it, the cases are ignored.
    command.env("CONFORMANCE_BRAND_NEW_URL", "brand_new://127.0.0.1/");
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

#[test]
fn scaffold_compiles_and_fails_only_the_cases_to_be_written() {
    let copy = copy("workspace");
    for kind in [&CACHE, &DB] {
        let plan = plan(&copy, kind, "brand_new").unwrap();
        plan.write().unwrap();
        // Of the files that were there, others may be in the middle of a change.
        let new = plan.paths().filter(|path| path.to_string_lossy().contains("brand_new"));
        let mut rustfmt = Command::new("rustfmt");
        let formatted =
            rustfmt.current_dir(&copy).args(["--check", "--edition", "2024"]).args(new).output().unwrap();
        assert!(formatted.status.success(), "{}", text(&formatted));
    }

    let packages = ["--package=cache-backends", "--package=db-backends"];
    let alone = ["clippy", "--quiet", "--lib", "--no-default-features", "--features=brand_new"];
    let linted = run(&copy, &[&alone[..], &packages, &["--", "--deny=warnings"]].concat());
    assert!(linted.status.success(), "{}", text(&linted));

    let own = ["test", "--quiet", "--workspace", "--all-features", "--test=brand_new"];
    let passed = run(&copy, &own);
    assert!(passed.status.success(), "{}", text(&passed));

    for (layer, methods) in [("cache", &["get", "compare_exchange"][..]), ("db", &["migrate"])] {
        let test = format!("--test=brand_new_{layer}");
        let output = run(&copy, &["test", "--quiet", "--workspace", "--all-features", &test]);
        assert!(!output.status.success(), "{layer}: everything passes, though nothing is written");
        check(layer, &text(&output), methods);
    }
}

/// Checks that every failed case names a method that is not written, and that each of `methods` is named.
fn check(layer: &str, text: &str, methods: &[&str]) {
    let (_, failures) = text.split_once("\nfailures:\n").unwrap_or_else(|| panic!("{layer}: {text}"));
    let cases: Vec<_> = failures.split("\n---- ").skip(1).collect();
    assert!(cases.len() > 10, "{layer}: {text}");
    for case in cases {
        assert!(case.contains("of brand_new is not written yet"), "{layer}: {case}");
    }
    for method in methods {
        assert!(failures.contains(&format!("{method} of brand_new is not written yet")), "{layer}: {text}");
    }
}

#[test]
fn existing_name_is_refused_and_nothing_is_written() {
    let copy = small_copy("exists");
    let before = contents(&copy);
    let cases: [(&Kind, &str, &str); 6] = [
        (&CACHE, "moka", "exists"),
        (&CACHE, "lazy", "exists"),
        (&CACHE, "connect", "exists"),
        (&DB, "sqlite", "exists"),
        (&DB, "servers", "exists"),
        (&DB, "fn", "Rust"),
    ];
    for (kind, name, reason) in cases {
        let error = plan(&copy, kind, name).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(name), "{name}: {error}");
    }
    plan(&copy, &CACHE, "twice").unwrap().write().unwrap();
    assert!(plan(&copy, &CACHE, "twice").is_err());
    assert!(contents(&copy).len() > before.len());
}

#[test]
fn failed_write_leaves_nothing_of_the_other_files() {
    let copy = small_copy("undone");
    let plan = plan(&copy, &CACHE, "undone").unwrap();
    // The last file is an edit; all others are written before it.
    let last = copy.join(plan.paths().last().unwrap());
    let kept = fs::read(&last).unwrap();
    fs::remove_file(&last).unwrap();
    fs::create_dir(&last).unwrap();
    let before = contents(&copy);
    let error = plan.write().unwrap_err().to_string();
    assert!(error.contains("nothing was changed"), "{error}");
    assert_eq!(contents(&copy), before);
    fs::remove_dir(&last).unwrap();
    fs::write(&last, kept).unwrap();
    plan.write().unwrap();
}
