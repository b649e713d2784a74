//! The operations of a mix.

use std::sync::Arc;

use bytes::Bytes;
use session_cached_db::{CachedDb, Coherence, Error, Session, Written};
use session_core::{
    ExpiryWrite, MaskedKey, Outcome as Certainty, Persistence, PersistenceError, Record, Rotation,
    SessionKey, Subject, Version, bytes,
};

use super::backends::{NodeCache, SimDb};
use super::call::Seen;
use super::settings::{FAR, KEYS, START, SUBJECT, stored_keys};

pub(super) type Store = CachedDb<NodeCache, SimDb>;

/// The version of the session that a run begins with.
pub(super) const FIRST_VERSION: Version = Version::from_u64(1);

macro_rules! operations {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal),* $(,)?) => {
        /// An operation of a client on session A, which is there when a run begins, or on B, which is not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Operation {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Operation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the name that it has in the name of a scenario.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

operations! {
    /// Loads A.
    Load = "load",
    /// Replaces A's data, if A has the version that it had in the beginning.
    Save = "save",
    /// Replaces A's data, whatever version it has.
    Overwrite = "overwrite",
    /// Changes one field of A, which was opened in the beginning, and merges if others have changed A.
    Merge = "merge",
    /// Prolongs A.
    Touch = "touch",
    /// Uses A, which was opened in the beginning: prolongs it, unless it was used within the touch interval.
    Use = "use",
    /// Deletes A.
    Delete = "delete",
    /// Renames A to the key B, and replaces its data.
    Rename = "rename",
    /// Adds B.
    Create = "create",
    /// Ends all sessions of the subject to which A and B belong.
    Revoke = "revoke",
    /// Deletes expired sessions.
    Reap = "reap",
    /// Loads B.
    LoadB = "load-b",
    /// Deletes B.
    DeleteB = "delete-b",
    /// Renews the key of A, which was opened in the beginning, to B, and changes one field of it.
    Renew = "renew",
    /// Gives A the key B by a change of rights, and changes one field of it.
    Cycle = "cycle",
    /// Opens the session of a client that presents A's key.
    Open = "open",
    /// Logs the client of A out, whose session was opened in the beginning.
    LogOut = "log-out",
    /// Deletes A by a statement alone, as another process does that has a cache of its own.
    Elsewhere = "elsewhere",
    /// Opens the session of a client that presents A's key. Once A is renamed, it leads to B, whose key the client gets.
    Follow = "follow",
}

/// The answer of an operation to its caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) number: usize,
    pub(super) outcome: Outcome,
    /// The operation reported that the cache did not answer.
    pub(super) is_degraded: bool,
}

/// The outcome in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Outcome {
    Loaded(Option<Seen>),
    /// The client was led to B, and knows its key.
    Led(Seen),
    /// The session that a client's key has opened.
    Opened(Option<Seen>),
    Ended,
    Wrote(Seen),
    Done,
    /// The session was prolonged, or was used a moment ago.
    Used,
    Removed(bool),
    Revoked(u8),
    Reaped(u8),
    Gone,
    Conflict,
    Exists,
    /// An error that says that the operation has no effect, and will have none.
    Failed,
    /// An error that leaves that open.
    Unknown,
}

