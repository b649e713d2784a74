//! The summary, and the report as Markdown.

use super::results::{Case, Count, Results};

/// Returns the matrix, and the backends alone, as tables that are readable without being rendered.
pub(crate) fn summary(results: &Results) -> String {
    let mut text = String::new();
    let (caches, databases) = results.sides();
    if !databases.is_empty() {
        let mut rows = vec![[vec![String::new()], owned(&databases)].concat()];
        for cache in &caches {
            let cell = |database: &&str| match results.pair(cache, database) {
                cases if cases.is_empty() => String::new(),
                cases => shown(&cases),
            };
            rows.push([vec![(*cache).to_owned()], databases.iter().map(cell).collect()].concat());
        }
        text += &table(&rows);
    }
    let mut rows = vec![owned(&["layer", "backend", "result"])];
    for layer in results.layers().into_iter().filter(|layer| *layer != "pair") {
        for (backend, cases) in results.backends(layer) {
            rows.push(vec![layer.to_owned(), backend.to_owned(), shown(&cases)]);
        }
    }
    if rows.len() > 1 {
        text += "\n";
        text += &table(&rows);
    }
    let Count { passed, failed, ignored } = Count::of(&results.cases);
    text += &format!(
        "\n{passed} passed, {failed} failed, {ignored} ignored, {:.0} s\n",
        results.took.as_secs_f64()
    );
    text
}

pub(crate) fn document(results: &Results) -> String {
    let mut text = format!("# Conformance\n\n{}", summary(results));
    if results.failures().next().is_some() {
        text += "\n## Failures\n";
    }
    for (case, message) in results.failures() {
        text += &format!("\n### `{}::{}::{}`\n\n", case.layer, case.backend, case.name);
        // Indented, so that nothing in it is taken for Markdown.
        for line in message.lines() {
            text += &format!("    {line}\n");
        }
    }
    text
}

/// Sums up the cases of one backend in a few words.
fn shown(cases: &[&Case]) -> String {
    let Count { passed, failed, ignored } = Count::of(cases.iter().copied());
    match (failed, ignored) {
        (0, 0) => format!("{passed} ok"),
        (0, _) if passed == 0 => "not tested".to_owned(),
        (0, _) => format!("{passed} ok, {ignored} ignored"),
        _ => format!("{failed} FAILED of {}", passed + failed),
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let width =
        |column: usize| rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, width) in widths.iter().enumerate() {
            text += &format!("| {:<width$} ", cell(row, column));
        }
        text += "|\n";
        if number == 0 {
            for width in &widths {
                text += &format!("|{}", "-".repeat(width + 2));
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
pub(crate) fn example() -> Results {
    use super::results::Outcome;

    let case = |layer: &str, backend: &str, name: &str, outcome| Case {
        layer: layer.into(),
        backend: backend.into(),
        name: name.into(),
        outcome,
    };
    let failed = Outcome::Failed("left: <1> & \"2\"\nright: # 3 ]]>".into());
    Results {
        cases: vec![
            case("cache", "redis", "a", Outcome::Passed),
            case("pair", "redis+postgres", "logout_is_final", failed),
            case("pair", "redis+postgres", "b", Outcome::Passed),
            case("pair", "redis+mysql", "b", Outcome::Ignored),
            case("pair", "moka+mysql", "b", Outcome::Passed),
        ],
        took: std::time::Duration::from_secs(61),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_shows_the_matrix_and_its_gaps() {
        let expected = "\
|       | postgres      | mysql      |
|-------|---------------|------------|
| redis | 1 FAILED of 2 | not tested |
| moka  |               | 1 ok       |

| layer | backend | result |
|-------|---------|--------|
| cache | redis   | 1 ok   |

3 passed, 1 failed, 1 ignored, 61 s
";
        assert_eq!(summary(&example()), expected);
    }

    #[test]
    fn message_of_a_failed_test_is_no_markdown() {
        let text = document(&example());
        assert!(text.contains("### `pair::redis+postgres::logout_is_final`"), "{text}");
        assert!(text.contains("\n    right: # 3 ]]>\n"), "{text}");
    }
}
