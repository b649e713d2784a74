//! Tests of the rules and of the oracle: histories that are right, and histories with one thing wrong.

use std::sync::Arc;

use conformance_tests::libtest_mimic::Trial;
use conformance_tests::reference::{MemoryCache, MemoryPersistence};
use session_cached_db::{CachedDb, ConflictPolicy};
use tokio::sync::Barrier;

use super::trial;
use crate::checker::{Kind, Surroundings, check, check_rules};
use crate::history::{Action, Answer, Fields, MILLI, Nanos, Op, SECOND, now};
use crate::oracle::{Verdict, judge};
use crate::worker::{Counting, attempt, empty, stored_key};
use crate::{Failure, block_on};

pub(super) fn all() -> Vec<Trial> {
    vec![
        trial("checker::history_in_order_is_clean", history_in_order_is_clean),
        trial("checker::an_old_state_after_an_acknowledged_write_is_found", old_state_is_detected),
        trial("checker::an_old_state_is_allowed_up_to_the_bound_after_a_degraded_write", bound_is_checked),
        trial("checker::a_session_after_its_acknowledged_end_is_found", session_after_its_end_is_detected),
        trial("checker::a_merge_that_drops_a_field_is_found", lost_update_is_detected),
        trial(
            "checker::saves_that_waited_together_may_be_one_statement",
            saves_that_waited_together_may_be_one_statement,
        ),
        trial("checker::lost_or_repeated_modification_is_found", wrong_count_is_detected),
        trial("checker::store_that_forgets_modifications_is_found", forgotten_modifications_are_detected),
        trial("checker::a_value_that_nobody_wrote_is_found", unwritten_value_is_detected),
        trial("checker::a_session_that_is_gone_without_an_end_is_found", lost_session_is_detected),
        trial("checker::a_write_without_an_answer_may_land_late", unanswered_write_may_take_effect_late),
        trial("checker::violation_shows_the_shortest_history", violation_shows_the_shortest_history),
        trial("checker::near_load_may_be_behind_others_up_to_the_bound", near_load_may_be_behind),
        trial("checker::near_load_that_misses_its_own_write_is_found", own_write_that_is_missed_is_detected),
        trial("checker::near_load_that_goes_back_in_time_is_found", near_load_back_in_time_is_detected),
        trial("checker::near_load_after_a_final_operation_is_found", near_load_after_final_is_detected),
        trial("oracle::what_can_be_explained_is_and_what_the_rules_find_cannot", oracle_and_rules_agree),
        trial("oracle::lie_that_no_rule_knows_is_detected", lie_that_no_rule_knows_is_detected),
    ]
}

/// An operation from `begin` to `end`, in milliseconds.
fn op(begin: u64, end: u64, action: Action, answer: Answer) -> Op {
    let end = (end > 0).then_some(end * MILLI);
    Op { end, answer, ..Op::begun(0, action, begin * MILLI) }
}

fn fields<const N: usize>(fields: [(u32, u64); N]) -> Fields {
    Fields::from(fields)
}

fn create() -> Op {
    op(1, 2, Action::Create, Answer::Created)
}

fn save<const N: usize>(begin: u64, end: u64, own: (u32, u64), left: [(u32, u64); N]) -> Op {
    op(begin, end, Action::Save(own.0, own.1), Answer::Saved(fields(left)))
}

fn load<const N: usize>(begin: u64, end: u64, seen: [(u32, u64); N]) -> Op {
    op(begin, end, Action::Load, Answer::Seen(fields(seen)))
}

const AGE: Nanos = 3 * SECOND;

fn sound() -> Surroundings {
    Surroundings { max_cache_age: AGE, write_bound: 10 * SECOND, ..Surroundings::default() }
}

fn kind(history: &[Op], surroundings: &Surroundings) -> Option<Kind> {
    check(history, surroundings).err().map(|violation| violation.kind)
}

