//! The specification of the coherence protocol: every order of its rules, and runs of the simulator that are held to it.

#![cfg(feature = "simulation")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeSet;

use conformance_tests::simulation::Scenario;
use conformance_tests::simulation::specification::{Cached, Refusal, State, Step};
use conformance_tests::simulation::{Mutant, SHOWN_IN, UNSPECIFIED, Vector, detect, random_run, trace};
use stateright::{Checker, Model, Property};

const SPECIFICATION: &str = include_str!("../../docs/coherence.tla");

/// A flaw of the modelled store, to show that the check would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// A reader fills whatever is there.
    FillsAnyway,
    /// A writer does not fence.
    NoFence,
    /// A writer whose fence was lost leaves that of another as it is.
    NoPoisoning,
    /// A writer publishes over a dirty fence.
    PublishesDirty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Load,
    Save,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Waiting,
    /// A load that has begun.
    Looking,
    /// A load that holds a lease.
    Leased,
    /// A load that fills nothing.
    Bypassing,
    /// A load that has read this with its lease.
    Read(Option<u64>),
    /// A load that is about to answer.
    Answering(Option<u64>),
    /// A writer whose statement is not sent.
    Fenced,
    /// A writer whose statement is over, and what it may publish.
    Written(Option<u64>),
    Done,
    /// It has died, or its last call was lost.
    Lost,
}

/// One session and a few operations on it, each in a process of its own: more than two processes can do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Run {
    key: State,
    phases: Vec<Phase>,
    evictions: u8,
    losses: u8,
    outages: u8,
    refused: Option<Refusal>,
}

struct Store {
    kinds: Vec<Kind>,
    flaw: Flaw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Move {
    /// An operation goes on.
    Go(usize),
    /// An operation is lost.
    Lose(usize),
    /// The cache does not answer a writer that is about to fence.
    CutOff(usize),
    Evict,
    End,
    Over(u64),
}

/// Returns `true` if no operation goes on.
fn is_over(run: &Run) -> bool {
    run.phases.iter().all(|phase| matches!(phase, Phase::Done | Phase::Lost))
}

fn token(number: usize) -> u64 {
    10 + number as u64
}

impl Store {
    /// Returns the next phase of an operation, and the step that leads to it.
    fn go(&self, run: &Run, number: usize) -> (Phase, Option<Step>) {
        let id = number as u64 + 1;
        let key = &run.key;
        match (run.phases[number], self.kinds[number]) {
            (Phase::Waiting, Kind::Load) => (Phase::Looking, Some(Step::Begin { load: id })),
            (Phase::Looking, _) => match key.cache {
                Cached::Nothing => (Phase::Leased, Some(Step::Acquire { lease: id })),
                Cached::Value(row) => (Phase::Answering(Some(row)), None),
                _ => (Phase::Bypassing, None),
            },
            (Phase::Leased, _) => (Phase::Read(key.row), None),
            (Phase::Bypassing, _) => (Phase::Answering(key.row), None),
            (Phase::Read(row), _) => {
                let is_there = key.cache == Cached::Lease(id) || self.flaw == Flaw::FillsAnyway;
                let step = is_there.then(|| row.map_or(Step::Remove, |row| Step::Fill { lease: id, row }));
                (Phase::Answering(row), step)
            }
            (Phase::Answering(row), _) => (Phase::Done, Some(Step::Answer { load: id, row })),
            (Phase::Waiting, _) if self.flaw == Flaw::NoFence => (Phase::Fenced, None),
            (Phase::Waiting, _) => {
                let without = match &key.cache {
                    Cached::Fence(holders, ..) => {
                        holders.iter().copied().filter(|token| key.is_over(*token)).collect()
                    }
                    _ => BTreeSet::new(),
                };
                (Phase::Fenced, Some(Step::Fence { token: token(number), writer: id, without }))
            }
            (Phase::Fenced, kind) => {
                // A statement that could outlive the fence is not sent.
                let may_write = self.flaw == Flaw::NoFence || !key.is_over(token(number));
                let row = (kind == Kind::Save).then_some(100 + id);
                match may_write && (key.row.is_some() || row.is_none()) {
                    true => (Phase::Written(row), Some(Step::Commit { writer: id, row })),
                    false => (Phase::Written(None), None),
                }
            }
            (Phase::Written(row), _) => (Phase::Done, self.settle(key, number, row)),
            (Phase::Done | Phase::Lost, _) => (run.phases[number], None),
        }
    }

