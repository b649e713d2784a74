//! The writes of one session: the content of each, and the way back to its caller. They wait for their turn in a
//! [queue](super::queue).

use std::sync::Arc;

use session_core::{
    ExpiryWrite, Record, Rotation, SessionData, Stamp, StoredKey, Subject, Timestamp, Version,
};
use tokio::sync::oneshot;

use super::queue::{Behind, Queueable};
use super::settings::ConflictPolicy;
use super::together::Seat;
use crate::coherence::{Loaded, Repair};
use crate::telemetry::Ending;
use crate::{Coherence, Error};

/// The way back to the caller that waits for the result of a write.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A write of one session.
#[derive(Debug)]
pub(crate) enum Job {
    Create(Create, Reply<Saved>),
    Save(Save, Reply<Saved>),
    Update(Update, Reply<Saved>),
    Touch(Touch, Reply<Touched>),
    Delete(Delete, Reply<Written<bool>>),
    /// Settles the key's entry after a write that could not be fenced.
    Repair(Repair),
}

/// A write of a new session.
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) record: Record,
    pub(crate) origin: KeyOrigin,
}

/// The origin of the key of a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyOrigin {
    /// This process has made it at random, so no other writer knows it.
    Random,
    /// The caller has chosen it.
    Chosen,
}

/// A write of a session whose data was changed, against the state that it was read in.
#[derive(Clone, Debug)]
pub(crate) struct Save {
    /// The record as it was loaded.
    pub(crate) base: Arc<Record>,
    /// The stamp that the record had in the cache.
    pub(crate) seen: Option<Stamp>,
    /// The session's data, with the changes.
    pub(crate) data: SessionData,
    /// The new subject, if it was changed; `Some(None)` removes it.
    pub(crate) subject: Option<Option<Subject>>,
    /// The session's new key, if it gets one.
    pub(crate) rename: Option<StoredKey>,
    /// The note of that, for requests that come with the old key. On the heap, because it is rare.
    pub(crate) rotation: Option<Box<Rotation>>,
    /// The choice if another request has changed the same key.
    pub(crate) conflict_policy: ConflictPolicy,
}

/// A save, and the way back to its caller.
pub(crate) type Waiting = (Save, Reply<Saved>);

/// A write of a whole record.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) record: Record,
    pub(crate) expected: Option<Version>,
    pub(crate) expiry: ExpiryWrite,
    /// The session's new key, if it gets one.
    pub(crate) rename: Option<StoredKey>,
}

/// A write that only says that the session is in use.
#[derive(Debug)]
pub(crate) struct Touch {
    pub(crate) seen: Option<Stamp>,
    pub(crate) expires_at: Timestamp,
    /// The touch is skipped if the session was used since then.
    pub(crate) idle_since: Timestamp,
}

/// The result of a touch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touched {
    pub(crate) coherence: Coherence,
    /// The database was asked, so the session was still there.
    pub(crate) is_asked: bool,
}

impl Touched {
    /// The result if a use of the session was noted a moment ago. The session may have ended since.
    pub(super) const SKIPPED: Self = Self { coherence: Coherence::Coherent, is_asked: false };
}

/// The end of a session.
#[derive(Debug)]
pub(crate) struct Delete {
    pub(crate) seen: Option<Stamp>,
    pub(crate) ending: Ending,
    /// The place in a statement that ends other sessions, too.
    pub(crate) seat: Option<Seat>,
}

/// The result of a write.
#[derive(Clone, Debug)]
pub struct Written<T> {
    /// The value that the write has written or found.
    pub value: T,
    /// The trust that caches deserve after it.
    pub coherence: Coherence,
}

/// A session in the state after a write.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub(crate) key: StoredKey,
    pub(crate) loaded: Loaded,
    pub(crate) coherence: Coherence,
}

impl From<Saved> for Written<Arc<Record>> {
    fn from(saved: Saved) -> Self {
        Self { value: saved.loaded.record, coherence: saved.coherence }
    }
}

/// The session as the task of a queue has written it last.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    /// The record as it was last committed.
    pub(crate) record: Option<Arc<Record>>,
    /// The stamp that the record has in the cache.
    pub(crate) stamp: Option<Stamp>,
}

impl Latest {
    /// Forgets the session: another process may have written it, or the outcome is unknown.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Remembers what a write has just committed.
    pub(crate) fn remember(&mut self, loaded: &Loaded) {
        *self = Self { record: Some(Arc::clone(&loaded.record)), stamp: loaded.stamp };
    }
}

