//! The simulator on a small scale, and that it can fail. `cargo xtask simulate` runs all of it.

#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeSet;

use conformance_tests::simulation::{
    Mutant, Operation, Scenario, SweepError, Vector, detect, explore, random_run, replay, select_mutant,
    sweep,
};

#[test]
fn every_mix_of_two_keeps_its_promises_without_faults() {
    let explored = sweep(&Scenario::all(2, 0), |_, _| {}).unwrap_or_else(|error| panic!("{error}"));
    assert!(explored.states > 10_000, "{explored:?}");
}

#[test]
fn load_and_delete_keep_their_promises_with_any_one_fault() {
    for name in ["load@0+delete@0/vacant/shared/1", "load@0+delete@1/cached/sensitive/1"] {
        let (explored, violation) = explore(&name.parse().unwrap(), false);
        assert!(violation.is_none(), "{violation:?}");
        assert!(explored.ends > 0, "{explored:?}");
    }
}

#[test]
fn crowd_keeps_its_promises_in_every_interleaving() {
    for name in [
        "load@1+merge@0+merge@0+touch@0+delete@0/vacant/shared/0",
        "load@0+load@0+load@0+delete@1/vacant/shared/0",
    ] {
        let (explored, violation) = explore(&name.parse().unwrap(), false);
        assert!(violation.is_none(), "{violation:?}");
        assert!(explored.completions > 0, "{explored:?}");
    }
}

#[test]
fn writer_that_is_overtaken_eight_times_in_a_row_continues() {
    let (explored, violation) = explore(&"merge@0/vacant/shared/0/rival8".parse().unwrap(), false);
    assert!(violation.is_none(), "{violation:?}");
    assert!(explored.ends > 0, "{explored:?}");
    assert!(detect(Mutant::LosingIsOutage).unwrap().violation.reason.contains("did not answer"));
}

#[test]
fn load_that_is_not_polled_any_more_strands_no_other() {
    let found = detect(Mutant::LeaderOwnsFlight).unwrap().violation;
    assert!(found.reason.contains("waits for something that never happens"), "{}", found.reason);
}

#[test]
fn memory_that_the_database_tells_keeps_its_promises() {
    let (explored, violation) = explore(&"load@1+delete@0/cached/notified/1".parse().unwrap(), false);
    assert!(violation.is_none(), "{violation:?}");
    assert!(explored.ends > 0, "{explored:?}");
    for mutant in [Mutant::NotifiedStaleLookup, Mutant::NotifiedFillUnchecked] {
        assert!(detect(mutant).unwrap().violation.reason.contains("an old state"));
    }
}

#[test]
fn sessions_that_get_other_keys_keep_their_promises() {
    let rotations = Scenario::rotations().unwrap().into_iter();
    let calm: Vec<_> = rotations.map(|scenario| Scenario { faults: 0, ..scenario }).collect();
    let explored = sweep(&calm, |_, _| {}).unwrap_or_else(|error| panic!("{error}"));
    assert!(explored.ends > 0, "{explored:?}");
    for mutant in [Mutant::RotationNotedLate, Mutant::RightsRevealed, Mutant::LogoutNotFollowed] {
        assert!(detect(mutant).unwrap().violation.reason.contains("not linearizable"));
    }
}

#[test]
fn every_crowd_is_a_scenario() {
    let all = Scenario::crowds(true).unwrap();
    assert!(all.len() > Scenario::crowds(false).unwrap().len());
    for scenario in all {
        assert_eq!(scenario.to_string().parse(), Ok(scenario));
    }
}

#[test]
fn completed_run_can_be_replayed() {
    let replayed = replay(&"merge@0+merge@0/vacant/shared/0:0.0.end".parse().unwrap()).unwrap();
    assert_eq!((replayed.steps.len(), replayed.violation), (3, None));
}

#[test]
fn every_operation_is_part_of_a_scenario() {
    // Most of the mixes; a write past the caches of this crate is one of the rare ones.
    let mixes = Scenario::all(2, 2).into_iter().chain(Scenario::rare().unwrap());
    let all: Vec<_> = mixes.chain(Scenario::rotations().unwrap()).collect();
    for operation in Operation::ALL {
        assert!(all.iter().any(|scenario| scenario.operations.iter().any(|(other, _)| other == operation)));
    }
}

#[test]
fn every_mix_of_three_has_one_first_arrangement() {
    let mix = |scenario: &Scenario| {
        let mut operations: Vec<_> = scenario.operations.iter().map(|(operation, _)| *operation).collect();
        operations.sort_unstable();
        operations
    };
    let all = Scenario::all(3, 1);
    let mixes: BTreeSet<_> = all.iter().map(mix).collect();
    let first: Vec<_> = all.iter().filter(|scenario| scenario.is_first_arrangement()).map(mix).collect();
    assert_eq!((first.len(), first.into_iter().collect()), (mixes.len(), mixes));
}

#[test]
fn detected_mutant_is_shown_again_by_its_vector() {
    let found = detect(Mutant::TouchPublishes).unwrap();
    let vector: Vector = found.violation.vector.to_string().parse().unwrap();
    assert_eq!(vector, found.violation.vector);

    select_mutant(Some(Mutant::TouchPublishes));
    let replayed = replay(&vector);
    select_mutant(None);
    assert_eq!(replayed.unwrap().violation, Some(found.violation.reason));
    let without = replay(&vector);
    assert!(without.is_err() || without.unwrap().violation.is_none());
}

#[test]
fn vector_that_does_not_fit_is_refused() {
    for (vector, reason) in [
        ("load@0/cached/shared/0", "no `:`"),
        ("load@0/cached/shared/0:x", "no number"),
        ("load@0/cached/shared/0/rivals:0", "fifth part"),
        ("load@0/cached/near/0/ticks:0", "fifth part"),
        ("load@0/cached/shared/0/ticks1:0", "near caches only"),
        ("load@0/cached/0:0", "four parts"),
        ("fly@0/cached/shared/0:0", "operations are unknown"),
        ("load@2/cached/shared/0:0", "operations are unknown"),
        ("load@0+load@1/cached/process/0:0", "two processes"),
        ("load@0/cached/shared/0:7", "step 1 chooses 7"),
        ("load@0/cached/shared/0:", "ends after 0 steps"),
    ] {
        let error = vector.parse().and_then(|vector: Vector| replay(&vector)).unwrap_err();
        assert!(error.contains(reason), "{vector}: {error}");
    }
}

#[test]
fn vector_that_continues_after_the_end_is_refused() {
    let (mut vector, mut last) = ("load@0/cached/shared/0:".parse::<Vector>().unwrap(), None);
    while last.is_none() {
        vector.choices.push(0);
        last = replay(&vector).ok();
    }
    assert_eq!(last.unwrap().violation, None);
    vector.choices.push(0);
    assert!(replay(&vector).unwrap_err().contains("only 0 things can happen"));
}

#[test]
fn sweep_over_nothing_fails() {
    assert!(matches!(sweep(&[], |_, _| {}), Err(SweepError::Nothing)));
}

#[test]
fn same_choices_make_the_same_run() {
    let scenario: Scenario = "merge@0+rename@1+load-b@0/cached/sensitive/3".parse().unwrap();
    assert_eq!(scenario.to_string(), "merge@0+rename@1+load-b@0/cached/sensitive/3");
    let run = || {
        let mut turn = 0;
        random_run(&scenario, |n| {
            turn += 7;
            turn % n
        })
        .unwrap_or_else(|violation| panic!("{}", violation.vector))
    };
    assert_eq!(run(), run());
}
