//! The glossary of `CONTRIBUTING.md`: every name in its last column is declared somewhere.

use std::collections::BTreeSet;

use super::source::Source;
use crate::Result;

const FILE: &str = "CONTRIBUTING.md";
const HEADING: &str = "\n## Glossary\n";

/// Checks the glossary against every Rust file that git tracks.
pub(crate) fn check() -> Result {
    let document = std::fs::read_to_string(FILE).map_err(|error| format!("{FILE}: {error}"))?;
    let names =
        names(&document).ok_or_else(|| format!("{FILE} has no table under the heading \"Glossary\""))?;
    let mut declared = BTreeSet::new();
    for file in super::tracked(&["*.rs"])? {
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
        declared.extend(declarations(&Source::parse(&text).code));
    }
    let is_missing = |name: &&str| !name.split("::").all(|part| declared.contains(part));
    let missing: Vec<_> = names.into_iter().filter(is_missing).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        let missing = missing.join(", ");
        Err(format!(
            "{FILE}: the glossary names {missing}, which no Rust file declares; write the name of today"
        )
        .into())
    }
}

/// Returns the code spans in the last column of the glossary, without parentheses.
fn names(document: &str) -> Option<Vec<&str>> {
    let (_, section) = document.split_once(HEADING)?;
    let section = section.split("\n## ").next()?;
    let cells = section.lines().filter_map(|line| line.strip_suffix('|')?.rsplit('|').next());
    let names: Vec<_> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let names: Vec<_> = names.into_iter().map(|name| name.trim_end_matches("()")).collect();
    if names.is_empty() { None } else { Some(names) }
}

/// Returns the names of items, and of the variants of enums.
fn declarations(code: &str) -> Vec<String> {
    const KEYWORDS: &[&str] =
        &["struct", "enum", "trait", "type", "fn", "const", "static", "mod", "macro_rules"];
    let mut names = Vec::new();
    let mut enum_indent = None;
    for line in code.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let words: Vec<_> = trimmed
            .split(|one: char| !one.is_alphanumeric() && one != '_')
            .filter(|word| !word.is_empty())
            .collect();
        // `const fn` declares a function.
        let function = words.iter().position(|word| *word == "fn");
        let keyword = function.or_else(|| words.iter().position(|word| KEYWORDS.contains(word)));
        let after_keyword = keyword.map(|at| at + 1);
        names.extend(after_keyword.and_then(|at| words.get(at)).map(|name| (*name).to_owned()));
        match enum_indent {
            Some(begun) if indent <= begun && trimmed.starts_with('}') => enum_indent = None,
            Some(begun) if indent == begun + 4 => names.extend(words.first().map(|name| (*name).to_owned())),
            None if words.contains(&"enum") && trimmed.ends_with('{') => enum_indent = Some(indent),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_code_of_the_last_column() {
        let document = "# C\n\n| a | `no` |\n\n## Glossary\n\n| word | meaning | name |\n|---|---|---|\n| a | `no` | `A`, `A::b()` |\n\
                        | c | d | |\n\n## Next\n\n| x | `no` |\n";
        assert_eq!(names(document).unwrap(), ["A", "A::b"]);
        assert_eq!(names("# C\n"), None);
    }

    #[test]
    fn declarations_are_items_and_variants() {
        let code = "pub(crate) struct A;\npub enum B {\n    C(u8),\n    D { x: u8 },\n}\nimpl B {\n    pub async fn e<T>() {}\n    pub const fn f() {}\n}\n";
        assert_eq!(declarations(code), ["A", "B", "C", "D", "e", "f"]);
    }
}
