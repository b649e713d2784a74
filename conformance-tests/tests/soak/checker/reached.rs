//! The states that answers have shown.

use std::collections::BTreeMap;

use super::State;
use crate::history::{Answer, Nanos, Op};

/// The states that answers have shown, by the time of the answers.
#[derive(Debug, Default)]
pub(super) struct Reached {
    by_all: Rising,
    by_final: Rising,
    by_process: BTreeMap<u32, Rising>,
}

/// A state that rises, with the time since.
#[derive(Debug, Default)]
struct Rising(Vec<(Nanos, State)>);

impl Rising {
    fn by(&self, at: Nanos) -> State {
        let after = self.0.partition_point(|(since, _)| *since < at);
        after
            .checked_sub(1)
            .and_then(|last| self.0.get(last))
            .map_or(State::Absent, |(_, state)| state.clone())
    }

    fn add(&mut self, at: Nanos, state: &State) {
        if self.0.last().is_none_or(|(_, last)| state.has_reached(last)) {
            self.0.push((at, state.clone()));
        }
    }
}

impl Reached {
    pub(super) fn by(&self, at: Nanos) -> State {
        self.by_all.by(at)
    }

    /// Returns the state that a load from a near cache must have reached: its own process shows nothing older than it has shown
    /// or written; no process shows what a final operation has replaced; and everything else is seen within the bound.
    pub(super) fn for_near(&self, op: &Op, bound: Nanos) -> State {
        let own = self.by_process.get(&op.process).map_or(State::Absent, |own| own.by(op.begin));
        let others = [self.by_final.by(op.begin), self.by_all.by(op.begin.saturating_sub(bound))];
        others.into_iter().fold(own, |far, other| if other.has_reached(&far) { other } else { far })
    }

    pub(super) fn add(&mut self, op: &Op, at: Nanos, state: &State, is_final: bool) {
        if is_final {
            self.by_final.add(at, state);
        }
        // A touch shows no contents.
        if op.answer != Answer::Touched {
            self.by_process.entry(op.process).or_default().add(at, state);
        }
        self.by_all.add(at, state);
    }
}
