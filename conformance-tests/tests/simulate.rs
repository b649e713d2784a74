//! The simulator on a small scale, and that it can fail. `cargo xtask simulate` runs all of it.

#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use conformance_tests::simulation::{
    Checkpoint, Mutant, Operation, Reduction, Scenario, SweepError, Vector, detect, explore, random_run,
    replay, resume, search, select_mutant, sweep, sweep_until,
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
    // A load of its own, or one that another load waits for.
    let ends = ["does not come to its end", "waits for something that never happens"];
    assert!(ends.iter().any(|end| found.reason.contains(end)), "{}", found.reason);
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
    let mut all = [Scenario::all(2, 2), Scenario::rare().unwrap(), Scenario::near().unwrap()].concat();
    all.extend(Scenario::rotations().unwrap());
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

/// Compares the search with and without what it leaves out.
fn assert_that_reductions_change_nothing(scenario: &Scenario) {
    let full = search(scenario, Reduction::Nothing);
    let orders = search(scenario, Reduction::Orders);
    assert_eq!(full.way_to_more_than(&orders), None, "{scenario}");
    assert_eq!(orders.way_to_more_than(&full), None, "{scenario}");
    assert!(full.ends == orders.ends, "{scenario}");
    assert!(orders.explored.runs <= full.explored.runs, "{scenario}");
    let all = if scenario.has_twins() { search(scenario, Reduction::All) } else { orders.clone() };
    assert!(full.left == all.left, "{scenario}");
    let verdicts = [&full, &orders, &all].map(|searched| searched.violation.is_some());
    assert_eq!(verdicts, [verdicts[0]; 3], "{scenario}");
}

#[test]
fn search_leaves_out_nothing_that_differs_in_a_mix_of_two() {
    for scenario in &Scenario::all(2, 0) {
        assert_that_reductions_change_nothing(scenario);
    }
}

#[test]
fn search_leaves_out_nothing_that_differs_with_a_fault() {
    for name in [
        "load@0+save@1/vacant/shared/1",
        "delete@0+delete@0/cached/sensitive/1",
        "load@1+touch@0/cached/near/1",
        "load@1+overwrite@0/cached/notified/0",
        "load@0+reap@1/ending/shared/1",
    ] {
        assert_that_reductions_change_nothing(&name.parse().unwrap());
    }
}

#[test]
fn search_leaves_out_orders_and_numbers() {
    let scenario = "delete@0+delete@0/cached/sensitive/1".parse().unwrap();
    let [nothing, orders, all] = [Reduction::Nothing, Reduction::Orders, Reduction::All]
        .map(|reduction| search(&scenario, reduction).explored);
    assert!(orders.runs < nothing.runs, "{orders:?} {nothing:?}");
    assert!(all.states * 3 < orders.states * 2, "{all:?} {orders:?}");
}

#[test]
fn search_that_leaves_out_orders_still_finds_a_fault() {
    let scenario = "load@0+save@0/vacant/shared/0".parse().unwrap();
    select_mutant(Some(Mutant::NoLeaseCheck));
    let found = [Reduction::Nothing, Reduction::Orders, Reduction::All]
        .map(|reduction| search(&scenario, reduction).violation.is_some());
    select_mutant(None);
    assert_eq!(found, [true; 3]);
}

#[test]
fn sweep_that_has_no_time_left_begins_nothing() {
    let scenarios = Scenario::all(2, 0);
    let begun = Instant::now();
    assert!(matches!(sweep_until(&scenarios, Some(begun), |_, _| {}), Err(SweepError::Nothing)));
}

#[test]
fn checkpoint_of_another_build_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    drop(Checkpoint::open(&path, "one").unwrap());
    let refused = Checkpoint::open(&path, "other").unwrap_err();
    assert!(refused.to_string().contains("another build"), "{refused}");
    assert_eq!(Checkpoint::open(&path, "one").unwrap().done(), 0);
}

#[test]
fn scenario_that_was_noted_is_not_explored_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    // The last line is half of one, as after a power cut.
    let noted = "build x\nload@0+load@0/vacant/shared/0 7000000 2 3 4\nload@0+load@0/cached/shared/0 12";
    std::fs::write(&path, noted).unwrap();
    let checkpoint = Checkpoint::open(&path, "x").unwrap();
    assert_eq!(checkpoint.done(), 1);
    let scenarios: Vec<Scenario> = ["load@0+load@0/vacant/shared/0", "load@0+load@0/cached/shared/0"]
        .map(|name| name.parse().unwrap())
        .to_vec();
    let sum = resume(&scenarios, &checkpoint, |_| {}).unwrap();
    assert!(sum.states > 7_000_000 && sum.states < 7_100_000, "{sum:?}");
    assert_eq!(Checkpoint::open(&path, "x").unwrap().done(), 2);
    assert_eq!(resume(&scenarios, &Checkpoint::open(&path, "x").unwrap(), |_| {}).unwrap(), sum);
}

/// Returns the number of states, by the name of the scenario, that a checkpoint has noted.
fn noted(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().skip(1).map(ToOwned::to_owned).collect()
}

#[test]
fn exhaustive_run_that_is_killed_continues_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["killed", "whole"].map(|name| folder.path().join(name));
    let start = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_simulate"));
        command.args(["exhaustive", path.to_str().unwrap(), "reap@0+reap@"]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let whole = start(&paths[1]);
    assert!(whole.wait_with_output().unwrap().status.success());

    let mut killed = start(&paths[0]);
    while noted(&paths[0]).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let before = noted(&paths[0]);

    let mut resumed = start(&paths[0]);
    let lines: Vec<_> =
        BufReader::new(resumed.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
    assert!(!lines[0].ends_with(" 0 so far"), "{lines:?}");
    assert!(resumed.wait().unwrap().success());
    assert!(noted(&paths[0]).is_superset(&before));
    assert_eq!(noted(&paths[0]), noted(&paths[1]));
}
