//! Edits of existing files. Each fails if the place that it looks for is missing.

use crate::Result;

/// Adds a cargo feature that needs nothing yet.
pub(super) fn add_feature(text: &str, name: &str) -> Result<String> {
    let mut section = text.lines().skip_while(|line| *line != "[features]").skip(1);
    let is_it = |line: &str| line.split_once('=').is_some_and(|(left, _)| left.trim() == name);
    if section.by_ref().take_while(|line| !line.starts_with('[')).any(is_it) {
        return Err(format!("there is a feature {name:?} already").into());
    }
    after(text, "[features]\n", &format!("{name} = []\n"))
}

/// Adds a module behind its feature, anywhere among the others: formatting puts it in its place.
pub(super) fn add_module(text: &str, name: &str, neighbour: &str) -> Result<String> {
    if text.lines().any(|line| line.ends_with(&format!("mod {name};"))) {
        return Err(format!("there is a module {name:?} already").into());
    }
    after(text, &format!("{neighbour}\n"), &format!("#[cfg(feature = \"{name}\")]\npub mod {name};\n"))
}

/// Adds a row at the end of the table of features.
pub(super) fn add_row(text: &str, row: &str) -> Result<String> {
    let mut lines: Vec<_> = text.lines().collect();
    let begin =
        lines.iter().position(|line| line.starts_with("| feature |")).ok_or("no table of features")?;
    let table = lines.iter().skip(begin).take_while(|line| line.starts_with('|')).count();
    lines.insert(begin + table, row);
    Ok(lines.join("\n") + "\n")
}

/// Adds the feature `name` to those of the dependency `package`.
pub(super) fn enable_feature(text: &str, package: &str, name: &str) -> Result<String> {
    let place = format!("{package} = {{ workspace = true, features = [");
    after(text, &place, &format!("\"{name}\", "))
}

/// Adds a test without the standard harness.
pub(super) fn add_test(text: &str, name: &str) -> Result<String> {
    if text.contains(&format!("name = \"{name}\"")) {
        return Err(format!("there is a test {name:?} already").into());
    }
    let test = format!("[[test]]\nname = \"{name}\"\nharness = false\n\n");
    let place = "[[test]]\n";
    let position = text.find(place).ok_or_else(|| missing(place))?;
    let (before, behind) = text.split_at(position);
    Ok([before, &test, behind].concat())
}

fn after(text: &str, place: &str, new: &str) -> Result<String> {
    let position = text.find(place).ok_or_else(|| missing(place))?;
    let (before, behind) = text.split_at(position + place.len());
    Ok([before, new, behind].concat())
}

fn missing(place: &str) -> String {
    format!("{:?} is missing; change xtask/src/scaffold to the place where this goes now", place.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_added_once() {
        let text = "[package]\nx = 1\n\n[features]\nmoka = []\n\n[dependencies]\netcd = 1\n";
        let added = add_feature(text, "etcd").unwrap();
        assert_eq!(added, text.replace("[features]\n", "[features]\netcd = []\n"));
        assert!(add_feature(&added, "etcd").unwrap_err().to_string().contains("already"));
    }

    #[test]
    fn a_row_comes_after_the_others() {
        let text = "a\n\n| feature | b |\n|---|---|\n| c | d |\n\ne\n";
        assert_eq!(add_row(text, "| f | g |").unwrap(), text.replace("d |\n", "d |\n| f | g |\n"));
    }

    #[test]
    fn missing_place_is_named() {
        let error = add_module("mod a;\n", "etcd", "pub mod moka;").unwrap_err().to_string();
        assert!(error.contains("pub mod moka;"), "{error}");
        assert!(add_test("", "etcd_cache").is_err());
        assert!(enable_feature("", "cache-backends", "etcd").is_err());
        assert!(add_row("", "| f |").is_err());
    }
}
