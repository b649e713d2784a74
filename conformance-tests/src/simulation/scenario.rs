//! Scenarios: which operations run, in which processes, and from which state.

use std::fmt;
use std::str::FromStr;

use session_core::Scope;

use super::arrangement::Arrangement;
use super::named::{CROWDS, LARGE_CROWDS, NEAR, NOTIFIED, RARE, ROTATIONS};
use super::operation::Operation;

/// The contents of the cache, as to session A, when a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Beginning {
    /// Nothing.
    Vacant,
    /// A.
    Cached,
    /// A, which expires within the time that can pass.
    Ending,
}

/// A mix of operations, and everything else that decides which runs are possible. Its name contains all of
/// it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scenario {
    /// The operations, and the process (0 or 1) that each of them is begun in.
    pub operations: Vec<(Operation, usize)>,
    /// The contents of the cache.
    pub beginning: Beginning,
    /// The cache.
    pub arrangement: Arrangement,
    /// The maximum number of faults in one run.
    pub faults: u8,
    /// The number of times that a rival process may get ahead of an exchange in one run. That process writes
    /// nothing.
    pub rivalry: u8,
    /// The number of times that the freshness bound of near caches may pass in one run, besides when a final operation
    /// waits for it.
    pub ticks: u8,
}

impl Scenario {
    pub(super) fn scope(&self) -> Scope {
        if self.arrangement.is_shared() { Scope::Shared } else { Scope::Process }
    }

    /// Returns `true` if two of its operations may differ by their numbers alone.
    #[must_use]
    pub fn has_twins(&self) -> bool {
        self.operations.iter().enumerate().any(|(number, own)| self.operations[..number].contains(own))
    }

    pub(super) fn processes(&self) -> usize {
        self.operations.iter().map(|(_, process)| process + 1).max().unwrap_or(1)
    }

    /// Returns the crowds: several operations of one process that share a write queue or a single flight, and
    /// writers that a rival process overtakes more often than an exchange is retried without a pause.
    /// Includes the large ones if `all`.
    ///
    /// # Errors
    ///
    /// Returns an error if a name in the list names no scenario.
    pub fn crowds(all: bool) -> Result<Vec<Self>, String> {
        let large = LARGE_CROWDS.iter().filter(|_| all);
        CROWDS.iter().chain(large).map(|name| name.parse()).collect()
    }

    /// Returns the scenarios with near caches: memory of each process, in front of a shared cache or alone.
    ///
    /// # Errors
    ///
    /// Returns an error if a name in the list names no scenario.
    pub fn near() -> Result<Vec<Self>, String> {
        NEAR.iter().chain(NOTIFIED).map(|name| name.parse()).collect()
    }

    /// Returns the scenarios in which sessions get other keys by notes of rotations.
    ///
    /// # Errors
    ///
    /// Returns an error if a name in the list names no scenario.
    pub fn rotations() -> Result<Vec<Self>, String> {
        ROTATIONS.iter().map(|name| name.parse()).collect()
    }

    /// Returns `true` if a client presents A's key while A is renamed, which was noted before.
    pub(super) fn follows(&self) -> bool {
        self.operations.iter().any(|(operation, _)| *operation == Operation::Follow)
    }

    /// Returns `true` if sessions get other keys by notes of rotations, or requests follow them.
    pub(super) fn has_rotations(&self) -> bool {
        self.operations.iter().any(|(operation, _)| operation.uses_rotations())
    }

    /// Returns the scenarios of arrangements that are no part of the mixes: writes that fail closed, a cache that loses what
    /// it has acknowledged, a process that writes past another's cache, near caches without channels or with outages.
    ///
    /// # Errors
    ///
    /// Returns an error if a name in the list names no scenario.
    pub fn rare() -> Result<Vec<Self>, String> {
        RARE.iter().map(|name| name.parse()).collect()
    }

