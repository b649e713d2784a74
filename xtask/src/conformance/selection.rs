//! The selection of backends to test.

use std::collections::BTreeSet;

use crate::Result;
use crate::table::{CACHES, DATABASES, NEAR_PAIRS, VARIANT_PAIRS};

use super::results::Case;

/// The named caches and databases; all, if neither is named.
#[derive(Debug)]
pub(crate) struct Selection {
    caches: Vec<String>,
    databases: Vec<String>,
}

impl Selection {
    pub(crate) fn new(caches: Vec<String>, databases: Vec<String>) -> Result<Self> {
        let variants = |name: fn(&(&'static str, &'static str)) -> &'static str| {
            VARIANT_PAIRS.iter().chain(NEAR_PAIRS).map(name)
        };
        known("cache", &caches, CACHES.iter().copied().chain(variants(|pair| pair.0)))?;
        known("database", &databases, DATABASES.iter().copied().chain(variants(|pair| pair.1)))?;
        Ok(Self { caches, databases })
    }

    /// Returns the test targets with the tests of these backends.
    pub(crate) fn targets(&self) -> Vec<&'static str> {
        let everything = self.caches.is_empty() && self.databases.is_empty();
        let names = |names: &[String], embedded: &str| names.iter().any(|name| name == embedded);
        if everything || names(&self.caches, "moka") || names(&self.databases, "sqlite") {
            vec!["embedded", "matrix"]
        } else {
            vec!["matrix"]
        }
    }

    /// Returns the environment variables that make the matrix select the same.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [("CONFORMANCE_CACHES", self.caches.join(",")), ("CONFORMANCE_DATABASES", self.databases.join(","))]
    }

    /// Returns whether `case` is selected. The embedded backends always run together, so some of their cases
    /// are not.
    pub(crate) fn has(&self, case: &Case) -> bool {
        let (caches, databases) = (&self.caches, &self.databases);
        if caches.is_empty() && databases.is_empty() {
            return true;
        }
        let chosen = |names: &[String], name: &str| names.iter().any(|chosen| chosen == name);
        match case.backend.rsplit_once('+').filter(|_| case.layer == "pair") {
            Some((cache, database)) => {
                (caches.is_empty() || chosen(caches, cache))
                    && (databases.is_empty() || chosen(databases, database))
            }
            None => {
                let backend = case.backend.trim_start_matches("erased-");
                chosen(if case.layer == "cache" { caches } else { databases }, backend)
            }
        }
    }
}

fn known<'a>(what: &str, names: &[String], all: impl Iterator<Item = &'a str>) -> Result {
    let all: BTreeSet<_> = all.collect();
    match names.iter().find(|name| !all.contains(name.as_str())) {
        None => Ok(()),
        Some(unknown) => {
            let all = Vec::from_iter(all).join(", ");
            Err(format!("there is no {what} {unknown:?}; there are {all}").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::results::Outcome;

    fn selection(caches: &[&str], databases: &[&str]) -> Selection {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Selection::new(owned(caches), owned(databases)).unwrap()
    }

    fn has(selection: &Selection, name: &str) -> bool {
        let mut parts = name.split("::").map(str::to_owned);
        let mut next = || parts.next().unwrap();
        selection.has(&Case { layer: next(), backend: next(), name: next(), outcome: Outcome::Passed })
    }

    #[test]
    fn unknown_name_is_refused_with_the_known_ones() {
        let error = Selection::new(vec!["reddis".into()], Vec::new()).unwrap_err().to_string();
        assert!(error.contains("reddis") && error.contains("redis-cluster"), "{error}");
        let error = Selection::new(Vec::new(), vec!["oracle".into()]).unwrap_err().to_string();
        assert!(error.contains("oracle") && error.contains("mariadb"), "{error}");
        assert_eq!(error.matches("mysql").count(), 1, "{error}");
    }

    #[test]
    fn a_cache_alone_is_tested_with_every_database() {
        let redis = selection(&["redis"], &[]);
        assert!(has(&redis, "cache::redis::x") && has(&redis, "cache::erased-redis::x"));
        assert!(has(&redis, "pair::redis+sqlite::x"));
        assert!(!has(&redis, "persistence::postgres::x") && !has(&redis, "pair::moka+sqlite::x"));
    }

    #[test]
    fn a_cache_and_a_database_are_tested_together() {
        let both = selection(&["redis"], &["postgres"]);
        for name in ["cache::redis::x", "subject_index::postgres::x", "pair::redis+postgres::x"] {
            assert!(has(&both, name), "{name}");
        }
        assert!(!has(&both, "pair::redis+mysql::x") && !has(&both, "pair::valkey+postgres::x"));
    }

    #[test]
    fn near_cache_is_a_cache_of_its_own() {
        let near = selection(&["near+redis"], &["postgres"]);
        assert!(has(&near, "cache::near+redis::x") && has(&near, "pair::near+redis+postgres::x"));
        assert!(!has(&near, "pair::redis+postgres::x") && !has(&near, "cache::redis::x"));
        assert!(!has(&selection(&["redis"], &[]), "pair::near+redis+postgres::x"));
    }

    #[test]
    fn without_names_everything_is_tested() {
        let all = selection(&[], &[]);
        assert!(has(&all, "pair::redis+mysql::x") && has(&all, "cache::moka::x"));
        assert_eq!(all.targets(), ["embedded", "matrix"]);
        assert_eq!(selection(&["redis"], &["mysql"]).targets(), ["matrix"]);
    }
}