    fn settle(&self, key: &State, number: usize, publish: Option<u64>) -> Option<Step> {
        let (writer, own) = (number as u64 + 1, token(number));
        match &key.cache {
            Cached::Nothing => None,
            Cached::Lease(_) | Cached::Value(_) => Some(Step::Remove),
            Cached::Fence(holders, dirty, by) => {
                let gone = |token: &u64| *token == own || key.is_over(*token);
                let without: BTreeSet<_> = holders.iter().copied().filter(gone).collect();
                if without.len() < holders.len() {
                    let skips = self.flaw == Flaw::NoPoisoning && !holders.contains(&own);
                    return (!skips).then_some(Step::Leave { writer, without });
                }
                let is_clean = !dirty || self.flaw == Flaw::PublishesDirty;
                match publish {
                    Some(row) if *by == own && without.len() == 1 && is_clean => {
                        Some(Step::Publish { writer, row })
                    }
                    _ => Some(Step::Clear { writer }),
                }
            }
        }
    }
}

impl Model for Store {
    type State = Run;
    type Action = Move;

    fn init_states(&self) -> Vec<Run> {
        let phases = vec![Phase::Waiting; self.kinds.len()];
        let key = State::new(Some(100));
        let mut cached = key.clone();
        cached.cache = Cached::Value(100);
        let run =
            |key| Run { key, phases: phases.clone(), evictions: 1, losses: 1, outages: 1, refused: None };
        vec![run(key), run(cached)]
    }

    fn actions(&self, run: &Run, moves: &mut Vec<Move>) {
        for (number, phase) in run.phases.iter().enumerate() {
            if matches!(phase, Phase::Done | Phase::Lost) {
                continue;
            }
            moves.push(Move::Go(number));
            if run.losses > 0 && *phase != Phase::Waiting {
                moves.push(Move::Lose(number));
            }
            if run.outages > 0 && *phase == Phase::Waiting && self.kinds[number] != Kind::Load {
                moves.push(Move::CutOff(number));
            }
            let has_token = matches!(phase, Phase::Fenced | Phase::Written(_));
            if has_token && run.key.is_fenced(number as u64 + 1) {
                moves.push(Move::Over(token(number)));
            }
        }
        for number in 0..run.phases.len() {
            if run.phases[number] == Phase::Lost && run.key.is_fenced(number as u64 + 1) {
                moves.push(Move::Over(token(number)));
            }
        }
        if run.evictions > 0 && run.key.cache != Cached::Nothing {
            moves.push(Move::Evict);
        }
        let may_end = match &run.key.cache {
            Cached::Nothing | Cached::Value(_) => false,
            Cached::Lease(lease) => {
                (1..).zip(&run.phases).any(|(id, phase)| id == *lease && *phase == Phase::Lost)
            }
            Cached::Fence(holders, ..) => holders.iter().all(|token| run.key.is_over(*token)),
        };
        if may_end {
            moves.push(Move::End);
        }
    }

    fn next_state(&self, last: &Run, made: Move) -> Option<Run> {
        let mut run = last.clone();
        let (steps, done) = match made {
            Move::Go(number) => {
                let (phase, step) = self.go(last, number);
                run.phases[number] = phase;
                let is_writer = self.kinds[number] != Kind::Load;
                (step, (is_writer && phase == Phase::Done).then_some(number as u64 + 1))
            }
            Move::Lose(number) => {
                run.losses -= 1;
                run.phases[number] = Phase::Lost;
                (None, None)
            }
            Move::CutOff(number) => {
                run.outages -= 1;
                run.phases[number] = Phase::Fenced;
                (Some(Step::Degrade { writer: number as u64 + 1 }), None)
            }
            Move::Evict => {
                run.evictions -= 1;
                (Some(Step::Evict), None)
            }
            Move::End => (Some(Step::End), None),
            Move::Over(token) => (Some(Step::Over { token }), None),
        };
        for step in steps.into_iter().chain(done.map(|writer| Step::Done { writer })) {
            if let Err(refusal) = run.key.step(&step) {
                run.refused = Some(refusal);
            }
        }
        Some(run)
    }

    fn within_boundary(&self, run: &Run) -> bool {
        run.refused.is_none() || self.flaw != Flaw::None
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the rules permit each step, and the cache is coherent", |_, run: &Run| {
                run.refused.is_none() && run.key.is_coherent()
            }),
            Property::always("when all is done, the cache shows the row or nothing", |_, run: &Run| {
                let is_well = run.key.unprotected.is_empty() && !run.phases.contains(&Phase::Lost);
                let shows = match run.key.cache {
                    Cached::Nothing => true,
                    Cached::Value(row) => run.key.row == Some(row),
                    _ => false,
                };
                !is_over(run) || !is_well || shows
            }),
            Property::eventually("every operation ends", |_, run: &Run| is_over(run)),
            Property::sometimes(
                "a writer is given up",
                |_, run: &Run| matches!(&run.key.cache, Cached::Fence(holders, true, _) if holders.len() == 1),
            ),
            Property::sometimes("a load is shown what a save has published", |_, run: &Run| {
                run.phases.iter().any(|phase| matches!(phase, Phase::Answering(Some(101..))))
            }),
        ]
    }
}

