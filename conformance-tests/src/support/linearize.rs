//! Linearizability: whether any order in which operations took effect explains what they answered.
//!
//! Kept are all *configurations* that explain the answers so far: a state, and which of the operations in flight have
//! taken effect in it. An operation that begins may take effect in each from then on; an answer removes those that cannot
//! explain it. If none is left, nothing explains the answers.

use std::collections::BTreeSet;

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress<O> {
    /// Not taken effect yet, but for so many parts of it.
    Waiting(u8),
    /// It has taken effect, and must answer so.
    Took(O),
    /// It has answered, or is not looked at any more.
    Over,
}

/// What operations do.
pub trait Model {
    /// What they act on.
    type State: Clone + Ord;
    /// What they answer.
    type Outcome: Clone + Ord;

    /// What may become of `state` when an operation takes effect, of which `so_far` parts have done so already.
    fn steps(&self, number: usize, so_far: u8, state: &Self::State) -> Vec<Step<Self>>;

    /// What may become of `state` when several of the operations that `wait` take effect at the same moment, as one. Each is a
    /// state, and what those operations answer. Provided: none does.
    fn joint_steps(&self, wait: &[usize], state: &Self::State) -> Vec<JointStep<Self>> {
        let _ = (wait, state);
        Vec::new()
    }

    /// Whether the operation changes nothing and its answer is known, so that it may take effect as soon as it can: later is
    /// no better.
    fn is_eager(&self, number: usize) -> bool {
        let _ = number;
        false
    }
}

/// A state, and how far the operation is that led to it.
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
    /// Before the first operation.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self(BTreeSet::from([Configuration { state, operations: Vec::new() }]))
    }

    /// An operation with this number begins. The number may be that of one that is [over](Self::retain).
    pub fn begin(&mut self, number: usize) {
        self.change(|configuration| {
            while configuration.operations.len() <= number {
                configuration.operations.push(Progress::Over);
            }
            configuration.operations[number] = Progress::Waiting(0);
        });
    }

    /// Adds every configuration that can come about by operations in flight taking effect.
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

    /// The operation with this number is over. Only the configurations stay in which it had come as far as `keep` says.
    pub fn retain(&mut self, number: usize, keep: impl Fn(&Progress<O>) -> bool) {
        self.0.retain(|configuration| keep(&configuration.operations[number]));
        self.change(|configuration| configuration.operations[number] = Progress::Over);
    }

    /// Whether the operation with this number is over in all.
    #[must_use]
    pub fn is_over(&self, number: usize) -> bool {
        self.0.iter().all(|configuration| {
            configuration.operations.get(number).is_none_or(|progress| *progress == Progress::Over)
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing explains the answers.
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
