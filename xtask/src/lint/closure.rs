//! The dependencies that members must not have.
//!
//! A backend's feature brings that backend's driver and no other's, no feature brings none, the core knows no
//! runtime and no driver, and nothing needs OpenSSL. cargo-deny cannot say this, because it looks at one set
//! of features at a time.

use std::collections::BTreeSet;

use super::metadata::Member;
use crate::Result;

/// A backend's feature and the crate that is its driver.
const DRIVERS: &[(&str, &str)] = &[
    ("moka", "moka"),
    ("redis", "redis"),
    ("memcached", "memcache"),
    ("sqlite", "sqlx-sqlite"),
    ("postgres", "sqlx-postgres"),
    ("mysql", "sqlx-mysql"),
];

/// Crates that a member has in none of its builds.
const NEVER: &[(&str, &[&str])] = &[
    ("session-core", &["tokio", "sqlx", "cache-backends", "db-backends", "session-cached-db"]),
    ("cache-backends", &["sqlx", "sqlx-core", "db-backends", "session-cached-db"]),
    ("db-backends", &["cache-backends", "session-cached-db"]),
    ("conformance-tests", &["cache-backends", "db-backends", "testcontainers"]),
];

/// The crates that a member has with one of its features only. The simulator runs the near cache and the memory that
/// programs use.
const BUT: &[(&str, &str, &[&str])] = &[("conformance-tests", "simulation", &["cache-backends", "moka"])];

/// Crates that nothing has.
const NOWHERE: &[&str] = &["openssl", "openssl-sys", "native-tls"];

/// Features of serde_json that change the behaviour of every crate in the graph.
const SERDE_JSON_FEATURES: &[&str] = &["arbitrary_precision", "preserve_order"];

/// Arguments of `cargo tree` for one line per crate that is linked: `NAME VERSION FEATURE,FEATURE`.
const LINKED: &[&str] = &["--edges=normal", "--prefix=none", "--no-dedupe", "--format={p} {f}"];

pub(crate) fn check(members: &[Member]) -> Result {
    let mut wrong = BTreeSet::new();
    for member in members.iter().filter(|member| member.name != "xtask") {
        for feature in member.builds() {
            let build = format!("{} with {}", member.name, feature.unwrap_or("no features"));
            let tree = member.tree(feature, LINKED)?;
            let forbidden = forbidden(member, feature);
            wrong.extend(
                tree.lines()
                    .filter_map(|line| offence(line, &forbidden))
                    .map(|what| format!("{build} has {what}")),
            );
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Vec::from_iter(wrong).join("\n").into()) }
}

fn forbidden(member: &Member, feature: Option<&str>) -> Vec<&'static str> {
    let enabled = feature.map(|name| member.closure(name)).unwrap_or_default();
    let asked_for = |backend: &str| enabled.iter().any(|name| name.rsplit('/').next() == Some(backend));
    let drivers = DRIVERS.iter().filter(|(backend, _)| !asked_for(backend)).map(|(_, driver)| *driver);
    let never =
        NEVER.iter().filter(|(name, _)| *name == member.name).flat_map(|(_, crates)| *crates).copied();
    let is_allowed = |has: &&str| {
        BUT.iter().any(|(name, feature, crates)| {
            *name == member.name && enabled.contains(feature) && crates.contains(has)
        })
    };
    drivers.chain(never).filter(|has| !is_allowed(has)).chain(NOWHERE.iter().copied()).collect()
}

fn offence(line: &str, forbidden: &[&str]) -> Option<String> {
    let (name, rest) = line.split_once(' ')?;
    if forbidden.contains(&name) {
        return Some(name.to_owned());
    }
    let features = rest.rsplit(' ').next().unwrap_or_default();
    let bad =
        features.split(',').find(|feature| name == "serde_json" && SERDE_JSON_FEATURES.contains(feature))?;
    Some(format!("{name}'s feature {bad}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, features: &[(&str, &[&str])]) -> Member {
        let owned = |(name, enables): &(&str, &[&str])| {
            ((*name).to_owned(), enables.iter().map(|e| (*e).to_owned()).collect())
        };
        Member { name: name.to_owned(), features: features.iter().map(owned).collect(), ..Member::default() }
    }

    #[test]
    fn a_feature_allows_its_own_driver_only() {
        let cached_db = member(
            "session-cached-db",
            &[
                ("moka", &["dep:cache-backends", "cache-backends/moka"]),
                ("both", &["moka", "sqlite"]),
                ("sqlite", &[]),
            ],
        );
        let without = forbidden(&cached_db, None);
        assert!(
            without.contains(&"moka") && without.contains(&"sqlx-sqlite") && without.contains(&"openssl")
        );
        let moka = forbidden(&cached_db, Some("moka"));
        assert!(!moka.contains(&"moka") && moka.contains(&"sqlx-sqlite"));
        let both = forbidden(&cached_db, Some("both"));
        assert!(!both.contains(&"moka") && !both.contains(&"sqlx-sqlite") && both.contains(&"redis"));
    }

    #[test]
    fn the_suite_has_backends_in_the_simulator_only() {
        let suite = member("conformance-tests", &[("simulation", &["dep:cache-backends"])]);
        assert!(forbidden(&suite, None).contains(&"cache-backends"));
        let simulator = forbidden(&suite, Some("simulation"));
        assert!(!simulator.contains(&"cache-backends") && !simulator.contains(&"moka"));
        assert!(simulator.contains(&"db-backends") && simulator.contains(&"redis"));
    }

    #[test]
    fn the_core_has_no_runtime() {
        assert!(forbidden(&member("session-core", &[]), None).contains(&"tokio"));
        assert!(!forbidden(&member("session-cached-db", &[]), None).contains(&"tokio"));
    }

    #[test]
    fn offences_are_crates_and_features() {
        let forbidden = ["tokio"];
        assert_eq!(offence("tokio v1.54.0 default,rt", &forbidden).as_deref(), Some("tokio"));
        assert_eq!(offence("tokio-util v0.7.0 ", &forbidden), None);
        assert_eq!(offence("serde_json v1.0.1 default,raw_value,std", &forbidden), None);
        assert_eq!(
            offence("serde_json v1.0.1 default,preserve_order", &forbidden).as_deref(),
            Some("serde_json's feature preserve_order")
        );
    }
}
