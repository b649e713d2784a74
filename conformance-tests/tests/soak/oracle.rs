//! The simulator's oracle on the history of one real session: whether any order of its operations explains all answers.
//!
//! It is exact, where [`checker`](super::checker) looks for what it knows to be wrong. What makes it possible for
//! thousands of operations is that all answers are known by now: an operation takes effect only where it answers as it
//! did.

use std::collections::BTreeSet;

use conformance_tests::linearize::{Configurations, Model, Progress, Step};

use super::history::{Action, Answer, Fields, Nanos, Op, Writer};

/// So many configurations are gone through, and no more.
const MAX_CONFIGURATIONS: usize = 5_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Explained,
    /// By the answer of the operation with this number.
    Unexplained(usize),
    /// There were too many orders to go through.
    TooMany,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum State {
    Absent,
    Alive(Fields),
    Gone,
}

/// Goes through a history. `is_bound` tells which loads are promised no more than the bound: any state explains them.
pub(crate) fn judge(history: &[Op], is_bound: impl Fn(&Op) -> bool) -> Verdict {
    let seen = history.iter().filter_map(Op::fields).flatten();
    let seen: BTreeSet<(Writer, u64)> = seen.map(|(writer, count)| (*writer, *count)).collect();
    // Of a write without an answer that nobody has seen, nothing tells whether it happened.
    let may_happen = |op: &Op| match (op.action, &op.answer) {
        (_, Answer::Refused) | (Action::Load | Action::Touch, Answer::Unknown) => false,
        (Action::Save(writer, count), Answer::Unknown) => seen.contains(&(writer, count)),
        _ => true,
    };
    let mut events: Vec<(Nanos, bool, usize)> = Vec::new();
    for (number, op) in history.iter().enumerate().filter(|(_, op)| may_happen(op) && !is_bound(op)) {
        events.push((op.begin, false, number));
        events.extend(op.end.filter(|_| op.answer != Answer::Unknown).map(|end| (end, true, number)));
    }
    // At the same instant, what begins is before what ends: they may have overlapped.
    events.sort_unstable();

    let mut flight = Flight { history, places: Vec::new() };
    let mut configurations = Configurations::new(State::Absent);
    for (_, is_answer, number) in events {
        if !is_answer {
            configurations.begin(flight.take_off(number));
            continue;
        }
        configurations.explain(&flight);
        configurations.retain(flight.land(number), |progress| *progress == Progress::Took(()));
        if configurations.is_empty() {
            return Verdict::Unexplained(number);
        }
        if configurations.len() > MAX_CONFIGURATIONS {
            return Verdict::TooMany;
        }
    }
    Verdict::Explained
}

/// The operations in flight, each in a place.
struct Flight<'a> {
    history: &'a [Op],
    places: Vec<Option<usize>>,
}

impl Flight<'_> {
    fn take_off(&mut self, number: usize) -> usize {
        let free = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        self.places.resize(self.places.len().max(free + 1), None);
        self.places[free] = Some(number);
        free
    }

    fn land(&mut self, number: usize) -> usize {
        let place = self.places.iter().position(|place| *place == Some(number)).expect("it has begun");
        self.places[place] = None;
        place
    }

    fn op(&self, place: usize) -> Option<&Op> {
        self.places.get(place).copied().flatten().map(|number| &self.history[number])
    }
}

impl Model for Flight<'_> {
    type State = State;
    type Outcome = ();

    fn steps(&self, place: usize, _: u8, state: &State) -> Vec<Step<Self>> {
        let next = self.op(place).and_then(|op| after(op, state));
        next.into_iter().map(|state| (state, Progress::Took(()))).collect()
    }

    fn is_eager(&self, place: usize) -> bool {
        self.op(place).is_some_and(|op| {
            matches!(op.answer, Answer::Seen(_) | Answer::Nothing | Answer::Touched | Answer::Removed(false))
        })
    }
}

/// What becomes of a session in this state by an operation, if that can answer there as it did.
fn after(op: &Op, state: &State) -> Option<State> {
    // What lands after its writer's next save finds another version, and does nothing: numbers rise.
    let saved = |fields: &Fields, writer: Writer, count: u64| {
        let mut fields = fields.clone();
        let before = fields.insert(writer, count);
        before.is_none_or(|before| before < count).then_some(fields)
    };
    match (op.action, &op.answer, state) {
        (_, Answer::Nothing | Answer::Removed(false), State::Absent | State::Gone) => Some(state.clone()),
        (Action::Create, Answer::Created | Answer::Unknown, State::Absent) => {
            Some(State::Alive(Fields::new()))
        }
        (Action::Load, Answer::Seen(seen), State::Alive(fields)) if seen == fields => Some(state.clone()),
        (Action::Touch, Answer::Touched, State::Alive(_)) => Some(state.clone()),
        (Action::Save(writer, count), Answer::Saved(left), State::Alive(fields)) => {
            saved(fields, writer, count).filter(|fields| fields == left).map(State::Alive)
        }
        (Action::Save(writer, count), Answer::Unknown, State::Alive(fields)) => {
            saved(fields, writer, count).map(State::Alive)
        }
        (Action::Rotate, Answer::Rotated(left), State::Alive(fields)) => {
            (left == fields).then_some(State::Gone)
        }
        (Action::Delete, Answer::Removed(true), State::Alive(_))
        | (Action::Delete | Action::Rotate, Answer::Unknown, State::Alive(_)) => Some(State::Gone),
        _ => None,
    }
}