    /// Returns the mixes with which every change is checked: every mix of two in all arrangements with one fault. Returns
    /// samples besides, for which there may be time:
    ///
    /// - every mix of two in one arrangement with two faults (nothing cached, and each operation in a process
    ///   of its own, unless both are loads), except the largest;
    /// - `samples` of these largest, chosen by `random`;
    /// - as many mixes of three, half of them with one fault, and half of them, which include the largest
    ///   mixes and those with more than one merge, without a fault.
    #[must_use]
    pub fn standard(mut random: impl FnMut(usize) -> usize, samples: usize) -> (Vec<Self>, Vec<Self>) {
        let matters_most = |scenario: &Self| {
            let shares_flights = scenario.operations.iter().all(|(operation, _)| operation.is_load());
            let is_plain = scenario.arrangement == Arrangement::Shared;
            is_plain
                && scenario.beginning != Beginning::Cached
                && (scenario.processes() > 1 || shares_flights)
        };
        let twice = Self::all(2, 2).into_iter().filter(matters_most);
        let (mut large, mut sampled): (Vec<_>, Vec<_>) = twice.partition(Self::is_large);
        for _ in 0..samples.min(large.len()) {
            sampled.push(large.swap_remove(random(large.len())));
        }
        let mut threes = Self::all(3, 0);
        let mut small_threes = Self::all(3, 1);
        small_threes.retain(|scenario| scenario.keys() <= 3 && scenario.merges() <= 1);
        for sample in 0..samples {
            let among = if sample % 2 == 0 { &mut threes } else { &mut small_threes };
            sampled.push(among.swap_remove(random(among.len())));
        }
        (Self::all(2, 1), sampled)
    }

    /// Returns `true` if it has many states, because its operations touch two sessions or may begin again.
    fn is_large(&self) -> bool {
        self.keys() + self.merges() > 2
    }

    /// Puts the largest first, so that no core is left alone with one at the end.
    pub fn sort(scenarios: &mut [Self]) {
        scenarios.sort_by_key(|scenario| {
            std::cmp::Reverse((scenario.operations.len() + usize::from(scenario.faults), scenario.keys()))
        });
    }

    /// Returns how many sessions the operations touch, each counted once per operation.
    fn keys(&self) -> usize {
        self.operations.iter().map(|(operation, _)| operation.keys().len()).sum()
    }

    /// Returns how many operations may begin again.
    fn merges(&self) -> usize {
        self.operations.iter().filter(|(operation, _)| *operation == Operation::Merge).count()
    }

    /// Returns a random scenario of `size` operations and up to `faults` faults.
    #[must_use]
    pub fn random(mut random: impl FnMut(usize) -> usize, size: usize, faults: u8) -> Self {
        loop {
            let mut operations: Vec<_> =
                (0..size).map(|_| Operation::ALL[random(Operation::ALL.len())]).collect();
            operations.sort_unstable();
            if !is_connected(&operations) || !operations.iter().all(|operation| operation.is_in_mixes()) {
                continue;
            }
            let mut beginnings = beginnings(&operations);
            let mut placements = placements(&operations);
            let operations = placements.swap_remove(random(placements.len()));
            let is_split = operations.iter().any(|(_, process)| *process > 0);
            let is_shared = is_split || random(4) > 0;
            // One in three has memories that are told of changes.
            const NEAR: [Arrangement; 4] =
                [Arrangement::Near, Arrangement::Strict, Arrangement::NearSensitive, Arrangement::Notified];
            let arrangement = match is_split && random(2) > 0 {
                _ if random(3) == 0 => NEAR[random(NEAR.len())],
                true => Arrangement::Sensitive,
                false if is_shared => Arrangement::Shared,
                false => Arrangement::Process,
            };
            let is_near = arrangement.is_near();
            let rivalry = if random(4) == 0 && !is_near { 8 } else { 0 };
            let ticks = if is_near { u8::try_from(random(4)).unwrap_or(0) } else { 0 };
            let beginning = beginnings.swap_remove(random(beginnings.len()));
            return Self { operations, beginning, arrangement, faults, rivalry, ticks };
        }
    }