fn history_in_order_is_clean() -> Result<(), Failure> {
    let history = [
        op(0, 1, Action::Load, Answer::Nothing),
        create(),
        save(10, 20, (1, 1), [(1, 1)]),
        // A load beside the save may find either state.
        load(11, 19, []),
        load(12, 14, [(1, 1)]),
        save(15, 30, (2, 1), [(1, 1), (2, 1)]),
        load(31, 32, [(1, 1), (2, 1)]),
        op(40, 50, Action::Touch, Answer::Touched),
        op(60, 70, Action::Rotate, Answer::Rotated(fields([(1, 1), (2, 1)]))),
        load(61, 65, [(1, 1), (2, 1)]),
        op(80, 81, Action::Load, Answer::Nothing),
        op(82, 83, Action::Delete, Answer::Removed(false)),
    ];
    assert_eq!(kind(&history, &sound()), None);
    Ok(())
}

fn old_state_is_detected() -> Result<(), Failure> {
    let history = [create(), save(10, 20, (1, 1), [(1, 1)]), load(21, 22, [])];
    assert_eq!(kind(&history, &sound()), Some(Kind::Stale));
    // A load must not go back behind another.
    let history = [create(), save(10, 50, (1, 1), [(1, 1)]), load(20, 21, [(1, 1)]), load(22, 23, [])];
    assert_eq!(kind(&history, &sound()), Some(Kind::Stale));
    // A write must not be based on an old state.
    let history = [
        create(),
        save(10, 20, (1, 1), [(1, 1)]),
        save(30, 40, (1, 2), [(1, 2)]),
        save(50, 60, (2, 1), [(2, 1), (1, 1)]),
    ];
    assert!(kind(&history, &sound()).is_some());
    Ok(())
}

fn bound_is_checked() -> Result<(), Failure> {
    let mut degraded = save(10, 20, (1, 1), [(1, 1)]);
    degraded.degraded = true;
    assert_eq!(kind(&[create(), degraded.clone(), load(2_000, 2_001, [])], &sound()), None);
    assert!(kind(&[create(), degraded.clone(), load(4_000, 4_001, [])], &sound()).is_some());
    // A state that the database never had is wrong at any time.
    let never = [create(), degraded, save(30, 40, (2, 1), [(1, 1), (2, 1)]), load(50, 51, [(2, 1)])];
    assert_eq!(kind(&never, &sound()), Some(Kind::LostUpdate));
    // Processes with caches of their own are promised only the bound.
    let alone = Surroundings { is_private: true, ..sound() };
    let history = [create(), save(10, 20, (1, 1), [(1, 1)])];
    assert_eq!(kind(&[&history[..], &[load(3_000, 3_001, [])]].concat(), &alone), None);
    let late = [&history[..], &[load(3_400, 3_401, [])]].concat();
    assert_eq!(kind(&late, &alone), Some(Kind::OlderThanPromised));
    // The cache has lost the fence of a write that was on its way.
    let lossy = Surroundings { losses: vec![(15 * MILLI, 16 * MILLI)], ..sound() };
    assert_eq!(kind(&[&history[..], &[load(3_000, 3_001, [])]].concat(), &lossy), None);
    assert!(kind(&[&history[..], &[load(4_000, 4_001, [])]].concat(), &lossy).is_some());
    Ok(())
}

fn session_after_its_end_is_detected() -> Result<(), Failure> {
    let end = op(10, 20, Action::Delete, Answer::Removed(true));
    assert_eq!(kind(&[create(), end.clone(), load(21, 22, [])], &sound()), Some(Kind::Undead));
    let saved = save(21, 22, (1, 1), [(1, 1)]);
    assert_eq!(kind(&[create(), end.clone(), saved], &sound()), Some(Kind::Undead));
    let touched = op(21, 22, Action::Touch, Answer::Touched);
    assert_eq!(kind(&[create(), end.clone(), touched], &sound()), Some(Kind::Undead));
    let again = op(21, 22, Action::Delete, Answer::Removed(true));
    assert_eq!(kind(&[create(), end, again], &sound()), Some(Kind::EndedTwice));
    Ok(())
}