/// Returns the properties that the model breaks, and the number of its states.
fn check(kinds: &[Kind], flaw: Flaw) -> (Vec<&'static str>, usize) {
    let checker = Store { kinds: kinds.to_vec(), flaw }.checker().threads(2).spawn_dfs().join();
    let must_hold = |name: &&&str| !name.starts_with('a');
    let mut broken: Vec<_> = checker.discoveries().keys().copied().collect();
    broken.retain(|name| must_hold(&name));
    (broken, checker.unique_state_count())
}

#[test]
fn specification_holds_in_every_order_of_three_operations() {
    use Kind::{Delete, Load, Save};
    let mut all = 0;
    for kinds in [[Load, Load, Save], [Load, Load, Delete], [Load, Save, Save], [Load, Save, Delete]] {
        let checker =
            Store { kinds: kinds.to_vec(), flaw: Flaw::None }.checker().threads(2).spawn_dfs().join();
        checker.assert_no_discovery("the rules permit each step, and the cache is coherent");
        checker.assert_no_discovery("when all is done, the cache shows the row or nothing");
        checker.assert_no_discovery("every operation ends");
        if kinds[1] == Save {
            checker.assert_any_discovery("a writer is given up");
        }
        if kinds.contains(&Save) {
            checker.assert_any_discovery("a load is shown what a save has published");
        }
        all += checker.unique_state_count();
    }
    assert!(all > 10_000, "{all}");
}

#[test]
fn specification_finds_every_flaw_of_the_modelled_store() {
    use Kind::{Delete, Load, Save};
    for (kinds, flaw) in [
        (vec![Load, Delete], Flaw::FillsAnyway),
        (vec![Load, Delete], Flaw::NoFence),
        (vec![Load, Save, Save], Flaw::NoPoisoning),
        (vec![Save, Save], Flaw::PublishesDirty),
    ] {
        let (broken, _) = check(&kinds, flaw);
        assert!(!broken.is_empty(), "{flaw:?}");
    }
}

#[test]
fn rules_of_the_document_are_those_of_the_code() {
    let source = include_str!("../src/simulation/specification.rs");
    let steps = source.split_once("pub enum Step {").unwrap().1.split_once("\n}").unwrap().0;
    let name = |line: &str| line.strip_prefix("    ")?.split([' ', ',']).next().map(str::to_owned);
    let is_rule = |name: &String| name.starts_with(|first: char| first.is_ascii_uppercase());
    let in_code: BTreeSet<_> = steps.lines().filter_map(name).filter(is_rule).collect();
    let documented = |line: &str| {
        let (head, _) = line.split_once("==")?;
        Some(head.split('(').next()?.trim().to_owned())
    };
    let (_, rules) = SPECIFICATION.split_once("(* Readers *)").unwrap();
    let (rules, _) = rules.split_once("(* The promises *)").unwrap();
    let in_document: BTreeSet<_> =
        rules.lines().filter(|line| is_rule(&(*line).to_owned())).filter_map(documented).collect();
    assert_eq!(in_code, in_document);
}

#[test]
fn runs_of_the_simulator_keep_to_the_specification() {
    let mut seed = 7_u64;
    let mut random = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % n
    };
    for size in 0..150 {
        let scenario = Scenario::random(&mut random, 2 + size % 3, 2);
        random_run(&scenario, &mut random)
            .unwrap_or_else(|found| panic!("{}: {}", found.vector, found.reason));
    }
}

#[test]
fn run_without_faults_has_the_steps_of_a_miss_and_a_save() {
    let vector: Vector = "load@0+save@0/vacant/shared/0:0.0.0.0.0.0.0".parse().unwrap();
    let (steps, refusal) = trace(&vector).unwrap();
    assert_eq!(refusal, None);
    assert!(steps >= 5, "{steps}");
    assert_eq!(trace(&"load@0+delete@1/cached/near/0:0".parse().unwrap()), None);
}

#[test]
fn counter_examples_of_seeded_faults_are_refused() {
    for mutant in
        [Mutant::FillAfterDelete, Mutant::NoLeaseCheck, Mutant::PublishOverVacancy, Mutant::UpsertingSave]
    {
        let found = detect(mutant).unwrap();
        conformance_tests::simulation::select_mutant(Some(mutant));
        let traced = trace(&found.violation.vector);
        conformance_tests::simulation::select_mutant(None);
        assert!(matches!(traced, Some((_, Some(_)))), "{mutant:?}: {traced:?}");
    }
}

#[test]
fn every_mutant_below_the_specification_is_a_mutant_with_a_reason() {
    for (mutant, reason) in UNSPECIFIED {
        assert!(SHOWN_IN.iter().any(|(other, _)| other == mutant));
        assert!(reason.len() > 10, "{mutant:?}");
    }
}