    /// Returns every mix of `size` operations and up to `faults` faults with near caches, in front of a shared cache or over
    /// a database that reports. The faults are those of channels.
    #[must_use]
    pub fn all_near(size: usize, faults: u8) -> Vec<Self> {
        let mut scenarios = Self::all(size, 0);
        scenarios.retain(|scenario| {
            scenario.arrangement == Arrangement::Shared
                && scenario.operations.iter().any(|(operation, _)| operation.is_load())
        });
        let near = |arrangement| {
            scenarios.iter().map(move |scenario| Self { arrangement, faults, ..scenario.clone() })
        };
        let mut all: Vec<_> = near(Arrangement::Near).chain(near(Arrangement::Notified)).collect();
        // Over a database that reports, nothing is cached but what memories hold, and that is there or not.
        all.retain(|scenario| {
            scenario.arrangement == Arrangement::Near || scenario.beginning != Beginning::Ending
        });
        all
    }

    /// Returns `true` if this is the arrangement of its mix that shows the most: one cache for two processes,
    /// of which one has the last operation and the other one the rest, and nothing cached.
    #[must_use]
    pub fn is_first_arrangement(&self) -> bool {
        let last = self.operations.len() - 1;
        let mut operations: Vec<_> = self.operations.iter().map(|(operation, _)| *operation).collect();
        operations.sort_unstable();
        let mut spread: Vec<_> = operations
            .into_iter()
            .enumerate()
            .map(|(n, operation)| (operation, usize::from(n == last)))
            .collect();
        spread.sort_unstable();
        self.operations == spread
            && self.arrangement == Arrangement::Shared
            && self.beginning != Beginning::Cached
    }

    /// Returns every scenario with `size` operations and up to `faults` faults.
    #[must_use]
    pub fn all(size: usize, faults: u8) -> Vec<Self> {
        let mut mixes = Vec::new();
        mix(size, 0, &mut Vec::new(), &mut mixes);
        let mut scenarios = Vec::new();
        for operations in mixes.iter().filter(|operations| is_connected(operations)) {
            for beginning in beginnings(operations) {
                for placed in placements(operations) {
                    let is_split = placed.iter().any(|(_, process)| *process > 0);
                    // With one process, a cache of its own is another arrangement; with two, a breaker that
                    // opens while the other process continues.
                    let arrangements: &[_] = match (is_split, faults) {
                        (false, _) => &[Arrangement::Shared, Arrangement::Process],
                        (true, 0) => &[Arrangement::Shared],
                        (true, _) => &[Arrangement::Shared, Arrangement::Sensitive],
                    };
                    for &arrangement in arrangements {
                        let operations = placed.clone();
                        let (rivalry, ticks) = (0, 0);
                        scenarios.push(Self { operations, beginning, arrangement, faults, rivalry, ticks });
                    }
                }
            }
        }
        scenarios
    }
}

/// Collects all multisets of operations.
fn mix(size: usize, from: usize, chosen: &mut Vec<Operation>, mixes: &mut Vec<Vec<Operation>>) {
    if chosen.len() == size {
        mixes.push(chosen.clone());
        return;
    }
    for (position, operation) in
        Operation::ALL.iter().enumerate().skip(from).filter(|(_, other)| other.is_in_mixes())
    {
        chosen.push(*operation);
        mix(size, position, chosen, mixes);
        chosen.pop();
    }
}

/// Returns `true` if the operations have to do with each other. Others are no mix.
fn is_connected(operations: &[Operation]) -> bool {
    let Some((first, rest)) = operations.split_first() else { return false };
    let mut reached: Vec<usize> = first.keys().to_vec();
    let mut left: Vec<_> = rest.to_vec();
    while let Some(next) = left.iter().position(|other| other.keys().iter().any(|key| reached.contains(key)))
    {
        reached.extend(left.remove(next).keys());
    }
    // B is not there in the beginning, so an operation must make it.
    let makes_b = operations.iter().any(|other| matches!(other, Operation::Create | Operation::Rename));
    left.is_empty()
        && (makes_b || !reached.contains(&1) || operations.iter().all(|other| other.keys() != [1]))
}

