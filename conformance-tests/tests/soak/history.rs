//! The operations of a soak, and their outcomes. Processes send them to their parent, one JSON text per line.

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

/// One of the sessions that are in use at a time: a slot, and the number of the session in that slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct SessionId {
    pub(crate) slot: u32,
    pub(crate) generation: u64,
}

/// A task of a process. Each has a field of its own in every session, and writes rising numbers into it.
pub(crate) type Writer = u32;

/// The fields of a session.
pub(crate) type Fields = BTreeMap<Writer, u64>;

/// The value that the saves of all writers modify: how many of each one's saves have counted themselves in it.
pub(crate) type Counted = BTreeMap<Writer, u64>;

/// In reports, what is counted is among the fields, under the numbers of the writers plus this one.
pub(crate) const COUNTED: Writer = 1 << 31;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    Create,
    Load,
    /// Opens the session, sets a field, counts itself in the value that all writers modify, and saves, which merges. See
    /// [`is_strict`].
    Save(Writer, u64),
    Touch,
    Delete,
    /// Renames the session to another key, which no task uses: the end of this session.
    Rotate,
}

/// Returns `true` if the save of this number is made final: no near cache shows an older state after it.
pub(crate) const fn is_strict(count: u64) -> bool {
    count.is_multiple_of(16)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Created,
    Seen(Fields),
    /// There is no such session.
    Nothing,
    /// The session was saved, with these contents.
    Saved(Fields),
    Touched,
    /// The delete succeeded. Holds `true` if there was a session.
    Removed(bool),
    /// The session was renamed, with these contents.
    Rotated(Fields),
    /// The operation failed without effect, and will have none.
    Refused,
    /// The operation failed, and may have taken effect, or may do so later. Also stands for no answer,
    /// because the process is dead.
    Unknown,
}

impl Answer {
    /// Takes what is counted out of the fields of an answer.
    fn take_counted(&mut self) -> Option<Counted> {
        match self {
            Self::Seen(fields) | Self::Saved(fields) | Self::Rotated(fields) => {
                let counted = fields.split_off(&COUNTED);
                Some(counted.into_iter().map(|(writer, count)| (writer - COUNTED, count)).collect())
            }
            _ => None,
        }
    }
}

/// An operation.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) process: u32,
    pub(crate) action: Action,
    pub(crate) begin: Nanos,
    /// `None` if the operation never answered.
    pub(crate) end: Option<Nanos>,
    pub(crate) answer: Answer,
    pub(crate) degraded: bool,
    /// The count in the state of the answer. `None` if that is not known.
    pub(crate) counted: Option<Counted>,
}

impl Op {
    /// Creates an operation that has not answered.
    pub(crate) fn begun(process: u32, action: Action, begin: Nanos) -> Self {
        let answer = Answer::Unknown;
        Self { process, action, begin, end: None, answer, degraded: false, counted: None }
    }

    /// Notes the answer.
    pub(crate) fn answered(&mut self, end: Nanos, mut answer: Answer, degraded: bool) {
        self.counted = answer.take_counted();
        (self.end, self.answer, self.degraded) = (Some(end), answer, degraded);
    }
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

/// A report of a process to its parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// The store is built.
    Ready,
    /// An operation is about to be sent.
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
    /// The figures of the process, which come now and then.
    Stats { at: Nanos, figures: Figures },
    /// A command was carried out.
    Done(Reply),
    /// A revocation began, and its sessions were counted until none was left or the time was up.
    Revoked(Revocation),
}

/// The part that an error blames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Blame {
    Cache,
    /// The queue of a session's writes in the process.
    Queue,
    Database,
    Other,
}

/// The counters of a store; see `CachedDb::stats`. A program of an older revision lacks some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Figures {
    pub(crate) hits: u64,
    pub(crate) near_hits: u64,
    pub(crate) misses: u64,
    pub(crate) bypasses: u64,
    pub(crate) joined: u64,
    pub(crate) fenced_writes: u64,
    pub(crate) degraded_writes: u64,
    pub(crate) repairs: u64,
    pub(crate) cache_errors: u64,
    pub(crate) breaker_openings: u64,
    /// The number of times that each server of the cache answered with a value.
    pub(crate) values: Vec<u64>,
}

