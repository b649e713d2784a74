//! `docs/django-parity.md` is complete, and every test that it names exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the rows of the tables in the numbered sections: section, first cell, last cell.
fn rows(document: &str) -> Vec<(String, String, String)> {
    let mut section = None;
    let mut rows = Vec::new();
    for line in document.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let number = heading.split(' ').next().unwrap();
            section = number.starts_with("4.").then(|| number.to_owned());
        }
        let (Some(section), Some(line)) = (&section, line.strip_prefix("| ")) else { continue };
        let cells: Vec<_> = line.trim_end_matches(" |").split(" | ").collect();
        if cells[0] != "Django's test" && cells[0] != "case" {
            assert_eq!(cells.len(), 3, "{line}");
            rows.push((section.clone(), cells[0].to_owned(), cells[2].to_owned()));
        }
    }
    rows
}

/// Returns the tests that a cell names, as file and function.
fn tests_in(cell: &str) -> Vec<(&str, &str)> {
    let spans = cell.split('`').skip(1).step_by(2);
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    spans
        .filter_map(|span| span.split_once("::"))
        .filter(|(file, test)| is_name(file) && is_name(test))
        .collect()
}

/// Returns the functions in `source` that are tests.
fn tests_of(source: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let (mut is_test, mut is_ignored) = (false, false);
    for line in source.lines() {
        let name = line.trim_start_matches("async ").strip_prefix("fn ");
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("#[ignore") {
            is_ignored = true;
        } else if let Some(name) = name {
            if is_test && !is_ignored {
                tests.insert(name.split('(').next().unwrap().to_owned());
            }
            (is_test, is_ignored) = (false, false);
        }
    }
    tests
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/django-parity.md")).unwrap()
}

#[test]
fn every_test_in_the_parity_document_exists() {
    let named: BTreeSet<_> = rows(&document())
        .iter()
        .flat_map(|(_, _, cell)| {
            tests_in(cell).into_iter().map(|(file, test)| (file.to_owned(), test.to_owned()))
        })
        .collect();
    assert!(named.len() > 60, "{}", named.len());
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let main = std::fs::read_to_string(directory.join("main.rs")).unwrap();
    for (file, test) in named {
        let source = std::fs::read_to_string(directory.join(format!("{file}.rs")))
            .unwrap_or_else(|_| panic!("there is no {file}.rs"));
        assert!(main.contains(&format!("mod {file};")), "{file}.rs is not compiled");
        assert!(tests_of(&source).contains(&test), "{file}.rs has no test {test}");
    }
}

#[test]
fn every_line_of_the_parity_document_names_a_test_or_a_reason() {
    for (section, item, cell) in rows(&document()) {
        let has_reason = cell.strip_prefix("no test: ").is_some_and(|reason| !reason.is_empty());
        assert!(has_reason || !tests_in(&cell).is_empty(), "{section} {item}: {cell}");
    }
}

#[test]
fn parity_document_has_every_item() {
    let rows = rows(&document());
    let items = |section: &str| -> Vec<&str> {
        rows.iter().filter(|(number, ..)| number == section).map(|(_, item, _)| item.as_str()).collect()
    };
    let numbers: Vec<_> =
        items("4.1").iter().map(|item| item.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(numbers, (1..=37).map(|number| number.to_string()).collect::<Vec<_>>());
    let cases: Vec<_> = items("4.8").iter().map(|item| item.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(cases, (1..=18).map(|number| format!("X{number}")).collect::<Vec<_>>());
    for (section, count) in [("4.2", 9), ("4.3", 8), ("4.4", 4), ("4.5", 4), ("4.6", 12), ("4.7", 7)] {
        assert_eq!(items(section).len(), count, "{section}");
    }
}