impl Save {
    /// Returns `true` if another request has given the session to `theirs` since it was loaded, and this save gives it to
    /// a different subject.
    pub(super) fn overlaps_subject(&self, theirs: Option<&Subject>) -> bool {
        let is_other = |mine: &Option<Subject>| theirs != self.base.subject() && theirs != mine.as_ref();
        self.subject.as_ref().is_some_and(is_other)
    }

    #[cfg(feature = "__simulation")]
    fn digest(&self) -> u64 {
        use crate::simulation::digest_of;
        let data: Vec<_> = self.data.iter().collect();
        let rename = self.rename.map(|key| key.as_str().to_owned());
        digest_of((data, self.base.version().as_u64(), self.seen, self.subject.is_some(), rename))
    }
}

impl Job {
    /// Returns the name of the operation in traces. A repair has none.
    pub(super) const fn name(&self) -> Option<&'static str> {
        match self {
            Self::Create(..) => Some("create"),
            Self::Save(Save { rename: None, .. }, _) | Self::Update(Update { rename: None, .. }, _) => {
                Some("save")
            }
            Self::Save(..) | Self::Update(..) => Some("rename"),
            Self::Touch(..) => Some("touch"),
            Self::Delete(..) => Some("delete"),
            Self::Repair(_) => None,
        }
    }

    /// Returns the subject to which this job gives the session, unless the session had it before. An update does not count:
    /// its record is of the application's own making.
    pub(super) fn new_subject(&self) -> Option<&Subject> {
        match self {
            Self::Create(create, _) => create.record.subject(),
            Self::Save(save, _) => {
                let subject = save.subject.as_ref()?.as_ref();
                subject.filter(|_| subject != save.base.subject())
            }
            _ => None,
        }
    }

    pub(super) fn into_save(self) -> Option<Waiting> {
        match self {
            Self::Save(save, reply) => Some((save, reply)),
            _ => None,
        }
    }

    /// Puts `reply` in the place of the way back to the caller, and returns that one, if the job saves a session.
    pub(super) fn redirect(&mut self, reply: Reply<Saved>) -> Option<Reply<Saved>> {
        match self {
            Self::Create(_, caller) | Self::Save(_, caller) | Self::Update(_, caller) => {
                Some(std::mem::replace(caller, reply))
            }
            _ => None,
        }
    }
}

impl Queueable for Job {
    fn refuse(self, error: Error) {
        // A caller that has dropped its future needs no answer.
        match self {
            Self::Create(_, reply) | Self::Save(_, reply) | Self::Update(_, reply) => {
                drop(reply.send(Err(error)));
            }
            Self::Touch(_, reply) => drop(reply.send(Err(error))),
            Self::Delete(_, reply) => drop(reply.send(Err(error))),
            Self::Repair(_) => {}
        }
    }

    fn may_be_late(&self) -> bool {
        matches!(self, Self::Repair(_))
    }

    /// Deletes get more room, so that a session that is written to all the time can still be ended.
    fn room(&self, capacity: usize) -> usize {
        match self {
            Self::Delete(..) | Self::Repair(_) => capacity.saturating_mul(2),
            _ => capacity,
        }
    }

    /// Saves that wait together become one statement. Touches between them can wait: a save is a use of the session, too.
    fn behind(&self, first: &Self) -> Behind {
        match (first, self) {
            (Self::Save(first, _), Self::Save(save, _)) if first.rename.or(save.rename).is_none() => {
                Behind::Joins
            }
            (Self::Save(first, _), Self::Touch(..)) if first.rename.is_none() => Behind::Waits,
            _ => Behind::Ends,
        }
    }

    #[cfg(feature = "__simulation")]
    fn digest(&self) -> u64 {
        use crate::simulation::{digest_of, digest_record};
        match self {
            Self::Save(save, _) => save.digest(),
            Self::Update(update, _) => {
                let Update { record, expected, expiry, rename } = update;
                let rename = rename.map(|key| key.as_str().to_owned());
                let expected = expected.map(Version::as_u64);
                digest_of((1, digest_record(record), expected, *expiry as u8, rename))
            }
            Self::Touch(touch, _) => {
                digest_of((2, touch.seen, touch.expires_at.as_micros(), touch.idle_since.as_micros()))
            }
            Self::Delete(delete, _) => digest_of((3, delete.seen)),
            Self::Repair(repair) => digest_of((4, repair.digest())),
            Self::Create(create, _) => digest_of((5, digest_record(&create.record))),
        }
    }
}