impl Operation {
    /// Returns the sessions that it may read or write.
    pub(super) const fn keys(self) -> &'static [usize] {
        match self {
            Self::LoadB | Self::DeleteB | Self::Create => &[1],
            Self::Rename
            | Self::Revoke
            | Self::Reap
            | Self::Renew
            | Self::Cycle
            | Self::Open
            | Self::LogOut
            | Self::Follow => &[0, 1],
            _ => &[0],
        }
    }

    /// Returns `true` if, with a near cache, no node shows what it has replaced once it is acknowledged.
    pub(super) const fn is_final(self) -> bool {
        matches!(
            self,
            Self::Delete
                | Self::DeleteB
                | Self::Revoke
                | Self::Rename
                | Self::Renew
                | Self::Cycle
                | Self::LogOut
        )
    }

    /// Returns `true` if it is a part of the mixes. The others have scenarios of their own.
    #[must_use]
    pub const fn is_in_mixes(self) -> bool {
        !matches!(self, Self::Elsewhere | Self::Follow) && !self.uses_rotations()
    }

    /// Returns `true` if it moves a session, or follows one that has moved, by the notes of rotations.
    #[must_use]
    pub const fn uses_rotations(self) -> bool {
        matches!(self, Self::Renew | Self::Cycle | Self::Open | Self::LogOut)
    }

    /// Returns `true` if it needs a session that was opened in the beginning.
    pub(super) const fn needs_session(self) -> bool {
        matches!(self, Self::Merge | Self::Use | Self::Renew | Self::Cycle | Self::LogOut)
    }

    /// Returns `true` if it replaces the data of a session under its key.
    pub(super) const fn is_save(self) -> bool {
        matches!(self, Self::Save | Self::Overwrite | Self::Merge)
    }

    /// Returns `true` if the instant of its statement decides how its answer is judged.
    pub(super) const fn is_judged_by_its_commit(self) -> bool {
        matches!(self, Self::Touch | Self::Delete | Self::DeleteB | Self::Elsewhere)
    }

    pub(super) const fn is_load(self) -> bool {
        matches!(self, Self::Load | Self::LoadB)
    }

    /// Returns the fields of a session after the operation, if it has this number.
    pub(super) fn fields(self, number: usize, before: [u8; 2]) -> [u8; 2] {
        let mine = u8::try_from(number + 1).expect("few operations");
        match self {
            Self::Merge | Self::Renew | Self::Cycle => {
                let mut fields = before;
                fields[number % 2] = mine;
                fields
            }
            _ => [mine; 2],
        }
    }

    /// Returns `true` if it waits in the write queue of a session, where it may be combined with others of
    /// its process.
    pub(super) const fn combines(self) -> bool {
        matches!(self, Self::Merge)
    }

    pub(super) async fn run(self, number: usize, store: Store, session: Option<Session>) -> Answer {
        let mut coherence = Coherence::Coherent;
        let attempt = self.attempt(number, &store, session, &mut coherence).await;
        let is_degraded = coherence == Coherence::Degraded || matches!(attempt, Err(Error::CacheUnavailable));
        let outcome = match attempt {
            Ok(outcome) => outcome,
            Err(Error::SessionGone) => Outcome::Gone,
            // A save of different keys conflicts with nothing. It may run out of time.
            Err(Error::Conflict) if matches!(self, Self::Merge | Self::Renew | Self::Cycle) => {
                Outcome::Failed
            }
            Err(Error::Conflict) => Outcome::Conflict,
            Err(Error::AlreadyExists) => Outcome::Exists,
            // Some of the sessions may have been ended.
            Err(_) if self == Self::Revoke => Outcome::Unknown,
            Err(error)
                if error.outcome() == Certainty::Unknown
                    && !self.is_load()
                    && !matches!(self, Self::Follow | Self::Open) =>
            {
                Outcome::Unknown
            }
            Err(_) => Outcome::Failed,
        };
        Answer { number, outcome, is_degraded }
    }

    /// Deletes A in the database, and nowhere else.
    pub(super) async fn run_elsewhere(number: usize, db: SimDb) -> Answer {
        let outcome = match db.delete(&stored_keys()[0]).await {
            Ok(was_there) => Outcome::Removed(was_there),
            Err(PersistenceError::Unknown(_)) => Outcome::Unknown,
            Err(_) => Outcome::Failed,
        };
        Answer { number, outcome, is_degraded: false }
    }

    async fn attempt(
        self,
        number: usize,
        store: &Store,
        session: Option<Session>,
        coherence: &mut Coherence,
    ) -> Result<Outcome, Error> {
        // In one function, because it is one choice with an arm for each operation.
        let [a, b] = stored_keys();
        let record = || record(self.fields(number, [0; 2]));
        let mut wrote = |written: Written<Arc<Record>>| {
            *coherence = written.coherence;
            Outcome::Wrote(Seen::of(&written.value))
        };
        Ok(match self {
            Self::Load => Outcome::Loaded(store.load(&a).await?.map(|record| Seen::of(&record))),
            Self::LoadB => Outcome::Loaded(store.load(&b).await?.map(|record| Seen::of(&record))),
            Self::Save => wrote(store.update(&a, record(), Some(FIRST_VERSION), ExpiryWrite::Extend).await?),
            Self::Overwrite => wrote(store.update(&a, record(), None, ExpiryWrite::Extend).await?),
            Self::Merge | Self::Renew | Self::Cycle => {
                let mut session = session.expect("opened in the beginning");
                let field = ["a", "b"][number % 2];
                session.insert(field, number + 1)?;
                *coherence = match self {
                    Self::Renew => session.renew_key().await?,
                    Self::Cycle => session.cycle_key().await?,
                    _ => session.save().await?,
                };
                Outcome::Wrote(shown(&session)?)
            }
            Self::Open => {
                let session = store.open_key(session_key()).await?;
                Outcome::Opened(session.key().map(|_| shown(&session)).transpose()?)
            }
            Self::LogOut => {
                *coherence = session.expect("opened in the beginning").flush().await?;
                Outcome::Ended
            }
            Self::Touch => {
                *coherence = store.touch(&a, START + FAR).await?;
                Outcome::Done
            }
            Self::Use => {
                *coherence = session.expect("opened in the beginning").touch().await?;
                Outcome::Used
            }
            Self::Delete | Self::DeleteB => {
                let deleted = store.revoke(if self == Self::Delete { &a } else { &b }).await?;
                *coherence = deleted.coherence;
                Outcome::Removed(deleted.value)
            }
            Self::Rename => wrote(store.rename(&a, &b, record(), None, ExpiryWrite::Extend).await?),
            Self::Create => wrote(store.create(&b, record()).await?),
            Self::Revoke => {
                let revoked = store.revoke_subject(SUBJECT).await?;
                *coherence = revoked.coherence;
                Outcome::Revoked(small(revoked.value))
            }
            Self::Follow => {
                let session = store.open_key(session_key()).await?;
                let read = |name| session.get::<u8>(name).map(Option::unwrap_or_default);
                let seen = Seen([read("a")?, read("b")?]);
                match session.key() {
                    None => Outcome::Loaded(None),
                    Some(key) if *key == session_key() => Outcome::Loaded(Some(seen)),
                    Some(_) => Outcome::Led(seen),
                }
            }
            Self::Elsewhere => panic!("it uses no store"),
            Self::Reap => Outcome::Reaped(small(store.clear_expired().await?)),
        })
    }
}

/// Returns what a request sees of its session.
fn shown(session: &Session) -> Result<Seen, Error> {
    let read = |name| session.get::<u8>(name).map(Option::unwrap_or_default);
    Ok(Seen([read("a")?, read("b")?]))
}

fn small(n: u64) -> u8 {
    u8::try_from(n).expect("few sessions")
}

/// Returns the note that leads from A to B. It is written before A is renamed, and reveals B's key.
pub(super) fn note_of_rotation() -> Rotation {
    let [a, b] = stored_keys();
    let key = SessionKey::parse(KEYS[1]).expect("a valid key");
    Rotation::new(a, b, START + FAR).with_masked_key(MaskedKey::mask(&key, &b, &session_key()))
}

/// Returns the session key of A.
pub(super) fn session_key() -> SessionKey {
    SessionKey::parse(KEYS[0]).expect("a valid key")
}

pub(super) fn record(fields: [u8; 2]) -> Record {
    let payload = Bytes::from(format!("1{{\"a\":{},\"b\":{}}}", fields[0], fields[1]));
    Record::new(payload, START, START + FAR)
        .with_subject(Some(Subject::parse(SUBJECT).expect("a valid subject")))
}