fn beginnings(operations: &[Operation]) -> Vec<Beginning> {
    let mut beginnings = vec![Beginning::Vacant, Beginning::Cached];
    if operations.iter().all(|operation| !operation.keys().contains(&0)) {
        beginnings.pop();
    }
    if operations.contains(&Operation::Reap) {
        beginnings = vec![Beginning::Ending];
    }
    beginnings
}

/// Returns every way to spread the operations over one or two processes. The processes differ in their clocks
/// alone.
fn placements(operations: &[Operation]) -> Vec<Vec<(Operation, usize)>> {
    let mut placements = Vec::new();
    for bits in 0..1_usize << (operations.len() - 1) {
        let place = |position: usize| if position == 0 { 0 } else { bits >> (position - 1) & 1 };
        let mut placed: Vec<_> = operations
            .iter()
            .enumerate()
            .map(|(position, operation)| (*operation, place(position)))
            .collect();
        placed.sort_unstable();
        if !placements.contains(&placed) {
            placements.push(placed);
        }
    }
    placements
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (operation, process)) in self.operations.iter().enumerate() {
            let plus = if position > 0 { "+" } else { "" };
            write!(f, "{plus}{}@{process}", operation.name())?;
        }
        let beginning = match self.beginning {
            Beginning::Vacant => "vacant",
            Beginning::Cached => "cached",
            Beginning::Ending => "ending",
        };
        write!(f, "/{beginning}/{}/{}", self.arrangement.name(), self.faults)?;
        match (self.rivalry, self.ticks) {
            (0, 0) => Ok(()),
            (0, ticks) => write!(f, "/ticks{ticks}"),
            (rivalry, _) => write!(f, "/rival{rivalry}"),
        }
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!("{text:?} names no scenario: {what}. One is named like `load@0+save@1/cached/shared/2`")
        };
        let mut parts = text.split('/').collect::<Vec<_>>();
        let fifth = |prefix| match parts.get(4) {
            None => Some(0),
            Some(part) => part.strip_prefix(prefix)?.parse().ok(),
        };
        let (rivalry, ticks) = match (fifth("rival"), fifth("ticks")) {
            (None, None) => return Err(wrong("its fifth part is not like `rival8` or `ticks2`")),
            (rivalry, ticks) => (rivalry.unwrap_or(0), ticks.unwrap_or(0)),
        };
        parts.truncate(4);
        let [operations, beginning, cache, faults] = parts[..] else {
            return Err(wrong("it does not have four parts"));
        };
        let operation = |text: &str| {
            let (name, process) = text.split_once('@')?;
            let operation = Operation::ALL.iter().find(|operation| operation.name() == name)?;
            let process = process.parse().ok().filter(|process| *process < 2)?;
            Some((*operation, process))
        };
        let operations: Option<Vec<_>> = operations.split('+').map(operation).collect();
        let arrangement = Arrangement::ALL.iter().find(|arrangement| arrangement.name() == cache);
        let scenario = Self {
            operations: operations.ok_or_else(|| wrong("its operations are unknown"))?,
            beginning: match beginning {
                "vacant" => Beginning::Vacant,
                "cached" => Beginning::Cached,
                "ending" => Beginning::Ending,
                _ => return Err(wrong("the beginning is neither vacant nor cached nor ending")),
            },
            arrangement: *arrangement.ok_or_else(|| wrong("its cache is unknown"))?,
            faults: faults.parse().map_err(|_| wrong("the number of faults is no number"))?,
            rivalry,
            ticks,
        };
        if scenario.ticks > 0 && !scenario.arrangement.is_near() {
            return Err(wrong("the freshness bound matters to near caches only"));
        }
        if !scenario.arrangement.is_shared() && scenario.processes() > 1 {
            return Err(wrong("two processes cannot have one process's cache"));
        }
        if scenario.operations.len() > 8 {
            return Err(wrong("it has more than eight operations"));
        }
        Ok(scenario)
    }
}