fn lost_update_is_detected() -> Result<(), Failure> {
    let both = [create(), save(10, 20, (1, 1), [(1, 1)]), save(11, 21, (2, 1), [(2, 1)])];
    assert_eq!(kind(&both, &sound()), Some(Kind::LostUpdate));
    // Saves of two processes cannot each contain the other.
    let mut each_the_other =
        [create(), save(10, 20, (1, 1), [(1, 1), (2, 1)]), save(11, 21, (2, 1), [(1, 1), (2, 1)])];
    each_the_other[2].process = 1;
    assert_eq!(kind(&each_the_other, &sound()), Some(Kind::LostUpdate));
    // Neither can saves of one process that were not in flight together.
    let apart = [create(), save(10, 20, (1, 1), [(1, 1), (2, 1)]), save(21, 31, (2, 1), [(1, 1), (2, 1)])];
    assert!(kind(&apart, &sound()).is_some());
    let left_behind =
        [create(), save(10, 30, (1, 1), [(1, 1)]), op(11, 31, Action::Rotate, Answer::Rotated(fields([])))];
    assert_eq!(kind(&left_behind, &sound()), Some(Kind::LostUpdate));
    Ok(())
}

/// Returns `op` with what was counted in its answer.
fn counting<const N: usize>(op: Op, counted: [(u32, u64); N]) -> Op {
    Op { counted: Some(counted.into()), ..op }
}

fn wrong_count_is_detected() -> Result<(), Failure> {
    let saves = [
        create(),
        counting(save(10, 20, (1, 1), [(1, 1)]), [(1, 1)]),
        op(30, 40, Action::Save(1, 2), Answer::Refused),
        op(50, 0, Action::Save(1, 3), Answer::Unknown),
        counting(save(60, 70, (2, 1), [(1, 1), (2, 1)]), [(1, 1), (2, 1)]),
    ];
    let seen = |counted| {
        let load = counting(load(90, 91, [(1, 4), (2, 1)]), counted);
        let last = counting(save(80, 85, (1, 4), [(1, 4), (2, 1)]), [(1, 2), (2, 1)]);
        kind(&[&saves[..], &[last, load]].concat(), &Surroundings { counts_saves: true, ..sound() })
    };
    // The save without an answer may have happened, the refused one has not.
    assert_eq!(seen([(1, 2), (2, 1)]), None);
    assert_eq!(seen([(1, 3), (2, 1)]), None);
    for wrong in [[(1, 1), (2, 1)], [(1, 4), (2, 1)], [(1, 2), (2, 0)], [(1, 2), (2, 2)], [(1, 2), (3, 1)]] {
        assert_eq!(seen(wrong), Some(Kind::Miscounted), "{wrong:?}");
    }
    Ok(())
}

/// Returns the history of a session that the tasks of two nodes save at the same time, under either conflict policy.
async fn crowded(counting: Counting) -> Result<Vec<Op>, Failure> {
    const TASKS: u32 = 8;
    let (cache, db, key) = (MemoryCache::default(), MemoryPersistence::default(), "c".repeat(32));
    let mut nodes = Vec::new();
    for policy in [ConflictPolicy::LastWrite, ConflictPolicy::Reject] {
        let store = CachedDb::builder(cache.clone(), db.clone()).conflict_policy(policy).reaper(None);
        nodes.push(store.build().await?);
    }
    let start = Arc::new(Barrier::new(TASKS as usize));
    let mut created = Op::begun(0, Action::Create, now());
    let _ = nodes[0].create(&stored_key(&nodes[0], &key), empty()).await?;
    created.answered(now(), Answer::Created, false);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (process, start, key) = (task % 2, Arc::clone(&start), key.clone());
        let store = nodes[process as usize].clone();
        tasks.spawn(async move {
            let mut ops = Vec::new();
            for count in 1..=20 {
                start.wait().await;
                let mut op = Op::begun(process, Action::Save(task, count), now());
                let saved = attempt(&store, &key, op.action, counting).await;
                op.answered(now(), saved.map_or(Answer::Refused, |(answer, _)| answer), false);
                ops.push(op);
            }
            ops
        });
    }
    let mut history = vec![created];
    history.extend(tasks.join_all().await.into_iter().flatten());
    Ok(history)
}

