//! Every promise in the tables of the documents is shown by a scenario, and a seeded fault breaks it.

#![cfg(feature = "simulation")]
#![allow(missing_docs, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;

use conformance_tests::simulation::{Mutant, SHOWN_IN, Scenario};

const DOCUMENTS: [&str; 2] =
    [include_str!("../../docs/coherence.md"), include_str!("../../docs/near-caches.md")];

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Promises that the simulator cannot judge, because no near cache follows a rotation in it, with the file and the name of the test
/// that shows them on real servers.
const ELSEWHERE: [(&str, &str, &str); 1] = [(
    "N9",
    "conformance-tests/tests/network/near.rs",
    "old_key_shows_no_past_once_a_client_has_the_new_one",
)];

/// The heading of a table that says which fault breaks which promise.
const SHOWN: &str = "| promise | seeded fault that breaks it | scenario in which it does |";

/// A promise, with the name of the fault that breaks it and the scenario in which it does.
type Shown = (String, String, String);

/// Returns the names of the promises in `document`, and what its tables say about them. A promise is a row that begins with
/// its name, like `G1`.
fn tables(document: &str) -> (Vec<String>, Vec<Shown>) {
    let (mut promises, mut shown) = (Vec::new(), Vec::new());
    let mut heading = "";
    let mut before = "";
    for line in document.lines() {
        if line.starts_with('|') && !before.starts_with('|') {
            heading = line;
        }
        before = line;
        let cells: Vec<_> = line.split(" | ").map(|cell| cell.trim_matches([' ', '|', '`'])).collect();
        let [first, second, third, ..] = cells[..] else { continue };
        if !is_name(first) {
            continue;
        }
        match heading == SHOWN {
            true => shown.push((first.to_owned(), second.to_owned(), third.to_owned())),
            false => promises.push(first.to_owned()),
        }
    }
    (promises, shown)
}

fn is_name(cell: &str) -> bool {
    let number = cell.strip_prefix(['G', 'N', 'R']);
    number.is_some_and(|number| number.parse::<u8>().is_ok())
}

/// Returns what is wrong with the tables of `documents`.
fn faults(documents: &[&str]) -> Vec<String> {
    let (mut promises, mut shown) = (Vec::new(), Vec::new());
    for document in documents {
        let (more_promises, more_shown) = tables(document);
        promises.extend(more_promises);
        shown.extend(more_shown);
    }
    let mut faults = Vec::new();
    let names: BTreeSet<_> = promises.iter().collect();
    if names.len() < promises.len() {
        faults.push("two promises have one name".to_owned());
    }
    for promise in &names {
        if !shown.iter().any(|(name, ..)| name == *promise) {
            faults.push(format!("{promise} is not shown"));
        }
    }
    for (promise, mutant, scenario) in &shown {
        if !names.contains(promise) {
            faults.push(format!("{promise} is no promise"));
        }
        if let Some((_, path, name)) = ELSEWHERE.iter().find(|(other, ..)| other == promise) {
            let source = std::fs::read_to_string(format!("{ROOT}/{path}")).unwrap_or_default();
            if mutant != path || scenario != name || !source.contains(&format!("fn {name}(")) {
                faults.push(format!("{promise} is shown by {name} in {path}, and there alone"));
            }
            continue;
        }
        if !SHOWN_IN.iter().any(|(listed, name)| format!("{listed:?}") == *mutant && name == scenario) {
            faults.push(format!("the simulator does not look for {mutant} in {scenario}"));
        }
        if let Err(error) = scenario.parse::<Scenario>() {
            faults.push(error);
        }
    }
    for mutant in Mutant::ALL.iter().map(|mutant| format!("{mutant:?}")) {
        if !shown.iter().any(|(_, name, _)| *name == mutant) {
            faults.push(format!("{mutant} breaks no promise"));
        }
    }
    faults
}

#[test]
fn every_promise_is_shown_and_broken_by_a_seeded_fault() {
    let faults = faults(&DOCUMENTS);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let promises: Vec<_> = DOCUMENTS.iter().flat_map(|document| tables(document).0).collect();
    assert!(promises.len() > 20, "the tables of promises are not where they were: {promises:?}");
}

#[test]
fn tables_that_do_not_fit_are_reported() {
    let [coherence, near] = DOCUMENTS;
    let changes = [
        ("| G3 | `EvictionUnfenced` | `load@1+save@0/cached/shared/2` |\n", "", "G3 is not shown"),
        (
            "`EvictionUnfenced` | `load@1+save@0/cached/shared/2`",
            "`Gone` | `load@1`",
            "look for Gone in load@1",
        ),
        ("| R3 | `TouchNotDue`", "| R2 | `TouchNotDue`", "R3 is not shown"),
        ("| R3 | `TouchNotDue`", "| R3 | `TouchRepeated`", "TouchNotDue breaks no promise"),
        ("| G10 | a cache", "| G9 | a cache", "two promises have one name"),
    ];
    for (text, other, fault) in changes {
        let changed = coherence.replacen(text, other, 1);
        assert_ne!(changed, coherence, "{text}");
        let found = faults(&[&changed, near]).join("\n");
        assert!(found.contains(fault), "{found}");
    }
}
