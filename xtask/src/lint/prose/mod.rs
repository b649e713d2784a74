//! Rules of plain English that a program can check, in comments, rustdoc, documents and the names of tests.
//!
//! Code spans, code blocks and string literals are not checked. A place that has to break a rule stands in
//! [`EXCEPTIONS`] with its reason.
//!
//! Not with a linter for prose such as Vale: it knows neither the first word of rustdoc nor the names of tests, and
//! would have to be installed.

mod exceptions;
pub(super) mod glossary;
mod rules;
mod source;
mod words;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::process::output;
use exceptions::{EXCEPTIONS, Exception};
use rules::Finding;
use source::Source;

/// Checks every Rust file, template and document that git tracks.
pub(crate) fn check() -> Result {
    let files = tracked(&["*.rs", "*.rs.template", "*.md"])?;
    let mut found = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        found.extend(findings(file, &text).into_iter().map(|finding| (file.as_str(), finding)));
    }
    match report(&found, EXCEPTIONS) {
        None => Ok(()),
        Some(text) => Err(text.into()),
    }
}

/// Returns the files that git tracks and one of the patterns matches.
fn tracked(patterns: &[&str]) -> Result<Vec<String>> {
    let listed = output(Command::new("git").args(["ls-files", "--"]).args(patterns))?;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn findings(file: &str, text: &str) -> Vec<Finding> {
    if file.ends_with(".md") {
        return words::of_document(text).iter().flat_map(rules::of_block).collect();
    }
    let source = Source::parse(text);
    let mut findings: Vec<_> =
        words::of_comments(&source.comments).iter().flat_map(rules::of_block).collect();
    findings.extend(rules::of_tests(&rules::names_of_tests(&source.code)));
    findings.sort_by_key(|finding| finding.line);
    findings
}

/// Returns one line for each finding that no exception allows, and for each exception that allows nothing;
/// then how many there are of each rule in each crate, and how to mend them. Returns `None` if there are
/// none.
fn report(found: &[(&str, Finding)], exceptions: &[Exception]) -> Option<String> {
    let is_open =
        |(file, finding): &&(&str, Finding)| !exceptions.iter().any(|one| one.allows(file, finding));
    let open: Vec<_> = found.iter().filter(is_open).collect();
    let is_stale =
        |exception: &&Exception| !found.iter().any(|(file, finding)| exception.allows(file, finding));
    let stale: Vec<_> = exceptions.iter().filter(is_stale).collect();
    if open.is_empty() && stale.is_empty() {
        return None;
    }
    let mut lines = Vec::new();
    let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut broken = BTreeMap::new();
    for (file, finding) in open {
        let Finding { line, rule, text } = finding;
        lines.push(format!("{file}:{line}: {}: {text}", rule.name));
        *counts.entry(crate_of(file)).or_default().entry(rule.name).or_default() += 1;
        broken.insert(rule.name, rule.mend);
    }
    lines.extend(stale.into_iter().map(|Exception { file, rule, text, .. }| {
        format!("{file}: {rule}: {text:?} is excepted and not there; remove the exception")
    }));
    lines.push(String::new());
    for (name, rules) in counts {
        let parts: Vec<_> = rules.iter().map(|(rule, count)| format!("{rule} {count}")).collect();
        lines.push(format!("{name}: {} ({})", rules.values().sum::<usize>(), parts.join(", ")));
    }
    lines.extend(broken.into_iter().map(|(name, mend)| format!("{name}: {mend}")));
    Some(lines.join("\n"))
}

/// Returns the first directory, or the file itself at the root.
fn crate_of(file: &str) -> &str {
    Path::new(file).iter().next().and_then(|first| first.to_str()).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "session-core/src/record.rs";
    const TEXT: &str = "/// What a row holds.\nstruct Row;\n\n// nobody\n#[test]\nfn it_is_a_row() {}\n";

    fn found() -> Vec<(&'static str, Finding)> {
        findings(FILE, TEXT).into_iter().map(|finding| (FILE, finding)).collect()
    }

    fn exception(text: &'static str) -> Exception {
        Exception { file: FILE, rule: "pronoun", text, reason: "a test" }
    }

    #[test]
    fn report_has_place_rule_count_and_remedy() {
        let expected = format!(
            "{FILE}:1: opener: What a row holds\n{FILE}:4: pronoun: nobody\n{FILE}:6: test-name-opener: it_is_a_row\n\n\
             session-core: 3 (opener 1, pronoun 1, test-name-opener 1)\nopener: {}\npronoun: {}\ntest-name-opener: {}",
            rules::OPENER.mend,
            rules::PRONOUN.mend,
            rules::TEST_OPENER.mend
        );
        assert_eq!(report(&found(), &[]).unwrap(), expected);
    }

    #[test]
    fn exception_allows_its_own_place_only() {
        let report = report(&found(), &[exception("nobody")]).unwrap();
        assert!(!report.contains("pronoun") && report.contains("opener"), "{report}");
        assert_eq!(super::report(&[], &[]), None);
    }

    #[test]
    fn exception_that_allows_nothing_is_reported() {
        let report = report(&[], &[exception("somebody")]).unwrap();
        assert!(report.starts_with(&format!("{FILE}: pronoun: \"somebody\" is excepted")), "{report}");
    }

    #[test]
    fn every_exception_has_a_reason_and_a_known_rule() {
        for Exception { file, rule, reason, .. } in EXCEPTIONS {
            assert!(!reason.is_empty(), "{file}");
            assert!(rules::ALL.iter().any(|known| known.name == *rule), "{file}: {rule}");
        }
    }

    #[test]
    fn document_is_checked_outside_of_code() {
        let findings = findings("docs/x.md", "`nobody`\n\n```\nnobody\n```\nsomebody\n");
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 6);
    }
}
