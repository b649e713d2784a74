//! `docs/deployments.md` names a test for each shape, and every test that it names exists.

use std::path::{Path, PathBuf};

/// The tests that run on servers.
const TESTS: [&str; 3] = ["conformance-tests/tests", "db-backends/tests", "cache-backends/tests"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Adds the paths of all files and directories below `directory`.
fn add_paths(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_paths(&path, paths);
        }
        paths.push(path);
    }
}

/// Returns the cells of the columns that are headed `shown by`, with the first cell of each row.
fn shown_by(document: &str) -> Vec<(&str, &str)> {
    let (mut column, mut rows) = (None, Vec::new());
    for line in document.lines() {
        let Some(row) = line.strip_prefix('|') else {
            column = None;
            continue;
        };
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        if let Some(headed) = cells.iter().position(|cell| *cell == "shown by") {
            column = Some(headed);
        } else if let Some(column) = column
            && !cells[0].starts_with("---")
        {
            rows.push((cells[0], cells[column]));
        }
    }
    rows
}

#[test]
fn every_shape_names_tests_that_exist() {
    let mut paths = Vec::new();
    TESTS.iter().for_each(|directory| add_paths(&root().join(directory), &mut paths));
    let files = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut sources: String = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    sources += &std::fs::read_to_string(root().join("conformance-tests/servers/table.rs")).unwrap();
    let is_file = |name: &str| {
        name.contains('/') && root().join(name).exists()
            || paths.iter().any(|path| path.file_stem().is_some_and(|stem| stem == name))
    };
    let is_known = |word: &str| {
        let name = word.rsplit("::").next().unwrap();
        let function = match name.strip_suffix('…') {
            Some(beginning) => format!("fn {beginning}"),
            None => format!("fn {name}("),
        };
        is_file(name) || sources.contains(&function) || sources.contains(&format!("name: \"{name}\""))
    };
    let document = std::fs::read_to_string(root().join("docs/deployments.md")).unwrap();
    let rows = shown_by(&document);
    assert!(rows.len() > 10, "{rows:?}");
    for (shape, cell) in rows {
        // The texts between backticks, without the options of programs, and pairs of the soak.
        let words = cell.split('`').skip(1).step_by(2).flat_map(|code| code.split(' '));
        let names: Vec<_> = words
            .filter(|word| {
                !word.starts_with("--") && !word.contains('+') && !["cargo", "xtask"].contains(word)
            })
            .collect();
        assert!(!names.is_empty(), "{shape}: no test is named");
        for name in names {
            assert!(is_known(name), "{shape}: there is no {name}");
        }
    }
}