impl From<Stats> for Figures {
    fn from(stats: Stats) -> Self {
        Self {
            hits: stats.hits,
            near_hits: stats.near_hits,
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

/// The result of a revocation whose future may have been dropped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Revocation {
    /// A part of the keys of its sessions.
    pub(crate) number: u64,
    /// The caller dropped its future.
    pub(crate) departed: bool,
    /// Sessions that existed when it began.
    pub(crate) sessions: u32,
    /// The number of them that were left when the time was up.
    pub(crate) left: u32,
    /// The time from the beginning until the last session was gone, or until the time was up.
    pub(crate) after: Nanos,
    pub(crate) error: Option<String>,
}

/// A command of the parent to a process of a phase. Each is answered by a [`Reply`].
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
    /// Says which server of the cache has which session, so that their values are counted separately.
    Homes {
        homes: Vec<(SessionId, usize)>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Created,
    Operating,
    /// The tasks have stopped. Holds the number of tasks with an operation that did not end in time.
    Resting {
        stuck: u32,
    },
    /// The number of sessions for which the cache did not answer in time, and the time until it had answered
    /// for the others.
    Served {
        unserved: Vec<SessionId>,
        after: Nanos,
    },
    Noted,
}

/// The work of the tasks of a process.
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

/// The number of each kind among 1,000 operations. The rest are loads.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Mix {
    pub(crate) saves: u16,
    pub(crate) touches: u16,
    pub(crate) deletes: u16,
    pub(crate) rotations: u16,
    /// The number of 1,000 operations that their caller drops a few milliseconds after they began.
    pub(crate) departing: u16,
    /// The number of 1,000 loads that, after a few milliseconds, are neither polled any more nor dropped.
    pub(crate) stalling: u16,
}

/// A way in which a cache lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Lie {
    /// It serves old values.
    Stale,
    /// It is a near cache, and answers from memory for longer than it says.
    Overdue,
}

/// The orders of a parent to its process, as the first line. The program of an older revision reads them, too, so fields are
/// added with a default, and none is removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) cache: String,
    pub(crate) database: String,
    pub(crate) lie: Option<Lie>,
    /// Always `false`: programs from before `lie` need it.
    #[serde(default)]
    pub(crate) stale_cache: bool,
    /// A part of every session key.
    pub(crate) run: u32,
    pub(crate) seed: u64,
    pub(crate) process: u32,
    pub(crate) processes: u32,
    pub(crate) first_writer: Writer,
    pub(crate) tasks: u32,
    pub(crate) slots: u32,
    /// The time at which generation 0 of slot 0 began.
    pub(crate) start: Nanos,
    pub(crate) generation: Nanos,
    /// The process creates no session whose turn began before this time.
    pub(crate) creates_from: Nanos,
    pub(crate) max_cache_age: Nanos,
    pub(crate) pause: Nanos,
    /// Most operations are loads, so that near caches have something in memory.
    pub(crate) is_read_mostly: bool,
}

impl Orders {
    /// Returns which session has its turn in a slot, and since when.
    pub(crate) fn turn(&self, slot: u32, at: Nanos) -> (u64, Nanos) {
        // The turns do not change all at once.
        let start = self.start + self.generation * u64::from(slot) / u64::from(self.slots.max(1));
        let generation = at.saturating_sub(start) / self.generation + u64::from(at >= start);
        (generation, start + generation.saturating_sub(1) * self.generation)
    }

    /// Returns the process that creates a session. Only one does, and once, so that a deleted session does
    /// not come back.
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

/// The orders of a parent to a process of a phase, as the first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PhaseOrders {
    pub(crate) cache: String,
    pub(crate) database: String,
    /// A part of every session key.
    pub(crate) run: u32,
    pub(crate) seed: u64,
    pub(crate) process: u32,
    pub(crate) first_writer: Writer,
    pub(crate) max_cache_age: Nanos,
    pub(crate) cache_timeout: Nanos,
}
