//! Every bullet of the contracts has a case, and every case a bullet.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use conformance_tests::reference::{MemoryCache, MemoryPersistence};
use conformance_tests::{cache, database_notices, notices, persistence, rotations, scan, subject_index};

/// Bullets that no call of a backend can show, with the tests that show them instead.
const SHOWN_ELSEWHERE: &[&str] = &[
    // A proxy that counts what is sent on the wire.
    "No method repeats a write of its own accord when its outcome is unknown.",
    // Servers that are killed and paused, and calls that are made while nothing is connected.
    "Keys with the same number are reachable, or not, together. Makes no call.",
    // Each backend's own tests, which make statements fail, block and outlive their clients, and read query
    // plans.
    "An error says whether a write may have happened",
    "A statement whose client has given up goes on for at most",
    "Uses an index, not a scan of the table.",
    "Goes by an index, from where it is to begin",
    // Only SQLite's columns, made by hand, have room for one: a test of its own.
    "A note that cannot be read is left out.",
    "Touches no table but its own, and not the application's own migrations.",
];

#[test]
fn every_bullet_of_cache_has_a_case() {
    let contract = include_str!("../../session-core/src/cache.rs");
    let fixture = cache::cases::<fn() -> std::future::Ready<MemoryCache>>();
    let shown = fixture.iter().map(|case| case.shows).collect::<Vec<_>>();
    compare(contract, &shown);
}

#[test]
fn every_bullet_of_both_sources_of_notices_has_a_case() {
    let contract = include_str!("../../session-core/src/notices.rs");
    let fixture = notices::cases::<fn() -> std::future::Ready<MemoryCache>>();
    let mut shown = fixture.iter().map(|case| case.shows).collect::<Vec<_>>();
    let of_databases = database_notices::cases::<fn() -> std::future::Ready<MemoryPersistence>>();
    shown.extend(of_databases.iter().map(|case| case.shows));
    compare(contract, &shown);
}

#[test]
fn every_bullet_of_persistence_and_subject_index_has_a_case() {
    let contract = concat!(
        include_str!("../../session-core/src/persistence.rs"),
        include_str!("../../session-core/src/record_write.rs")
    );
    type Fixture = fn() -> std::future::Ready<MemoryPersistence>;
    let mut shown = persistence::cases::<Fixture>().iter().map(|case| case.shows).collect::<Vec<_>>();
    shown.extend(subject_index::cases::<Fixture>().iter().map(|case| case.shows));
    compare(contract, &shown);
}

#[test]
fn every_bullet_of_scan_has_a_case() {
    let contract = include_str!("../../session-core/src/scan.rs");
    let fixture = scan::cases::<fn() -> std::future::Ready<MemoryPersistence>>();
    let shown = fixture.iter().map(|case| case.shows).collect::<Vec<_>>();
    compare(contract, &shown);
}

#[test]
fn every_bullet_of_rotations_has_a_case() {
    let contract = include_str!("../../session-core/src/rotations.rs");
    let fixture = rotations::cases::<fn() -> std::future::Ready<MemoryPersistence>>();
    let shown = fixture.iter().map(|case| case.shows).collect::<Vec<_>>();
    compare(contract, &shown);
}

/// Returns the lines of a source, with the text of those that are documentation.
fn documentation(source: &str) -> impl Iterator<Item = Option<&str>> {
    source
        .lines()
        .map(|line| line.trim_start().strip_prefix("///").map(|text| text.strip_prefix(' ').unwrap_or(text)))
}

/// Returns the items of all `# Behavior` lists in a source.
fn bullets(source: &str) -> Vec<String> {
    let (mut bullets, mut is_behavior) = (Vec::<String>::new(), false);
    for text in documentation(source) {
        let Some(text) = text else {
            is_behavior = false;
            continue;
        };
        if text.starts_with('#') {
            is_behavior = text == "# Behavior";
        } else if let Some(item) = text.strip_prefix("- ").filter(|_| is_behavior) {
            bullets.push(item.to_owned());
        } else if let Some(more) = text.strip_prefix("  ").filter(|_| is_behavior) {
            let bullet = bullets.last_mut().expect("a list begins with an item");
            bullet.push(' ');
            bullet.push_str(more);
        }
    }
    assert!(bullets.len() > 2, "the lists were not found");
    bullets
}

fn compare(source: &str, shown: &[&str]) {
    let is_shown = |bullet: &String| shown.iter().chain(SHOWN_ELSEWHERE).any(|case| bullet.starts_with(case));
    let bullets = bullets(source);
    let without_case: Vec<_> = bullets.iter().filter(|bullet| !is_shown(bullet)).collect();
    assert!(without_case.is_empty(), "no case shows: {without_case:#?}");
    // A case may also show another sentence of the documentation.
    let all = documentation(source).flatten().collect::<Vec<_>>().join(" ").replace("   ", " ");
    let made_up: Vec<_> = shown.iter().filter(|case| case.is_empty() || !all.contains(**case)).collect();
    assert!(made_up.is_empty(), "the contract does not say: {made_up:#?}");
}