fn forgotten_modifications_are_detected() -> Result<(), Failure> {
    let counted = Surroundings { counts_saves: true, ..sound() };
    let sound = block_on(crowded(Counting::Modify))?;
    assert!(sound.iter().all(|op| op.answer != Answer::Refused), "both policies merge modifications");
    assert_eq!(kind(&sound, &counted), None);
    // Under `Reject`, a save that would undo another's is refused. Under `LastWrite`, it loses it.
    for _ in 0..50 {
        match kind(&block_on(crowded(Counting::Insert))?, &counted) {
            // On a busy machine, the tasks may take turns by chance.
            None => {}
            found => {
                assert_eq!(found, Some(Kind::Miscounted));
                return Ok(());
            }
        }
    }
    panic!("no lost modification was found");
}

fn saves_that_waited_together_may_be_one_statement() -> Result<(), Failure> {
    let both = [(1, 1), (2, 1)];
    let together = [create(), save(10, 40, (1, 1), both), save(15, 30, (2, 1), both), load(31, 32, both)];
    assert_eq!(kind(&together, &sound()), None);
    // But no operation may have seen one without the other.
    let between = [&together[..3], &[load(16, 17, [(2, 1)])]].concat();
    assert_eq!(kind(&between, &sound()), Some(Kind::LostUpdate));
    // And none may have seen neither of them after one has answered.
    let late = [&together[..3], &[load(31, 32, [])]].concat();
    assert_eq!(kind(&late, &sound()), Some(Kind::Stale));
    Ok(())
}

/// Circumstances with near caches, whose bound is 100 ms.
fn near() -> Surroundings {
    Surroundings { near: Some(100 * MILLI), ..sound() }
}

/// The same in another process.
fn elsewhere(op: Op) -> Op {
    Op { process: 1, ..op }
}

fn near_load_may_be_behind() -> Result<(), Failure> {
    let saved = save(10, 20, (1, 1), [(1, 1)]);
    for (begin, expected) in [(119, None), (121, Some(Kind::Stale))] {
        let history = [create(), saved.clone(), elsewhere(load(begin, begin + 1, []))];
        assert_eq!(kind(&history, &near()), expected, "{begin}");
        assert_eq!(kind(&history, &sound()), Some(Kind::Stale));
    }
    Ok(())
}

fn own_write_that_is_missed_is_detected() -> Result<(), Failure> {
    let history = [create(), save(10, 20, (1, 1), [(1, 1)]), load(21, 22, [])];
    assert_eq!(kind(&history, &near()), Some(Kind::Stale));
    Ok(())
}

fn near_load_back_in_time_is_detected() -> Result<(), Failure> {
    let saved = save(10, 20, (1, 1), [(1, 1)]);
    let forth = [create(), saved, elsewhere(load(21, 22, [(1, 1)]))];
    assert_eq!(kind(&forth, &near()), None);
    let back = [&forth[..], &[elsewhere(load(23, 24, []))]].concat();
    assert_eq!(kind(&back, &near()), Some(Kind::Stale));
    // A touch shows no contents.
    let touched = [&forth[..2], &[elsewhere(op(21, 22, Action::Touch, Answer::Touched))]].concat();
    let after = [&touched[..], &[elsewhere(load(23, 24, []))]].concat();
    assert_eq!(kind(&after, &near()), None);
    Ok(())
}

