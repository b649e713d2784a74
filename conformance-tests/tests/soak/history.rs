//! What the operations of a soak were, and what came of them. Processes send it to their parent, a JSON text a line.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use session_cached_db::Stats;

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
    Begin { op: u64, session: SessionId, action: Action, at: Nanos },
    End {
        op: u64,
        answer: Answer,
        degraded: bool,
        at: Nanos,
        error: Option<(Blame, String)>,
        /// The caller dropped the operation's future.
        departed: bool,
    },
    /// Now and then.
    Stats { at: Nanos, figures: Figures },
    /// A command was carried out.
    Done(Reply),
    /// A revocation was begun, and its sessions were counted until none was left or time was up.
    Revoked(Revocation),
}

/// What an error says is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Blame {
    Cache,
    /// The queue of a session's writes, within the process.
    Queue,
    Database,
    Other,
}

/// What a store has counted; see `CachedDb::stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) bypasses: u64,
    pub(crate) joined: u64,
    pub(crate) fenced_writes: u64,
    pub(crate) degraded_writes: u64,
    pub(crate) repairs: u64,
    pub(crate) cache_errors: u64,
    pub(crate) breaker_openings: u64,
    /// How often each server of the cache answered with a value.
    pub(crate) values: Vec<u64>,
}

impl From<Stats> for Figures {
    fn from(stats: Stats) -> Self {
        Self {
            hits: stats.hits,
            misses: stats.misses,
            bypasses: stats.bypasses,
            joined: stats.joined,
            fenced_writes: stats.fenced_writes,
            degraded_writes: stats.degraded_writes,
            repairs: stats.repairs,
            cache_errors: stats.cache_errors,
            breaker_openings: stats.breaker_openings,
            values: Vec::new(),
        }
    }
}

/// What became of a revocation whose caller may have left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Revocation {
    /// Part of the keys of its sessions.
    pub(crate) number: u64,
    /// The caller dropped its future.
    pub(crate) departed: bool,
    /// Sessions that existed when it began.
    pub(crate) sessions: u32,
    /// How many of them were left when time was up.
    pub(crate) left: u32,
    /// When the last one was gone, or time was up: counted from the beginning.
    pub(crate) after: Nanos,
    pub(crate) error: Option<String>,
}

/// What the parent wants a process of a phase to do. Each is answered by a [`Reply`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    Create {
        sessions: Vec<SessionId>,
    },
    /// Starts tasks that operate on sessions until [`Command::Rest`].
    Operate(Work),
    /// Stops the tasks, and waits until the operations in flight have answered.
    Rest {
        within: Nanos,
    },
    /// Loads the sessions until the cache has answered for each.
    Serve {
        sessions: Vec<SessionId>,
        within: Nanos,
    },
    /// Which server of the cache has which session, so that their values are counted apart.
    Homes {
        homes: Vec<(SessionId, usize)>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Created,
    Operating,
    /// So many tasks had an operation that did not end in time.
    Resting {
        stuck: u32,
    },
    /// How many sessions the cache did not answer for in time, and how long it took until it had for all others.
    Served {
        unserved: Vec<SessionId>,
        after: Nanos,
    },
    Noted,
}

/// What the tasks of a process do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) tasks: u32,
    pub(crate) sessions: Vec<SessionId>,
    pub(crate) mix: Mix,
    /// The mean time between two operations of a task.
    pub(crate) pause: Nanos,
    /// All tasks of all processes begin their operations at multiples of this. Not used if 0.
    pub(crate) beat: Nanos,
    /// Subjects whose sessions are revoked, one after the other.
    pub(crate) revokes: bool,
}

/// Of 1,000 operations, how many are what. The rest are loads.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Mix {
    pub(crate) saves: u16,
    pub(crate) touches: u16,
    pub(crate) deletes: u16,
    pub(crate) rotations: u16,
    /// Of 1,000 operations of any kind, how many are dropped by their caller a few milliseconds after they began.
    pub(crate) departing: u16,
    /// Of 1,000 loads, how many are not polled any more after a few milliseconds, and are not dropped either.
    pub(crate) stalling: u16,
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
        session_key(self.run, session)
    }
}

pub(crate) fn session_key(run: u32, session: SessionId) -> String {
    format!("{run:08x}{:08x}{:016x}", session.slot, session.generation)
}

/// What a parent tells a process of a phase, as the first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PhaseOrders {
    pub(crate) cache: String,
    pub(crate) database: String,
    /// Part of every session key.
    pub(crate) run: u32,
    pub(crate) seed: u64,
    pub(crate) process: u32,
    pub(crate) first_writer: Writer,
    pub(crate) max_cache_age: Nanos,
    pub(crate) cache_timeout: Nanos,
}
