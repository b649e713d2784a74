//! The simulator's oracle on the history of one real session: a check whether any order of its operations
//! explains all answers.
//!
//! It is exact, whereas [`checker`](super::checker) looks for known violations. It can handle thousands of
//! operations because all answers are known by now: an operation takes effect only where it answers as it
//! did.

//! Saves of one process that waited for each other may be written by one statement, and then all answer with
//! the session as it left it. They are one operation here, which took effect while all of them were in
//! flight.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};

use conformance_tests::linearize::{Configurations, Model, Progress, Step};

use super::history::{Action, Answer, Fields, Nanos, Op, Writer};

/// The largest number of configurations that are explored at a time.
const MAX_CONFIGURATIONS: usize = 5_000;

/// The largest number of steps that are tried for one history: a minute's work or so.
const MAX_STEPS: u64 = 30_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Explained,
    /// Broken by the answer of the operation with this number.
    Unexplained(usize),
    /// There were too many orders to explore.
    TooMany,
}

/// Judges a history. `is_bound` returns `true` for loads to which no more than the bound is promised: any
/// state explains them.
pub(crate) fn judge(history: &[Op], is_bound: impl Fn(&Op) -> bool) -> Verdict {
    let mut flight = Flight::new(units(history, is_bound));
    // Saves that were never all in flight cannot have been one statement.
    if let Some(apart) = flight.units.iter().find(|unit| unit.end.is_some_and(|end| end < unit.begin)) {
        return Verdict::Unexplained(apart.first);
    }
    let mut events: Vec<(Nanos, bool, usize)> = Vec::new();
    for (number, unit) in flight.units.iter().enumerate() {
        events.push((unit.begin, false, number));
        events.extend(unit.end.map(|end| (end, true, number)));
    }
    // At the same instant, beginnings come before ends, because the operations may have overlapped.
    events.sort_unstable();

    let mut configurations = Configurations::new(ABSENT);
    for (_, is_answer, number) in events {
        if !is_answer {
            configurations.begin(flight.occupy_place(number));
            continue;
        }
        configurations.explain(&flight);
        configurations.retain(flight.release_place(number), |progress| *progress == Progress::Took(()));
        if configurations.is_empty() {
            return Verdict::Unexplained(flight.units[number].first);
        }
        if configurations.len() > MAX_CONFIGURATIONS || flight.steps.get() > MAX_STEPS {
            return Verdict::TooMany;
        }
    }
    Verdict::Explained
}

/// A unit that takes effect at one instant: an operation, or several saves.
#[derive(Debug)]
struct Unit<'a> {
    /// The number of the first operation.
    first: usize,
    op: &'a Op,
    /// The fields that are saved.
    own: Vec<(Writer, u64)>,
    begin: Nanos,
    /// `None` if it need not have taken effect.
    end: Option<Nanos>,
    /// The digest of the fields that it left, without its own.
    rest: u64,
}

fn units(history: &[Op], is_bound: impl Fn(&Op) -> bool) -> Vec<Unit<'_>> {
    let seen = history.iter().filter_map(Op::fields).flatten();
    let seen: BTreeSet<(Writer, u64)> = seen.map(|(writer, count)| (*writer, *count)).collect();
    // Nothing shows whether a write without an answer took effect if no operation saw it.
    let may_happen = |op: &Op| match (op.action, &op.answer) {
        (_, Answer::Refused) | (Action::Load | Action::Touch, Answer::Unknown) => false,
        (Action::Save(writer, count), Answer::Unknown) => seen.contains(&(writer, count)),
        _ => true,
    };
    let mut units: Vec<Unit<'_>> = Vec::new();
    let mut by_answer: HashMap<(u32, &Fields), usize> = HashMap::new();
    for (first, op) in history.iter().enumerate().filter(|(_, op)| may_happen(op) && !is_bound(op)) {
        let own: Vec<_> = match op.action {
            Action::Save(writer, count) => vec![(writer, count)],
            _ => Vec::new(),
        };
        let end = op.end.filter(|_| op.answer != Answer::Unknown);
        if let (Answer::Saved(left), Some(end)) = (&op.answer, end) {
            let place = *by_answer.entry((op.process, left)).or_insert(units.len());
            if let Some(unit) = units.get_mut(place) {
                unit.own.extend(own);
                unit.begin = unit.begin.max(op.begin);
                unit.end = unit.end.map(|other| other.min(end));
                continue;
            }
        }
        units.push(Unit { first, op, own, begin: op.begin, end, rest: 0 });
    }
    for unit in &mut units {
        if let Answer::Saved(left) = &unit.op.answer {
            unit.rest = digest(left).wrapping_sub(sum(unit.own.iter().copied()));
        }
    }
    units
}

/// A digest to which each field contributes separately.
fn digest(fields: &Fields) -> u64 {
    sum(fields.iter().map(|(writer, count)| (*writer, *count)))
}

fn sum(fields: impl Iterator<Item = (Writer, u64)>) -> u64 {
    fields.fold(0, |sum, (writer, count)| {
        let mut mixed = (u64::from(writer) << 40 ^ count).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        sum.wrapping_add(mixed ^ mixed >> 32)
    })
}