fn near_load_after_final_is_detected() -> Result<(), Failure> {
    let late = || elsewhere(load(21, 22, []));
    for end in [
        op(10, 20, Action::Delete, Answer::Removed(true)),
        op(10, 20, Action::Rotate, Answer::Rotated(fields([]))),
    ] {
        assert_eq!(kind(&[create(), end, late()], &near()), Some(Kind::Undead));
    }
    assert_eq!(kind(&[create(), save(10, 20, (1, 16), [(1, 16)]), late()], &near()), Some(Kind::Stale));
    assert_eq!(kind(&[create(), save(10, 20, (1, 15), [(1, 15)]), late()], &near()), None);
    Ok(())
}

fn unwritten_value_is_detected() -> Result<(), Failure> {
    assert_eq!(kind(&[create(), load(10, 20, [(1, 1)])], &sound()), Some(Kind::Unwritten));
    let early = [create(), load(10, 20, [(1, 1)]), save(30, 40, (1, 1), [(1, 1)])];
    assert_eq!(kind(&early, &sound()), Some(Kind::Unwritten));
    let refused = [create(), op(5, 6, Action::Save(1, 1), Answer::Refused), load(10, 20, [(1, 1)])];
    assert_eq!(kind(&refused, &sound()), Some(Kind::Unwritten));
    assert_eq!(kind(&[load(10, 20, [])], &sound()), Some(Kind::Unwritten));
    Ok(())
}

fn lost_session_is_detected() -> Result<(), Failure> {
    let gone = op(10, 20, Action::Load, Answer::Nothing);
    assert_eq!(kind(&[create(), gone.clone()], &sound()), Some(Kind::Lost));
    let maybe = op(3, 0, Action::Delete, Answer::Unknown);
    assert_eq!(kind(&[create(), maybe, gone], &sound()), None);
    Ok(())
}

fn unanswered_write_may_take_effect_late() -> Result<(), Failure> {
    let unknown = op(10, 0, Action::Save(1, 1), Answer::Unknown);
    let history = [create(), unknown.clone(), load(100, 101, []), load(5_000, 5_001, [(1, 1)])];
    assert_eq!(kind(&history, &sound()), None);
    // But the session must not be lost again.
    let back = [create(), unknown, load(100, 101, [(1, 1)]), load(5_000, 5_001, [])];
    assert_eq!(kind(&back, &sound()), Some(Kind::Stale));
    Ok(())
}

fn violation_shows_the_shortest_history() -> Result<(), Failure> {
    let mut history = vec![create()];
    for n in 1..200_u64 {
        history.push(save(n * 100, n * 100 + 10, (1, n), [(1, n)]));
        history.push(load(n * 100 + 20, n * 100 + 30, [(1, n)]));
    }
    history.push(load(20_000, 20_001, [(1, 198)]));
    let violation = check(&history, &sound()).err().ok_or("it was not found")?;
    assert_eq!(violation.kind, Kind::Stale);
    // The writes of the two values, the creation, and the read.
    assert!(violation.history.len() <= 4, "{violation}");
    Ok(())
}

