//! What the operations of a soak were, and what came of them. Processes send it to their parent, a JSON text a line.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Nanoseconds of the machine's monotonic clock, which all processes share.
pub(crate) type Nanos = u64;

pub(crate) const MILLI: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000 * MILLI;

pub(crate) fn now() -> Nanos {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or_default() * SECOND + u64::try_from(time.tv_nsec).unwrap_or_default()
}

/// One of the sessions that are in use at a time, the so-manieth that took this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct SessionId {
    pub(crate) slot: u32,
    pub(crate) generation: u64,
}

/// A task of a process. Each has a field of its own in every session, and writes rising numbers into it.
pub(crate) type Writer = u32;

/// What the fields of a session are.
pub(crate) type Fields = BTreeMap<Writer, u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    Create,
    Load,
    /// Opens the session, sets a field, and saves, which merges.
    Save(Writer, u64),
    Touch,
    Delete,
    /// Gives the session another key, which nobody uses: the end of this one.
    Rotate,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Created,
    Seen(Fields),
    /// There is no such session.
    Nothing,
    /// With what the session held then.
    Saved(Fields),
    Touched,
    /// Whether there was something to delete.
    Removed(bool),
    /// With what went to the new key.
    Rotated(Fields),
    /// It failed, and nothing happened, nor will.
    Refused,
    /// It failed, and may have happened, or may yet. Also: no answer, because the process is dead.
    Unknown,
}

/// An operation.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) process: u32,
    pub(crate) action: Action,
    pub(crate) begin: Nanos,
    /// `None`: it never answered.
    pub(crate) end: Option<Nanos>,
    pub(crate) answer: Answer,
    pub(crate) degraded: bool,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |at: Nanos| at as f64 / MILLI as f64;
        write!(f, "{:>14.3} ms ", ms(self.begin))?;
        match self.end {
            Some(end) => write!(f, "+{:>9.3} ms", ms(end - self.begin))?,
            None => write!(f, "  no answer ")?,
        }
        write!(f, "  process {:<3} {:?} -> {:?}", self.process, self.action, self.answer)?;
        if self.degraded { write!(f, ", degraded") } else { Ok(()) }
    }
}

/// What a process tells its parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// The store is built.
    Ready,
    /// Sent before the operation is.
    Begin {
        op: u64,
        session: SessionId,
        action: Action,
        at: Nanos,
    },
    End {
        op: u64,
        answer: Answer,
        degraded: bool,
        at: Nanos,
        error: Option<String>,
    },
    /// Now and then.
    Stats {
        at: Nanos,
        hits: u64,
        cache_errors: u64,
    },
}

/// What a parent tells its process, as the first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) cache: String,
    pub(crate) database: String,
    /// A cache that serves what is old, to see whether it is found.
    pub(crate) stale_cache: bool,
    /// Part of every session key.
    pub(crate) run: u32,
    pub(crate) seed: u64,
    pub(crate) process: u32,
    pub(crate) processes: u32,
    pub(crate) first_writer: Writer,
    pub(crate) tasks: u32,
    pub(crate) slots: u32,
    /// When generation 0 of slot 0 began.
    pub(crate) start: Nanos,
    pub(crate) generation: Nanos,
    /// It creates no sessions whose turn began before this.
    pub(crate) creates_from: Nanos,
    pub(crate) max_cache_age: Nanos,
    pub(crate) pause: Nanos,
}

impl Orders {
    /// Whose turn it is in a slot, and since when.
    pub(crate) fn turn(&self, slot: u32, at: Nanos) -> (u64, Nanos) {
        // Not all at once.
        let start = self.start + self.generation * u64::from(slot) / u64::from(self.slots.max(1));
        let generation = at.saturating_sub(start) / self.generation + u64::from(at >= start);
        (generation, start + generation.saturating_sub(1) * self.generation)
    }

    /// The process that creates a session: one only, and once, so that one that was deleted does not come back.
    pub(crate) fn creates(&self, session: SessionId) -> bool {
        (u64::from(session.slot) + session.generation) % u64::from(self.processes) == u64::from(self.process)
    }

    pub(crate) fn session_key(&self, session: SessionId) -> String {
        format!("{:08x}{:08x}{:016x}", self.run, session.slot, session.generation)
    }
}
