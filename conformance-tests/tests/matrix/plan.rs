//! The fate of a test, by whether its servers are available.

use std::collections::{BTreeMap, BTreeSet};

/// The servers that must be available, by `CONFORMANCE_REQUIRE`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Required {
    All,
    These(BTreeSet<String>),
}

impl Required {
    /// # Errors
    ///
    /// Returns what is wrong with `value`. A name of no server would require nothing.
    pub(crate) fn parse(value: &str, known: &[&str]) -> Result<Self, String> {
        let names = names(value);
        if names.contains("all") {
            return Ok(Self::All);
        }
        match names.iter().find(|name| !known.contains(&name.as_str())) {
            Some(unknown) => Err(format!("there is no server {unknown:?}; there are {}", known.join(", "))),
            None => Ok(Self::These(names)),
        }
    }

    fn contains(&self, server: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(server),
        }
    }
}

/// The backends to test: all, if neither caches nor databases are named.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    caches: BTreeSet<String>,
    databases: BTreeSet<String>,
}

impl Selection {
    /// Reads two lists with commas.
    pub(crate) fn parse(caches: &str, databases: &str) -> Self {
        Self { caches: names(caches), databases: names(databases) }
    }

    pub(crate) fn has_cache(&self, cache: &str) -> bool {
        self.caches.contains(cache) || self.is_empty()
    }

    pub(crate) fn has_database(&self, database: &str) -> bool {
        self.databases.contains(database) || self.is_empty()
    }

    /// Returns `true` if the pair is to be tested. A cache that is named alone is tested with every database,
    /// and the other way round.
    pub(crate) fn has_pair(&self, cache: &str, database: &str) -> bool {
        (self.caches.is_empty() || self.caches.contains(cache))
            && (self.databases.is_empty() || self.databases.contains(database))
    }

    fn is_empty(&self) -> bool {
        self.caches.is_empty() && self.databases.is_empty()
    }
}

fn names(list: &str) -> BTreeSet<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The fate of the tests that need some servers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Run,
    /// Ignored. Holds the missing servers, in short form, for the line of each test.
    Ignore(String),
    /// Failed. Holds the reasons.
    Fail(String),
}

/// Decides the fate of tests. `missing` holds the servers that are not available, each with the reason.
pub(crate) fn fate(servers: &[&str], missing: &BTreeMap<&str, String>, required: &Required) -> Fate {
    let without: Vec<_> = servers.iter().filter(|server| missing.contains_key(*server)).collect();
    if without.is_empty() {
        return Fate::Run;
    }
    let named = without.iter().map(|server| format!("no {server}")).collect::<Vec<_>>().join(", ");
    if !without.iter().any(|server| required.contains(server)) {
        return Fate::Ignore(named);
    }
    let reasons: Vec<_> = without.iter().map(|server| missing[**server].as_str()).collect();
    Fate::Fail(format!("{named}: {}; CONFORMANCE_REQUIRE demands it", reasons.join("; ")))
}

/// Returns the servers of those groups of tests of which at least one test is wanted. A group is the servers
/// that it needs, and the names of its tests.
pub(crate) fn needed<'a, T>(
    groups: impl IntoIterator<Item = (&'a [&'static str], &'a [T])>,
    is_wanted: impl Fn(&T) -> bool,
) -> BTreeSet<&'static str>
where
    T: 'a,
{
    let wanted = groups.into_iter().filter(|(_, tests)| tests.iter().any(&is_wanted));
    wanted.flat_map(|(servers, _)| servers.iter().copied()).collect()
}
