//! Exploring runs: all of them, random ones, or one again.

use std::fmt;
use std::str::FromStr;

use super::run::{Choice, Simulation, Verdict};
use super::scenario::Scenario;
use super::specification::Refusal;

/// The maximum number of steps. A run that is longer goes in circles.
pub(super) const MAX_STEPS: usize = 400;

/// The end of a choice vector that continues without faults, and without other operations.
pub(super) const COMPLETE: usize = usize::MAX;

/// From one in this many states, the run is completed. They are chosen by the state's digest, so they are
/// always the same.
pub const SAMPLED: u64 = 32;

/// The identity of a run: a scenario, and the choice at each step, as its position among the possible
/// choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    /// The scenario.
    pub scenario: Scenario,
    /// The choices.
    pub choices: Vec<usize>,
}

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |choice: &usize| if *choice == COMPLETE { "end".to_owned() } else { choice.to_string() };
        let choices: Vec<_> = self.choices.iter().map(name).collect();
        write!(f, "{}:{}", self.scenario, choices.join("."))
    }
}

impl FromStr for Vector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let choice = |text: &str| if text == "end" { Ok(COMPLETE) } else { text.parse() };
        let (scenario, choices) =
            text.split_once(':').ok_or_else(|| format!("{text:?} is no choice vector: it has no `:`"))?;
        let choices: Result<Vec<_>, _> =
            choices.split('.').filter(|choice| !choice.is_empty()).map(choice).collect();
        let choices = choices.map_err(|_| format!("{text:?} is no choice vector: a choice is no number"))?;
        Ok(Self { scenario: scenario.parse()?, choices })
    }
}

/// A run that broke a promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The run.
    pub vector: Vector,
    /// The promise that it breaks, and the evidence.
    pub reason: String,
}

/// The size of an exploration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: u64,
    /// Runs from the beginning.
    pub runs: u64,
    /// Runs to the end. The others came to a state that was explored before.
    pub ends: u64,
    /// States from which the run was completed.
    pub completions: u64,
}

impl Explored {
    /// Returns the size of both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl std::ops::AddAssign for Explored {
    fn add_assign(&mut self, other: Self) {
        self.states += other.states;
        self.runs += other.runs;
        self.ends += other.ends;
        self.completions += other.completions;
    }
}

pub(super) fn violation(scenario: &Scenario, choices: Vec<usize>, reason: String) -> Violation {
    Violation { vector: Vector { scenario: scenario.clone(), choices }, reason }
}

/// Makes one run with random choices, and returns the number of its steps. `random` returns a number below
/// its argument.
///
/// # Errors
///
/// Returns the violation if the run breaks a promise.
pub fn random_run(scenario: &Scenario, mut random: impl FnMut(usize) -> usize) -> Result<usize, Violation> {
    let mut simulation = Simulation::new(scenario);
    simulation.trace();
    let mut path = Vec::new();
    // One run in four is completed from somewhere in the middle.
    let length = if random(4) == 0 { random(60) } else { usize::MAX };
    loop {
        let choices = simulation.choices();
        if choices.is_empty() {
            return Ok(path.len());
        }
        if path.len() == length {
            let verdict = simulation.complete().and_then(|()| followed(&mut simulation));
            return verdict.map(|()| length).map_err(|reason| {
                path.push(COMPLETE);
                violation(scenario, path, reason)
            });
        }
        if path.len() >= MAX_STEPS {
            return Err(violation(scenario, path, "it goes in circles".into()));
        }
        let chosen = random(choices.len());
        let choice = choices[chosen];
        path.push(chosen);
        let verdict = simulation.step(choice).and_then(|()| followed(&mut simulation));
        if let Err(reason) = verdict {
            return Err(violation(scenario, path, reason));
        }
    }
}

/// Holds a run to the specification.
fn followed(simulation: &mut Simulation<'_>) -> Verdict {
    simulation.follow().map_err(|refusal| format!("the specification does not permit it: {refusal}"))
}

/// Repeats the run of `vector` by the rules of the specification. Returns the number of steps that they permit, and the
/// reason why they do not permit the next one, if there is one. Returns `None` if the specification does not cover the
/// scenario.
#[must_use]
pub fn trace(vector: &Vector) -> Option<(usize, Option<Refusal>)> {
    if !vector.scenario.is_specified() {
        return None;
    }
    let mut simulation = Simulation::new(&vector.scenario);
    simulation.trace();
    for number in &vector.choices {
        // The oracle's verdict is another matter.
        let _ = match (*number, simulation.choices().get(*number)) {
            (COMPLETE, _) => simulation.complete(),
            (_, Some(&choice)) => simulation.step(choice),
            _ => break,
        };
        if let Err(refusal) = simulation.follow() {
            return Some((simulation.traced(), Some(refusal)));
        }
    }
    Some((simulation.traced(), None))
}

/// A run that was replayed.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Descriptions of the steps.
    pub steps: Vec<String>,
    /// The promise that the run breaks, if it breaks one.
    pub violation: Option<String>,
}

/// Replays the run of `vector`.
///
/// # Errors
///
/// Returns an error if the vector does not fit: a choice is not among those that are possible, or the run is
/// not over where the vector ends, or is over before.
pub fn replay(vector: &Vector) -> Result<Replayed, String> {
    let mut simulation = Simulation::new(&vector.scenario);
    let mut steps = Vec::new();
    let mut chosen = vector.choices.iter();
    loop {
        let choices: Vec<Choice> = simulation.choices();
        let Some(&number) = chosen.next() else {
            if choices.is_empty() {
                return Ok(Replayed { steps, violation: None });
            }
            return Err(format!(
                "the choice vector does not fit: it ends after {} steps, but the run goes on",
                steps.len()
            ));
        };
        if number == COMPLETE && !choices.is_empty() {
            steps.push(format!(
                "from here on nothing else begins or goes wrong   [{}]",
                simulation.describe_state()
            ));
            return Ok(Replayed { steps, violation: simulation.complete().err() });
        }
        let Some(&choice) = choices.get(number) else {
            return Err(format!(
                "the choice vector does not fit: step {} chooses {number}, but only {} things can happen there",
                steps.len() + 1,
                choices.len()
            ));
        };
        let described = simulation.describe(choice);
        let verdict = simulation.step(choice);
        steps.push(format!("{described}   [{}]", simulation.describe_state()));
        if let Err(reason) = verdict {
            if chosen.next().is_some() {
                return Err("the choice vector does not fit: the run breaks a promise before its end".into());
            }
            return Ok(Replayed { steps, violation: Some(reason) });
        }
    }
}
