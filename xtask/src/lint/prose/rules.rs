//! The rules, and how to mend what breaks one.

use super::words::{Block, Word};

/// A rule that a program can check.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    pub(super) mend: &'static str,
}

pub(super) const OPENER: Rule = Rule {
    name: "opener",
    mend: "begin with a verb in the third person (\"Returns …\", \"Sets …\"), or for a type with a noun phrase",
};
pub(super) const PRONOUN: Rule = Rule {
    name: "pronoun",
    mend: "name the subject: the request, the caller, the node, the client, another writer, no one, they",
};
pub(super) const AS_EVERY: Rule = Rule {
    name: "as-every-write",
    mend: "write a sentence that stands alone, or link to the one place that defines it",
};
pub(super) const DEFAULT: Rule = Rule { name: "default", mend: "name the value: \"Defaults to `false`.\"" };
pub(super) const TEST_LENGTH: Rule =
    Rule { name: "test-name-length", mend: "shorten to at most 70 characters: subject_condition_result" };
pub(super) const TEST_OPENER: Rule = Rule {
    name: "test-name-opener",
    mend: "name the subject, so that the name is understood without the test above it",
};

#[cfg(test)]
pub(super) const ALL: [&Rule; 6] = [&OPENER, &PRONOUN, &AS_EVERY, &DEFAULT, &TEST_LENGTH, &TEST_OPENER];

const OPENERS: &[&str] = &["What", "Whoever", "Whether", "How", "Why", "Where", "When"];
const PRONOUNS: &[&str] = &[
    "whoever", "whomever", "somebody", "nobody", "anybody", "he", "him", "his", "himself", "she", "her",
    "herself",
];
const AFTER_BY_DEFAULT: &[&str] = &["so", "not", "nobody", "none", "nothing", "no", "yes"];
const TEST_OPENERS: &[&str] = &["it", "its", "they", "and", "or", "nor", "neither", "but", "also"];
const MAX_TEST_NAME: usize = 70;

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) line: usize,
    pub(super) rule: &'static Rule,
    /// The words in question, and those that follow.
    pub(super) text: String,
}

/// Checks a comment or a document.
pub(super) fn of_block(block: &Block) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, word) in block.words.iter().enumerate() {
        let from_here = block.words.get(number..).unwrap_or_default();
        let is_opener = number == 0 && block.is_rustdoc && OPENERS.contains(&word.text.as_str());
        let rules = [
            (&OPENER, is_opener),
            (&PRONOUN, is_pronoun(&word.text)),
            (&AS_EVERY, begins_with(from_here, &[&["as"], &["every"], &["write", "writes"]])),
            (&DEFAULT, begins_with(from_here, &[&["by"], &["default"], AFTER_BY_DEFAULT])),
        ];
        // A word that breaks two rules is mended once.
        if let Some((rule, _)) = rules.into_iter().find(|(_, is_broken)| *is_broken) {
            findings.push(Finding { line: word.line, rule, text: excerpt(from_here) });
        }
    }
    findings
}

