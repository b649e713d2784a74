//! The search: every run of a scenario, except those that differ from another by the order of steps that commute.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::digest;
use super::explore::{COMPLETE, Explored, MAX_STEPS, SAMPLED, Violation, violation};
use super::places::Places;
use super::run::{Choice, Footprint, Simulation};
use super::scenario::Scenario;

/// A hasher for digests, which are random already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only digests are hashed");
    }
    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

/// The runs that a search leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// None.
    Nothing,
    /// Those that differ by the order of steps that commute.
    Orders,
    /// Those, and those that differ by the numbers of equal operations.
    All,
}

/// A state that was visited.
struct Visited {
    /// The fewest steps in which it was reached.
    depth: u16,
    /// The steps that were not made from it, by their digests, because the runs that begin with them are the same as others.
    asleep: Box<[u64]>,
}

/// A state on the path of the present run, and the step that it makes there.
struct Fork {
    places: Places,
    /// `true` if the steps possible here belong to the step before.
    is_urgent: bool,
    choices: Vec<Choice>,
    /// The positions of the choices that are to be tried, the present one first.
    left: Vec<usize>,
    /// Steps that need not be made here: each leads to a run that is the same as one that was explored.
    asleep: Vec<(Choice, Footprint)>,
    /// The reads of the present step, and its writes without a trace.
    reads: Footprint,
    /// The reads and writes of the present step.
    made: Footprint,
    /// The same, together with the steps that belong to it.
    footprint: Footprint,
    /// The same for all steps that were made here before.
    footprints: Footprint,
}

impl Fork {
    fn choice(&self) -> Choice {
        self.choices[self.chosen()]
    }

    fn chosen(&self) -> usize {
        self.left[self.left.len() - 1]
    }
}

/// The result of a search.
#[derive(Clone, Debug, Default)]
pub struct Searched {
    /// Its size.
    pub explored: Explored,
    /// A run that breaks a promise, if there is one.
    pub violation: Option<Violation>,
    /// The digests of all states, except those whose next step belongs to the step before.
    /// Each with the choices of a run that leads to it.
    pub states: BTreeMap<u64, Vec<usize>>,
    /// The digests of all states in which runs have ended.
    pub ends: BTreeSet<u64>,
    /// The same, of what is left there, without the numbers of operations.
    pub left: BTreeSet<u64>,
}

/// Explores every run of `scenario`, and returns the violation that was found, if any: the shortest one if `shortest`.
#[must_use]
pub fn explore(scenario: &Scenario, shortest: bool) -> (Explored, Option<Violation>) {
    let reduction = if shortest { Reduction::Nothing } else { Reduction::All };
    let searched = Search::new(scenario, reduction, shortest, false).run();
    (searched.explored, searched.violation)
}

/// Explores the runs of `scenario` that `reduction` does not leave out, up to the first violation, and notes their ends.
#[must_use]
pub fn search(scenario: &Scenario, reduction: Reduction) -> Searched {
    Search::new(scenario, reduction, false, true).run()
}

impl Searched {
    /// Returns the choices that lead to a state which the other search has not visited, if there is one.
    #[must_use]
    pub fn way_to_more_than(&self, other: &Self) -> Option<&[usize]> {
        let missing = self.states.iter().filter(|(state, _)| !other.states.contains_key(state));
        missing.map(|(_, way)| way.as_slice()).min_by_key(|way| way.len())
    }
}

struct Search<'a> {
    scenario: &'a Scenario,
    reduction: Reduction,
    shortest: bool,
    notes_ends: bool,
    visited: HashMap<u64, Visited, BuildHasherDefault<Identity>>,
    path: Vec<Fork>,
    /// Longer runs are not explored, because a shorter one has broken a promise.
    limit: usize,
    result: Searched,
}

/// The reason why a run goes no further.
enum Stop {
    /// Nothing new can follow.
    Explored,
    /// It breaks a promise, or the same run does, completed from here.
    Wrong(String, bool),
}

impl<'a> Search<'a> {
    fn new(scenario: &'a Scenario, reduction: Reduction, shortest: bool, notes_ends: bool) -> Self {
        Self {
            scenario,
            reduction,
            shortest,
            notes_ends,
            visited: HashMap::default(),
            path: Vec::new(),
            limit: MAX_STEPS,
            result: Searched::default(),
        }
    }

    fn run(mut self) -> Searched {
        loop {
            self.result.explored.runs += 1;
            if let Stop::Wrong(reason, is_completed) = self.explore_run() {
                let mut choices: Vec<_> = self.path.iter().map(Fork::chosen).collect();
                choices.extend(is_completed.then_some(COMPLETE));
                self.result.violation = Some(violation(self.scenario, choices, reason));
                if !self.shortest || self.path.is_empty() {
                    return self.result;
                }
                self.limit = self.path.len() - 1;
                self.path.truncate(self.limit);
            }
            if !self.turn() {
                return self.result;
            }
        }
    }

