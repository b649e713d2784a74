//! Linearizability: a check whether any order in which operations took effect explains their answers.
//!
//! The checker keeps all *configurations* that explain the answers so far. A configuration is a state, and
//! which of the operations in flight have taken effect in it. An operation that begins may take effect in
//! each from then on; an answer removes those that cannot explain it. If none is left, nothing explains the
//! answers.

use std::collections::BTreeSet;

/// The progress of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress<O> {
    /// The operation has not taken effect yet, except for this number of its parts.
    Waiting(u8),
    /// The operation has taken effect, and must answer with this outcome.
    Took(O),
    /// The operation has answered, or is ignored from now on.
    Over,
}

/// A model of what operations do.
pub trait Model {
    /// The state on which operations act.
    type State: Clone + Ord;
    /// The answer of an operation.
    type Outcome: Clone + Ord;

    /// Returns the states that `state` may become when an operation takes effect of which `so_far` parts have
    /// taken effect already.
    fn steps(&self, number: usize, so_far: u8, state: &Self::State) -> Vec<Step<Self>>;

    /// Returns the states that `state` may become when several of the operations that `wait` take effect
    /// together, at the same moment, each with the answers of those operations. By default, operations never
    /// take effect together.
    fn joint_steps(&self, wait: &[usize], state: &Self::State) -> Vec<JointStep<Self>> {
        let _ = (wait, state);
        Vec::new()
    }

    /// Returns `true` if the operation changes nothing and its answer is known. Then it takes effect as soon
    /// as it can, because no later moment is better. Defaults to `false`.
    fn is_eager(&self, number: usize) -> bool {
        let _ = number;
        false
    }
}

/// A state, and the progress of the operation that led to it.
pub type Step<M> = (<M as Model>::State, Progress<<M as Model>::Outcome>);

/// A state, and the operations that led to it together, with their answers.
pub type JointStep<M> = (<M as Model>::State, Vec<(usize, <M as Model>::Outcome)>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Configuration<S, O> {
    state: S,
    operations: Vec<Progress<O>>,
}

/// All configurations that explain the answers so far.
#[derive(Clone, Debug, Hash)]
pub struct Configurations<S, O>(BTreeSet<Configuration<S, O>>);

impl<S: Clone + Ord, O: Clone + Ord> Configurations<S, O> {
    /// Creates the configuration before the first operation.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self(BTreeSet::from([Configuration { state, operations: Vec::new() }]))
    }

    /// Begins an operation with this number, which may be that of an operation that is [over](Self::retain).
    pub fn begin(&mut self, number: usize) {
        self.change(|configuration| {
            while configuration.operations.len() <= number {
                configuration.operations.push(Progress::Over);
            }
            configuration.operations[number] = Progress::Waiting(0);
        });
    }

    /// Adds every configuration that results when operations in flight take effect.
    pub fn explain<M: Model<State = S, Outcome = O>>(&mut self, model: &M) {
        let operations = self.0.first().map_or(0, |configuration| configuration.operations.len());
        if (0..operations).any(|number| model.is_eager(number)) {
            self.change(|configuration| configuration.hurry(model));
        }
        let mut open: Vec<_> = self.0.iter().cloned().collect();
        while let Some(configuration) = open.pop() {
            let wait: Vec<_> = (0..configuration.operations.len())
                .filter(|number| configuration.operations[*number] == Progress::Waiting(0))
                .collect();
            for (state, took) in model.joint_steps(&wait, &configuration.state) {
                let mut next = Configuration { state, operations: configuration.operations.clone() };
                for (number, outcome) in took {
                    next.operations[number] = Progress::Took(outcome);
                }
                next.hurry(model);
                if self.0.insert(next.clone()) {
                    open.push(next);
                }
            }
            for (number, progress) in configuration.operations.iter().enumerate() {
                let Progress::Waiting(so_far) = *progress else { continue };
                for (state, progress) in model.steps(number, so_far, &configuration.state) {
                    let mut next = Configuration { state, operations: configuration.operations.clone() };
                    next.operations[number] = progress;
                    next.hurry(model);
                    if self.0.insert(next.clone()) {
                        open.push(next);
                    }
                }
            }
        }
    }

    /// Ends the operation with this number, and keeps only the configurations in which its progress satisfies
    /// `keep`.
    pub fn retain(&mut self, number: usize, keep: impl Fn(&Progress<O>) -> bool) {
        self.0.retain(|configuration| keep(&configuration.operations[number]));
        self.change(|configuration| configuration.operations[number] = Progress::Over);
    }

    /// Returns `true` if the operation with this number is over in every configuration.
    #[must_use]
    pub fn is_over(&self, number: usize) -> bool {
        self.0.iter().all(|configuration| {
            configuration.operations.get(number).is_none_or(|progress| *progress == Progress::Over)
        })
    }

    /// Returns the number of configurations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if nothing explains the answers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn change(&mut self, change: impl Fn(&mut Configuration<S, O>)) {
        let changed = std::mem::take(&mut self.0).into_iter().map(|mut configuration| {
            change(&mut configuration);
            configuration
        });
        self.0 = changed.collect();
    }
}

impl<S: Clone + Ord, O: Clone + Ord> Configuration<S, O> {
    /// Lets eager operations take effect that can.
    fn hurry(&mut self, model: &impl Model<State = S, Outcome = O>) {
        for number in 0..self.operations.len() {
            if matches!(self.operations[number], Progress::Waiting(0))
                && model.is_eager(number)
                && let Some((_, progress)) = model.steps(number, 0, &self.state).pop()
            {
                self.operations[number] = progress;
            }
        }
    }
}
