//! The states to which an operation may bring the sessions.

use session_core::Timestamp;

use crate::simulation::call::Seen;
use crate::simulation::operation::{Operation, Outcome};
use crate::simulation::settings::{CLOCK_SLACK, FAR, START};
use crate::support::linearize::Progress;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Row {
    pub(super) seen: Seen,
    pub(super) expires_at: Timestamp,
    /// The reason for which it has its key, if another one is noted to lead there.
    pub(super) moved: Option<Moved>,
}

/// The reason for which a session has got another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Moved {
    /// Clients with the old key are led to the new one.
    Renewed,
    /// They are not.
    Rights,
}

/// The sessions under both keys.
pub(super) type Rows = [Option<Row>; 2];

/// An operation that takes effect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effect {
    pub(super) operation: Operation,
    pub(super) number: usize,
    /// The number of sessions that a revoke has ended so far.
    pub(super) so_far: u8,
    /// The sessions before it.
    pub(super) rows: Rows,
    pub(super) now: Timestamp,
    /// The note of a rotation was written, and is found.
    pub(super) follows: bool,
}

type Steps = Vec<(Rows, Progress<Outcome>)>;

impl Effect {
    /// Returns the states to which the sessions may come when the operation takes effect, or, for a revoke, takes
    /// effect in part.
    pub(super) fn steps(self) -> Steps {
        let rows = self.rows;
        match (self.operation, self.led_to()) {
            (Operation::Load, _) => one(rows, Outcome::Loaded(self.visible(0).map(|row| row.seen))),
            (Operation::LoadB, _) => one(rows, Outcome::Loaded(self.visible(1).map(|row| row.seen))),
            // It changes nothing, and is judged by itself.
            (Operation::Follow, _) => Vec::new(),
            (Operation::Merge | Operation::Renew, Some(moved)) => self.write_where_it_went(moved),
            (Operation::Renew | Operation::Cycle, _) => self.rotate(),
            (Operation::Open, led_to) => {
                let led = led_to.filter(|row| row.moved == Some(Moved::Renewed));
                one(rows, Outcome::Opened(self.visible(0).or(led).map(|row| row.seen)))
            }
            (Operation::LogOut, led_to) => {
                let key = usize::from(led_to.is_some());
                one(self.with(key, None), Outcome::Ended)
            }
            (Operation::Save | Operation::Overwrite | Operation::Merge, _) => self.save(),
            (Operation::Touch, _) => match self.visible(0) {
                None => one(rows, Outcome::Gone),
                Some(row) => one(self.with(0, Some(touched(row))), Outcome::Done),
            },
            (Operation::Use, _) => self.use_session(),
            (Operation::Delete | Operation::Elsewhere, _) => {
                one(self.with(0, None), Outcome::Removed(rows[0].is_some()))
            }
            (Operation::DeleteB, _) => one(self.with(1, None), Outcome::Removed(rows[1].is_some())),
            (Operation::Rename, _) => match (self.visible(0), rows[1]) {
                (None, _) => one(rows, Outcome::Gone),
                (Some(_), Some(_)) => one(rows, Outcome::Exists),
                (Some(row), None) => {
                    let row = self.written(row.seen);
                    one([None, Some(row)], Outcome::Wrote(row.seen))
                }
            },
            (Operation::Create, _) => match rows[1] {
                Some(_) => one(rows, Outcome::Exists),
                None => {
                    let row = self.written(Seen::FIRST);
                    one(self.with(1, Some(row)), Outcome::Wrote(row.seen))
                }
            },
            (Operation::Revoke, _) => self.revoke(),
            (Operation::Reap, _) => self.reap(),
        }
    }

    fn visible(self, key: usize) -> Option<Row> {
        self.rows[key].filter(|row| row.expires_at > self.now)
    }

    /// Returns the session that was under A, by the notes.
    fn led_to(self) -> Option<Row> {
        self.visible(1).filter(|row| self.follows && row.moved.is_some() && self.visible(0).is_none())
    }

    fn with(self, key: usize, row: Option<Row>) -> Rows {
        let mut rows = self.rows;
        rows[key] = row;
        rows
    }

    fn written(self, before: Seen) -> Row {
        Row { seen: Seen(self.operation.fields(self.number, before.0)), expires_at: START + FAR, moved: None }
    }

    fn save(self) -> Steps {
        match self.visible(0) {
            None => one(self.rows, Outcome::Gone),
            Some(row) if self.operation == Operation::Save && row.seen != Seen::FIRST => {
                one(self.rows, Outcome::Conflict)
            }
            Some(row) => {
                let row = self.written(row.seen);
                one(self.with(0, Some(row)), Outcome::Wrote(row.seen))
            }
        }
    }

    /// Gives the session under A the key B.
    fn rotate(self) -> Steps {
        let Some(row) = self.visible(0) else { return one(self.rows, Outcome::Gone) };
        let is_renewal = self.operation == Operation::Renew;
        let reason = if is_renewal { Moved::Renewed } else { Moved::Rights };
        let row = Row { moved: Some(reason), ..self.written(row.seen) };
        one([None, Some(row)], Outcome::Wrote(row.seen))
    }

    /// Writes the session under B, to which the notes have led a request with A's key.
    fn write_where_it_went(self, row: Row) -> Steps {
        let after = Row { moved: row.moved, ..self.written(row.seen) };
        match row.moved {
            // The request goes on with the new key.
            Some(Moved::Renewed) => one(self.with(1, Some(after)), Outcome::Wrote(after.seen)),
            // It learns nothing of what the session has become. It cannot give it another key.
            _ if self.operation == Operation::Renew => one(self.rows, Outcome::Gone),
            _ => one(self.with(1, Some(after)), Outcome::Wrote(self.written(Seen::FIRST).seen)),
        }
    }

    /// Uses the session. The process may have touched it a moment ago. Then it asks nothing, whatever became of it since.
    fn use_session(self) -> Steps {
        let mut steps = one(self.rows, Outcome::Used);
        steps.extend(match self.visible(0) {
            None => one(self.rows, Outcome::Gone),
            Some(row) => one(self.with(0, Some(touched(row))), Outcome::Used),
        });
        steps
    }

    fn revoke(self) -> Steps {
        let ended = (0..2).filter(|key| self.rows[*key].is_some());
        let mut steps: Vec<_> =
            ended.map(|key| (self.with(key, None), Progress::Waiting(self.so_far + 1))).collect();
        if self.visible(0).is_none() && self.visible(1).is_none() {
            steps.extend(one(self.rows, Outcome::Revoked(self.so_far)));
        }
        steps
    }

    fn reap(self) -> Steps {
        let is_due = |row: &Row| row.expires_at <= self.now - CLOCK_SLACK;
        let left = self.rows.map(|row| row.filter(|row| !is_due(row)));
        let reaped = self.rows.iter().flatten().filter(|row| is_due(row)).map(|_| 1).sum();
        one(left, Outcome::Reaped(reaped))
    }
}

fn touched(row: Row) -> Row {
    Row { expires_at: START + FAR, ..row }
}

fn one(rows: Rows, outcome: Outcome) -> Steps {
    vec![(rows, Progress::Took(outcome))]
}