    /// Makes the run of the path from the beginning, and goes on until nothing new can follow.
    fn explore_run(&mut self) -> Stop {
        let mut simulation = Simulation::new(self.scenario);
        let last = self.path.len().saturating_sub(1);
        for (position, fork) in self.path.iter_mut().enumerate() {
            let choice = fork.choice();
            if position == last {
                fork.reads = simulation.may_read(choice);
            }
            // All steps but the last are known to keep the promises.
            if let Err(reason) = simulation.step(choice) {
                return Stop::Wrong(reason, false);
            }
        }
        loop {
            if self.path.len() >= MAX_STEPS {
                return Stop::Wrong("it goes in circles".into(), false);
            }
            if self.path.len() >= self.limit {
                return Stop::Explored;
            }
            match self.arrive(&simulation) {
                Err(stop) => return stop,
                Ok(mut fork) => {
                    let choice = fork.choice();
                    fork.reads = simulation.may_read(choice);
                    self.path.push(fork);
                    if let Err(reason) = simulation.step(choice) {
                        return Stop::Wrong(reason, false);
                    }
                }
            }
        }
    }

    /// Arrives at a state, and decides what is to be tried there.
    fn arrive(&mut self, simulation: &Simulation<'_>) -> Result<Fork, Stop> {
        let places = simulation.places();
        let (digest, is_urgent) = (places.digest(), simulation.is_urgent());
        let mut asleep = Vec::new();
        if let Some(before) = self.path.last_mut() {
            let written = before.places.changed(&places);
            let made = simulation.footprint(before.reads, written);
            if self.reduction != Reduction::Nothing {
                asleep.extend(before.asleep.iter().filter(|(_, other)| other.commutes_with(&made)).copied());
            }
            before.made = made;
            // Until the steps that belong to it are known.
            before.footprint = if is_urgent { Footprint::ALL } else { made };
        }
        let is_new = !self.visited.contains_key(&digest);
        if is_new && digest.is_multiple_of(SAMPLED) {
            self.result.explored.completions += 1;
            self.complete().map_err(|reason| Stop::Wrong(reason, true))?;
        }
        let choices = simulation.choices();
        let left = self.left(digest, &mut asleep, &choices, simulation);
        if self.notes_ends && !is_urgent {
            let way = || self.path.iter().map(Fork::chosen).collect();
            self.result.states.entry(digest).or_insert_with(way);
        }
        if is_new && choices.is_empty() {
            self.result.explored.ends += 1;
            if self.notes_ends {
                self.result.ends.insert(digest);
                self.result.left.insert(simulation.left_behind());
            }
        }
        if left.is_empty() {
            return Err(Stop::Explored);
        }
        let none = Footprint::default();
        let (reads, made, footprint, footprints) = (none, none, Footprint::ALL, none);
        Ok(Fork { places, is_urgent, choices, left, asleep, reads, made, footprint, footprints })
    }

    /// Returns the positions of the choices that are to be tried in a state, the first one last.
    fn left(
        &mut self,
        digest: u64,
        asleep: &mut Vec<(Choice, Footprint)>,
        choices: &[Choice],
        simulation: &Simulation<'_>,
    ) -> Vec<usize> {
        let depth = u16::try_from(self.path.len()).unwrap_or(u16::MAX);
        let of = |choice: &Choice| digest::of(choice);
        let tried = |is_left: &dyn Fn(&Choice) -> bool| {
            let of_twins = self.reduction == Reduction::All;
            let left = choices
                .iter()
                .enumerate()
                .filter(|(_, choice)| is_left(choice) && !(of_twins && simulation.has_twin_before(**choice)));
            let mut left: Vec<_> = left.map(|(position, _)| position).collect();
            left.reverse();
            left
        };
        let Some(visited) = self.visited.get_mut(&digest) else {
            let left = tried(&|choice| !asleep.iter().any(|(other, _)| other == choice));
            let asleep = asleep.iter().map(|(choice, _)| of(choice)).collect();
            self.visited.insert(digest, Visited { depth, asleep });
            self.result.explored.states += 1;
            return left;
        };
        if self.shortest && depth < visited.depth {
            // This way is shorter.
            visited.depth = depth;
            return tried(&|_| true);
        }
        // Steps that were not made from here, because of the way by which the state was reached before, and that this way
        // does not excuse.
        let now: Vec<_> = asleep.iter().map(|(choice, _)| of(choice)).collect();
        let missing: Vec<_> = visited.asleep.iter().copied().filter(|other| !now.contains(other)).collect();
        if missing.is_empty() {
            return Vec::new();
        }
        asleep.retain(|(choice, _)| visited.asleep.contains(&of(choice)));
        visited.asleep = asleep.iter().map(|(choice, _)| of(choice)).collect();
        if simulation.is_urgent() {
            // Those steps come after the one that must come first.
            return tried(&|_| true);
        }
        tried(&|choice| missing.contains(&of(choice)))
    }

    /// Turns to the next run. Returns `false` if there is none.
    fn turn(&mut self) -> bool {
        while let Some(mut fork) = self.path.pop() {
            let (choice, footprint) = (fork.choice(), fork.footprint);
            fork.left.pop();
            fork.footprints = fork.footprints.and(&footprint);
            if fork.left.is_empty() {
                if fork.is_urgent
                    && let Some(before) = self.path.last_mut()
                {
                    before.footprint = before.made.and(&fork.footprints);
                }
                continue;
            }
            if self.reduction != Reduction::Nothing {
                fork.asleep.push((choice, footprint));
            }
            self.path.push(fork);
            return true;
        }
        false
    }

    /// Repeats the run up to here, and completes it.
    fn complete(&self) -> Result<(), String> {
        let mut simulation = Simulation::new(self.scenario);
        for fork in &self.path {
            simulation.step(fork.choice())?;
        }
        simulation.complete()
    }
}