/// The number of a state. Each state that occurred has one, so that sessions with hundreds of fields are
/// compared once.
type State = usize;

const ABSENT: State = 0;
const GONE: State = 1;

#[derive(Debug, Default)]
struct States {
    /// The fields, and their digest, of the states from 2 on.
    alive: Vec<(Fields, u64)>,
    numbers: BTreeMap<Fields, State>,
}

impl States {
    fn number(&mut self, fields: Fields) -> State {
        if let Some(number) = self.numbers.get(&fields) {
            return *number;
        }
        let number = self.alive.len() + 2;
        self.alive.push((fields.clone(), digest(&fields)));
        self.numbers.insert(fields, number);
        number
    }

    fn fields(&self, state: State) -> Option<&(Fields, u64)> {
        self.alive.get(state.checked_sub(2)?)
    }
}

/// The operations in flight, each in a place.
struct Flight<'a> {
    units: Vec<Unit<'a>>,
    places: Vec<Option<usize>>,
    states: RefCell<States>,
    /// The results that are known already: the state after a unit takes effect in a state.
    known: RefCell<HashMap<(usize, State), Option<State>>>,
    steps: Cell<u64>,
}

impl<'a> Flight<'a> {
    fn new(units: Vec<Unit<'a>>) -> Self {
        Self {
            units,
            places: Vec::new(),
            states: RefCell::default(),
            known: RefCell::default(),
            steps: Cell::new(0),
        }
    }

    fn occupy_place(&mut self, number: usize) -> usize {
        let free = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        self.places.resize(self.places.len().max(free + 1), None);
        self.places[free] = Some(number);
        free
    }

    fn release_place(&mut self, number: usize) -> usize {
        let place = self.places.iter().position(|place| *place == Some(number)).expect("it has begun");
        self.places[place] = None;
        place
    }

    fn unit(&self, place: usize) -> Option<usize> {
        self.places.get(place).copied().flatten()
    }

    /// Returns the state of a session after a unit takes effect in this state, if the unit can answer there
    /// as it did.
    fn after(&self, number: usize, state: State) -> Option<State> {
        let unit = &self.units[number];
        let op = unit.op;
        let alive = |state: State| state > GONE;
        match (op.action, &op.answer) {
            (_, Answer::Nothing | Answer::Removed(false)) => (!alive(state)).then_some(state),
            (Action::Create, Answer::Created | Answer::Unknown) => {
                (state == ABSENT).then(|| self.states.borrow_mut().number(Fields::new()))
            }
            (Action::Touch, Answer::Touched) => alive(state).then_some(state),
            (Action::Delete, Answer::Removed(true)) | (Action::Delete | Action::Rotate, Answer::Unknown) => {
                alive(state).then_some(GONE)
            }
            _ if !alive(state) => None,
            _ => *self
                .known
                .borrow_mut()
                .entry((number, state))
                .or_insert_with(|| after(unit, state, &mut self.states.borrow_mut())),
        }
    }
}

impl Model for Flight<'_> {
    type State = State;
    type Outcome = ();

    fn steps(&self, place: usize, _: u8, state: &State) -> Vec<Step<Self>> {
        self.steps.set(self.steps.get() + 1);
        let next = self.unit(place).and_then(|number| self.after(number, *state));
        next.into_iter().map(|state| (state, Progress::Took(()))).collect()
    }

    fn is_eager(&self, place: usize) -> bool {
        self.unit(place).is_some_and(|number| {
            matches!(
                self.units[number].op.answer,
                Answer::Seen(_) | Answer::Nothing | Answer::Touched | Answer::Removed(false)
            )
        })
    }
}

/// Returns the same for a unit that depends on the fields, or leaves others.
fn after(unit: &Unit<'_>, state: State, states: &mut States) -> Option<State> {
    let (fields, whole) = states.fields(state)?;
    match (unit.op.action, &unit.op.answer) {
        (Action::Load, Answer::Seen(seen)) => (seen == fields).then_some(state),
        (Action::Rotate, Answer::Rotated(left)) => (left == fields).then_some(GONE),
        (Action::Save(..), answer) => {
            // A save that arrives after its writer's next save finds another version, and has no effect:
            // numbers rise.
            let mut replaced = 0_u64;
            for (writer, count) in &unit.own {
                match fields.get(writer) {
                    Some(before) if before >= count => return None,
                    Some(before) => replaced = replaced.wrapping_add(sum([(*writer, *before)].into_iter())),
                    None => {}
                }
            }
            if matches!(answer, Answer::Saved(_)) && whole.wrapping_sub(replaced) != unit.rest {
                return None;
            }
            let mut fields = fields.clone();
            fields.extend(unit.own.iter().copied());
            match answer {
                Answer::Saved(left) if *left != fields => None,
                Answer::Saved(_) | Answer::Unknown => Some(states.number(fields)),
                _ => None,
            }
        }
        _ => None,
    }
}