/// Checks the names of tests.
pub(super) fn of_tests(names: &[(usize, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, name) in names {
        let rules = [
            (&TEST_LENGTH, name.chars().count() > MAX_TEST_NAME),
            (&TEST_OPENER, name.split('_').next().is_some_and(|first| TEST_OPENERS.contains(&first))),
            (&PRONOUN, name.split('_').any(is_pronoun)),
        ];
        let broken = rules.into_iter().filter(|(_, is_broken)| *is_broken);
        findings.extend(broken.map(|(rule, _)| Finding { line: *line, rule, text: (*name).to_owned() }));
    }
    findings
}

fn is_pronoun(word: &str) -> bool {
    let word = word.to_lowercase();
    PRONOUNS.contains(&word.trim_end_matches("'s").trim_end_matches("’s"))
}

/// Returns whether the words at the beginning are, one by one, among the given.
fn begins_with(words: &[Word], expected: &[&[&str]]) -> bool {
    let is_one = |(word, choices): (&Word, &&[&str])| choices.contains(&word.text.to_lowercase().as_str());
    words.len() >= expected.len() && words.iter().zip(expected).all(is_one)
}

fn excerpt(words: &[Word]) -> String {
    words.iter().take(6).map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// Returns the names of the tests in `code`, with their lines: of functions with an attribute `test` of any
/// crate, and of those that a macro lists for a program without the standard harness.
pub(super) fn names_of_tests(code: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    let (mut is_test, mut list_indent) = (false, None);
    for (number, line) in (1..).zip(code.lines()) {
        let (trimmed, indent) = (line.trim_start(), line.len() - line.trim_start().len());
        if let Some(begun) = list_indent {
            if indent <= begun && trimmed.starts_with(['}', ')', ']']) {
                list_indent = None;
            } else {
                let words = trimmed.split(|one: char| !one.is_ascii_alphanumeric() && one != '_');
                let is_name = |word: &&str| {
                    word.starts_with(|one: char| one.is_ascii_lowercase()) && word.contains('_')
                };
                names.extend(words.filter(is_name).map(|word| (number, word)));
            }
        } else if is_list(trimmed) {
            list_indent = Some(indent);
        } else if is_test_attribute(trimmed) {
            is_test = true;
        } else if let Some(name) = function_name(trimmed) {
            names.extend(is_test.then_some((number, name)));
            is_test = false;
        }
    }
    names
}

fn is_list(line: &str) -> bool {
    let calls = |name: &str| {
        line.split_once(name).is_some_and(|(before, behind)| {
            !before.ends_with(|one: char| one.is_alphanumeric() || one == '_')
                && behind.trim_start().starts_with(['{', '(', '['])
                && line.ends_with(['{', '(', '['])
        })
    };
    ["cases!", "tests!", "scenarios!", "direct!", "in_browser!"].into_iter().any(calls)
}

fn is_test_attribute(line: &str) -> bool {
    let path = line.strip_prefix("#[").and_then(|rest| rest.split(['(', ']']).next());
    path.and_then(|path| path.rsplit("::").next()) == Some("test")
}

fn function_name(line: &str) -> Option<&str> {
    let (before, behind) = line.split_once("fn ")?;
    let is_qualifier = |word: &str| word.starts_with("pub") || ["async", "const", "unsafe"].contains(&word);
    let name = behind.split(['(', '<']).next()?;
    before.split_whitespace().all(is_qualifier).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::super::words::{of_comments, of_document};
    use super::*;

    fn broken(comment: &str) -> Vec<(usize, &'static str)> {
        let blocks = of_comments(&Source::parse(comment).comments);
        blocks.iter().flat_map(of_block).map(|finding| (finding.line, finding.rule.name)).collect()
    }

    #[test]
    fn opener_is_refused_as_the_first_word_of_rustdoc_only() {
        assert_eq!(broken("/// What a row holds."), [(1, "opener")]);
        assert_eq!(broken("//! Whether it is there."), [(1, "opener")]);
        assert_eq!(broken("/// Whoever waits."), [(1, "opener")]);
        for question in ["How far it is.", "Why it failed.", "Where it is.", "When it ends."] {
            assert_eq!(broken(&format!("/// {question}")), [(1, "opener")], "{question}");
        }
        assert!(broken("/// Opens it.\n///\n/// When the future is dropped, it may be open.").is_empty());
        assert!(broken("/// Returns what a row holds. What is left stays.").is_empty());
        assert!(broken("// What a row holds.").is_empty());
    }

    #[test]
    fn pronoun_is_refused_in_comments_and_documents() {
        assert_eq!(
            broken("fn f() {}\n\n// Waits until somebody\n// asks, and nobody's fault."),
            [(3, "pronoun"), (4, "pronoun")]
        );
        assert!(broken("// The caller shares the cache `nobody` with others.").is_empty());
        let findings = of_block(&of_document("# Title\n\n| his | own |\n")[0]);
        assert_eq!(findings, [Finding { line: 3, rule: &PRONOUN, text: "his own".to_owned() }]);
    }

    #[test]
    fn fixed_phrases_are_refused_across_lines() {
        assert_eq!(broken("/// # Errors\n///\n/// As every\n/// write."), [(3, "as-every-write")]);
        assert_eq!(broken("/// Signs. By\n/// default not."), [(1, "default")]);
        assert!(broken("/// Signs. By default, it does not.").is_empty());
    }

    #[test]
    fn test_names_are_found_by_attribute_and_in_lists() {
        let source = Source::parse(
            "#[test]\nfn a_is_b() {}\n#[tokio::test(flavor = \"x\")]\n#[ignore]\nasync fn c_is_d<T>() {}\nfn helper_of_it() {}\n\
             cases! {\n    /// All.\n    for Fixture:\n    e_is_f => \"No name_here\",\n}\nfn g_is_h() {}\n\
             const T: &[T] = tests! {\n    module: i_is_j [\"redis\"], k_is_l;\n};\nmacro_rules! tests {\n    (a_b) => {}\n}\n",
        );
        let names: Vec<_> = names_of_tests(&source.code).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["a_is_b", "c_is_d", "e_is_f", "i_is_j", "k_is_l"]);
    }

    #[test]
    fn test_names_are_short_and_name_their_subject() {
        let long = "x".repeat(71);
        let broken =
            |name: &str| of_tests(&[(1, name)]).iter().map(|finding| finding.rule.name).collect::<Vec<_>>();
        assert_eq!(broken(&long), ["test-name-length"]);
        assert_eq!(broken("nor_is_whoever_comes_after"), ["test-name-opener", "pronoun"]);
        assert_eq!(broken("fill_is_lost_when_a_writer_fences_meanwhile"), [""; 0]);
    }

    #[test]
    fn rules_have_names_of_their_own_and_say_how_to_mend() {
        for rule in ALL {
            assert_eq!(ALL.iter().filter(|other| other.name == rule.name).count(), 1, "{}", rule.name);
            assert!(!rule.mend.is_empty());
        }
    }
}
