//! The names that a backend can have.

use std::fmt;

use crate::Result;

/// Longer names make lines that cannot be formatted.
const MAX_LEN: usize = 24;

/// No module can have these names: keywords, those that are reserved for later, and those of crates that
/// every module uses.
const TAKEN: &str = "\
    abstract alloc as async await become box break const continue core crate default do dyn else enum \
    extern false final fn for gen if impl in let loop macro macro_rules match mod move mut override priv \
    pub ref return self session_core static std struct super test trait true try type typeof union unsafe \
    unsized use virtual where while yield";

/// The name of a backend: of its module, and of its cargo feature.
#[derive(Debug)]
pub(super) struct Name(String);

impl Name {
    pub(super) fn parse(name: &str) -> Result<Self> {
        let is_known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_word = |word: &str| !word.is_empty();
        let wrong = if name.is_empty() {
            "is empty"
        } else if name.len() > MAX_LEN {
            "is longer than 24 characters"
        } else if !name.chars().all(is_known) {
            "is not a name of a module: use a-z, 0-9 and _"
        } else if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.split('_').all(is_word) {
            "is not a name of a module: begin with a letter, and put each _ between two words"
        } else if TAKEN.split(' ').any(|taken| taken == name) {
            "means something in Rust; choose another name"
        } else {
            return Ok(Self(name.to_owned()));
        };
        Err(format!("{name:?} {wrong}").into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of its type: `foo_bar` becomes `FooBarCache`.
    fn type_name(&self, suffix: &str) -> String {
        let capital = |word: &str| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase())
                .into_iter()
                .chain(letters)
                .collect::<String>()
        };
        self.0.split('_').map(capital).chain([suffix.to_owned()]).collect()
    }

    /// Fills the name into a template.
    pub(super) fn fill(&self, template: &str, suffix: &str) -> String {
        template
            .replace("{{name}}", &self.0)
            .replace("{{NAME}}", &self.0.to_ascii_uppercase())
            .replace("{{Name}}", &self.type_name(suffix))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_modules_are_accepted() {
        for name in ["etcd", "foo_bar", "s3", "redis_7"] {
            assert_eq!(Name::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn other_names_are_refused_with_a_reason() {
        let long = "a".repeat(MAX_LEN + 1);
        let cases = [
            ("", "empty"),
            ("Etcd", "a-z"),
            ("et-cd", "a-z"),
            ("../etcd", "a-z"),
            ("etcd ", "a-z"),
            ("étcd", "a-z"),
            ("7redis", "letter"),
            ("_etcd", "letter"),
            ("etcd_", "words"),
            ("et__cd", "words"),
            ("match", "Rust"),
            ("self", "Rust"),
            ("std", "Rust"),
            (&long, "24"),
        ];
        for (name, reason) in cases {
            let error = Name::parse(name).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(&format!("{name:?}")), "{name}: {error}");
        }
    }

    #[test]
    fn the_type_is_named_after_the_module() {
        let name = Name::parse("foo_bar").unwrap();
        assert_eq!(name.fill("{{name}}::{{Name}} {{NAME}}", "Cache"), "foo_bar::FooBarCache FOO_BAR");
    }
}
