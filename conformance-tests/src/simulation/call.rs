//! Calls to the cache and the database, and their answers.

use std::task::Waker;
use std::time::Duration;

use session_core::{
    Acquired, Entry, Exchange, Expected, ExpiryWrite, Record, Rotation, SessionTimes, StoredKey, Timestamp,
    Version,
};

use super::task_id::TaskId;

/// A session, as the oracle sees it. No two operations leave the fields alike, so the fields distinguish the
/// versions of a session. The first version has zeros. Where records enter the cache, each is checked to have
/// the version with which its fields were committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Seen(pub(super) [u8; 2]);

impl Seen {
    pub(super) const FIRST: Self = Self([0; 2]);

    pub(super) fn of(record: &Record) -> Self {
        let payload = record.payload();
        // `1{"a":0,"b":0}`
        Self([payload[6] - b'0', payload[12] - b'0'])
    }

    /// Returns `true` if one operation wrote all of it, and did not merge.
    pub(super) fn has_one_writer(self) -> bool {
        self.0[0] == self.0[1]
    }
}

/// A call to the cache or to the database.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Get(usize),
    /// A read of a key by the channel with this number, which watches the key from then on.
    Watch(usize, usize),
    /// A ping on the channel with this number.
    Ping(usize),
    Acquire(usize, Entry, Duration),
    Exchange(usize, Expected, Option<Entry>, Duration),
    Load(usize, Timestamp),
    List(Timestamp),
    Insert(usize, Record),
    Update(usize, Record, Option<Version>, ExpiryWrite, Timestamp),
    /// The key, the expiry, the instant since which the session must be idle, and the present.
    Touch(usize, Timestamp, Timestamp, Timestamp),
    Rename([usize; 2], Record, Option<Version>, ExpiryWrite, Timestamp),
    Delete(usize),
    DeleteAll(Vec<usize>),
    DeleteExpired(Timestamp),
    /// A note of a rotation.
    Note(Rotation),
    /// A read of the notes about a key.
    Notes(usize, Timestamp),
}

impl Effect {
    /// Returns the keys of the sessions that a statement writes, as they are before it.
    pub(super) fn statement_keys(&self) -> &[usize] {
        match self {
            Self::Insert(key, _) | Self::Update(key, ..) | Self::Touch(key, ..) | Self::Delete(key) => {
                std::slice::from_ref(key)
            }
            Self::Rename([old, _], ..) => std::slice::from_ref(old),
            Self::DeleteAll(keys) => keys,
            _ => &[],
        }
    }

    pub(super) fn is_cache(&self) -> bool {
        matches!(self, Self::Get(_) | Self::Acquire(..) | Self::Exchange(..))
    }

    pub(super) fn is_write(&self) -> bool {
        !matches!(
            self,
            Self::Get(_) | Self::Watch(..) | Self::Ping(_) | Self::Load(..) | Self::List(_) | Self::Notes(..)
        )
    }

    /// Returns the number of the channel that the call goes by.
    pub(super) fn channel(&self) -> Option<usize> {
        match self {
            Self::Watch(channel, _) | Self::Ping(channel) => Some(*channel),
            _ => None,
        }
    }

    pub(super) fn is_statement(&self) -> bool {
        self.is_write() && !self.is_cache()
    }
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Found(Option<Entry>),
    Ponged,
    Acquired(Acquired),
    Exchanged(Exchange),
    Loaded(Option<Record>),
    Listed(Vec<(StoredKey, SessionTimes)>),
    Committed(Version),
    Touched(bool),
    Deleted(bool),
    DeletedAll(Vec<StoredKey>),
    DeletedExpired(Vec<StoredKey>),
    Noted,
    Notes(Vec<Rotation>),
    NotFound,
    Conflict,
    AlreadyExists,
    /// The call had no effect, and will have none.
    Refused,
    /// The call may have taken effect, or may do so later.
    Unknown,
}

/// A call that was made and whose answer was not taken yet.
///
/// It belongs to the task that sent it. That task may end or be dropped while the call lives on: several
/// loads can hold the attempt that it is part of. The answer wakes the task that polled it last.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) effect: Effect,
    pub(super) sent_at: Timestamp,
    /// The number of the call among those of its task.
    pub(super) number: u32,
    pub(super) reply: Option<Reply>,
    /// The answer can be taken.
    pub(super) has_arrived: bool,
    pub(super) waker: Waker,
}

impl Call {
    /// Returns `true` if something can still happen to the call.
    pub(super) fn is_open(&self) -> bool {
        !self.has_arrived
    }
}

/// The task that has sent a call, and the number of the call among those of the task.
pub(super) type LateId = (TaskId, u32);

/// A call that no task waits for any more. It may still take effect.
#[derive(Clone, Debug)]
pub(super) struct Late {
    pub(super) task: TaskId,
    pub(super) effect: Effect,
    pub(super) sent_at: Timestamp,
    pub(super) number: u32,
}

impl Late {
    pub(super) const fn id(&self) -> LateId {
        (self.task, self.number)
    }
}