/// Returns a valid history: operations overlap, and each takes effect at an instant of its own.
fn any_history(random: &mut fastrand::Rng) -> Vec<Op> {
    let mut history = vec![create()];
    // A writer does one thing at a time.
    let (mut left, mut counts, mut busy, mut is_there) = (Fields::new(), [0; 4], [0; 4], true);
    for step in 1..=random.u64(4..24) {
        let (before, after) = (random.u64(1..40), random.u64(1..40));
        let (begin, end) = ((50 + 10 * step - before) * MILLI, (50 + 10 * step + after) * MILLI + 1);
        let writer = random.usize(..4);
        let (action, answer) = match (random.u8(..100), is_there) {
            (..3, true) => {
                is_there = false;
                let answer = if random.bool() { Answer::Removed(true) } else { Answer::Unknown };
                (Action::Delete, answer)
            }
            (..3, false) => (Action::Delete, Answer::Removed(false)),
            (3..6, true) => {
                is_there = false;
                (Action::Rotate, Answer::Rotated(left.clone()))
            }
            (6..12, true) => (Action::Touch, Answer::Touched),
            (12..50, true) if busy[writer] < begin => {
                busy[writer] = end;
                counts[writer] += 1;
                let own = (u32::try_from(writer).unwrap_or_default(), counts[writer]);
                left.insert(own.0, own.1);
                let answer = if random.u8(..10) > 0 { Answer::Saved(left.clone()) } else { Answer::Unknown };
                (Action::Save(own.0, own.1), answer)
            }
            (_, true) => (Action::Load, Answer::Seen(left.clone())),
            (_, false) => (Action::Load, Answer::Nothing),
        };
        let mut op = op(0, 0, action, answer);
        (op.begin, op.end) = (begin, Some(end));
        history.push(op);
    }
    history
}

/// Changes an answer to another possible one.
fn lie(history: &mut [Op], random: &mut fastrand::Rng) {
    let states: Vec<Fields> = history.iter().filter_map(|op| op.fields().cloned()).collect();
    let op = random.usize(1..history.len());
    let Some(state) = random.choice(states) else { return };
    let op = &mut history[op];
    op.answer = match (op.action, &op.answer) {
        (Action::Save(writer, count), Answer::Saved(_)) => {
            let mut left = state;
            left.insert(writer, count);
            Answer::Saved(left)
        }
        (Action::Rotate, _) => Answer::Rotated(state),
        (Action::Load, _) if random.u8(..4) > 0 => Answer::Seen(state),
        (Action::Touch, _) if random.bool() => Answer::Touched,
        (Action::Delete, _) => Answer::Removed(random.bool()),
        _ => Answer::Nothing,
    };
}

fn oracle_and_rules_agree() -> Result<(), Failure> {
    let mut random = fastrand::Rng::with_seed(11);
    let (mut found, mut found_by_oracle_alone) = (0, 0);
    for _ in 0..20_000 {
        let mut history = any_history(&mut random);
        assert_eq!(check_rules(&history, &sound()), Ok(()), "{history:?}");
        assert_eq!(judge(&history, |_| false), Verdict::Explained, "{history:?}");
        lie(&mut history, &mut random);
        let by_rules = check_rules(&history, &sound());
        let by_oracle = judge(&history, |_| false);
        if let Err((kind, reason)) = &by_rules {
            assert!(matches!(by_oracle, Verdict::Unexplained(_)), "{kind:?}: {reason}: {history:?}");
            found += 1;
        } else if by_oracle != Verdict::Explained {
            found_by_oracle_alone += 1;
        }
    }
    println!("{found} lies found by both, {found_by_oracle_alone} more by the oracle");
    assert!(found > 1_000 && found_by_oracle_alone > 10, "{found}, {found_by_oracle_alone}");
    Ok(())
}

fn lie_that_no_rule_knows_is_detected() -> Result<(), Failure> {
    // A save that found no session, but was seen in it.
    let history = [
        create(),
        op(10, 50, Action::Save(1, 1), Answer::Nothing),
        load(20, 30, [(1, 1)]),
        op(45, 70, Action::Delete, Answer::Removed(true)),
    ];
    assert_eq!(check_rules(&history, &sound()), Ok(()));
    assert_eq!(kind(&history, &sound()), Some(Kind::Unexplained));
    // A session that was gone before, and was ended again.
    let history = [
        create(),
        op(10, 0, Action::Delete, Answer::Unknown),
        op(20, 30, Action::Load, Answer::Nothing),
        op(40, 50, Action::Delete, Answer::Removed(true)),
    ];
    assert_eq!(check_rules(&history, &sound()), Ok(()));
    assert_eq!(kind(&history, &sound()), Some(Kind::Unexplained));
    Ok(())
}
