//! The plan of the matrix: which servers are started, and which tests are ignored or fail without them.

#![allow(missing_docs, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]

#[path = "matrix/plan.rs"]
mod plan;

use std::collections::BTreeMap;

use plan::{Fate, Required, Selection, fate, needed};

const KNOWN: &[&str] = &["redis", "postgres", "mysql"];

fn required(value: &str) -> Required {
    Required::parse(value, KNOWN).expect("known names")
}

fn no_redis() -> BTreeMap<&'static str, String> {
    BTreeMap::from([("redis", "no engine answers".to_owned())])
}

#[test]
fn test_whose_servers_are_available_runs() {
    assert_eq!(fate(&["postgres"], &no_redis(), &required("all")), Fate::Run);
    assert_eq!(fate(&[], &no_redis(), &required("all")), Fate::Run);
}

#[test]
fn test_without_its_server_is_ignored_and_names_it() {
    let ignored = Fate::Ignore("no redis".into());
    assert_eq!(fate(&["redis", "postgres"], &no_redis(), &required("")), ignored);
    assert_eq!(fate(&["redis", "postgres"], &no_redis(), &required("postgres, mysql")), ignored);
}

#[test]
fn test_without_a_required_server_fails_with_the_reason() {
    for value in ["all", "redis", " postgres,redis ", "mysql,all"] {
        let Fate::Fail(reason) = fate(&["redis", "postgres"], &no_redis(), &required(value)) else {
            panic!("{value}");
        };
        assert!(reason.contains("no redis: no engine answers") && reason.contains("CONFORMANCE_REQUIRE"));
    }
}

#[test]
fn unknown_required_server_is_an_error() {
    let error = Required::parse("redis,oracle", KNOWN).unwrap_err();
    assert!(error.contains("oracle") && error.contains("postgres"), "{error}");
}

#[test]
fn only_servers_of_wanted_tests_are_needed() {
    let groups: [(&[&str], &[&str]); 3] = [
        (&["redis"], &["cache::redis::one", "cache::redis::two"]),
        (&["redis", "mysql"], &["pair::redis+mysql::three"]),
        (&["postgres"], &["persistence::postgres::four"]),
    ];
    let needed = |part: &str| needed(groups, |name| name.contains(part)).into_iter().collect::<Vec<_>>();
    assert_eq!(needed("two"), ["redis"]);
    assert_eq!(needed("three"), ["mysql", "redis"]);
    assert_eq!(needed("::"), ["mysql", "postgres", "redis"]);
    assert_eq!(needed("nothing"), [""; 0]);
}

#[test]
fn everything_is_selected_unless_a_backend_is_named() {
    let all = Selection::parse("", " ");
    assert!(all.has_cache("redis") && all.has_database("mysql") && all.has_pair("redis", "mysql"));
}

#[test]
fn cache_named_alone_is_tested_with_every_database() {
    let redis = Selection::parse("redis", "");
    assert!(redis.has_cache("redis") && redis.has_pair("redis", "mysql"));
    assert!(!redis.has_cache("valkey") && !redis.has_database("mysql") && !redis.has_pair("valkey", "mysql"));
}

#[test]
fn named_cache_and_database_are_tested_alone_and_together() {
    let both = Selection::parse("redis", "mysql, sqlite");
    assert!(both.has_cache("redis") && both.has_database("sqlite") && both.has_pair("redis", "mysql"));
    assert!(!both.has_pair("redis", "postgres") && !both.has_pair("moka", "mysql"));
}
