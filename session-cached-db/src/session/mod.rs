//! One client's session.

mod backend;
mod expiry;
mod fields;
mod finite;
mod lifecycle;
mod login;
mod map;
mod open;
mod rotation;
mod typed;
mod unsettled;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use session_core::{SessionData, SessionKey, StoredKey, Subject, Timestamp};

pub(crate) use self::backend::SessionBackend;
#[cfg(feature = "tower")]
pub(crate) use self::expiry::Use;
pub(crate) use self::lifecycle::MAX_TRIES;
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-0_14"))]
pub(crate) use self::map::invalid_value;
use self::unsettled::Unsettled;
use crate::coherence::Loaded;
use crate::{Error, SessionWatch};

/// One client's session: a map from strings to anything that serde can write as JSON, with its key, its
/// expiry and its subject.
///
/// [`CachedDb::open`](crate::CachedDb::open) returns one. Reading and changing it happens in memory; nothing
/// is stored before [`save`](Self::save). A save applies the changed keys, and only those, to whatever the
/// session has become in the meantime, so requests that run at the same time do not undo each other.
///
/// A session that was deleted or has expired is never written again: writing it fails with
/// [`Error::SessionGone`].
///
/// `Debug` shows neither its key nor its contents.
pub struct Session {
    store: Arc<dyn SessionBackend>,
    stored: Option<Stored>,
    /// The data with the changes, from the first change on. Until then, the stored data is read.
    changed: Option<SessionData>,
    /// The new subject, if it was changed. `Some(None)` removes it.
    subject: Option<Option<Subject>>,
    /// The key of a write under a new key whose outcome is unknown. On the heap, because it is rare.
    unsettled: Option<Box<Unsettled>>,
    accessed: AtomicBool,
    modified: bool,
    /// Another expiry was set than the session had.
    has_chosen_expiry: bool,
    /// A session was ended by this value.
    has_ended: bool,
    /// The key of the session that this value was to end, whether that had ended before or not.
    flushed: Option<SessionKey>,
    /// The client's key was that of a session which has got another one by a change of rights a moment ago.
    is_superseded: bool,
}

/// The session as it is in the database.
struct Stored {
    key: SessionKey,
    stored_key: StoredKey,
    loaded: Loaded,
    /// The record's data, shared with other readers, from the first access on.
    data: OnceLock<SessionData>,
}

impl Session {
    pub(crate) fn new(store: Arc<dyn SessionBackend>) -> Self {
        Self::with(store, None)
    }

    /// Returns a new session for a client whose key has been superseded by a change of rights: the answer with the new key is
    /// probably on its way to the client, and the key of another session would take its place.
    pub(crate) fn superseded(store: Arc<dyn SessionBackend>) -> Self {
        let mut session = Self::with(store, None);
        session.is_superseded = true;
        session
    }

    #[inline]
    pub(crate) fn stored(
        store: Arc<dyn SessionBackend>,
        key: SessionKey,
        stored_key: StoredKey,
        loaded: Loaded,
    ) -> Self {
        Self::with(store, Some(Stored { key, stored_key, loaded, data: OnceLock::new() }))
    }

    #[inline]
    fn with(store: Arc<dyn SessionBackend>, stored: Option<Stored>) -> Self {
        Self {
            store,
            stored,
            changed: None,
            subject: None,
            unsettled: None,
            accessed: AtomicBool::new(false),
            modified: false,
            has_chosen_expiry: false,
            has_ended: false,
            flushed: None,
            is_superseded: false,
        }
    }

    #[cfg(feature = "tower")]
    pub(crate) const fn is_superseded(&self) -> bool {
        self.is_superseded
    }

    /// Fails if saving this would make the client of a user who has just logged in a stranger.
    pub(super) fn check_superseded(&self) -> Result<(), Error> {
        let is_stranger = self.stored.is_none() && self.subject().is_none();
        if self.is_superseded && is_stranger { Err(Error::SessionGone) } else { Ok(()) }
    }

    /// Returns the key that the client is to present next time. `None` until the session is first saved, and
    /// after a [`flush`](Self::flush).
    #[must_use]
    pub fn key(&self) -> Option<&SessionKey> {
        self.stored.as_ref().map(|stored| &stored.key)
    }

    /// Returns the key under which the session is stored, as lists of sessions show it. `None` until the
    /// session is first saved, and after a [`flush`](Self::flush).
    #[must_use]
    pub fn stored_key(&self) -> Option<&StoredKey> {
        self.stored.as_ref().map(|stored| &stored.stored_key)
    }

    /// Watches the session, for what outlives this request and must not outlive the session: its end is told on this node
    /// wherever it is made. Looks at it at least once in `interval`; [`SessionWatch`] says when it is told sooner. An interval
    /// below 50 ms counts as 50 ms. Returns `None` until the session is first saved, and after a [`flush`](Self::flush).
    ///
    /// Makes no call by itself.
    #[must_use]
    pub fn watch(&self, interval: Duration) -> Option<SessionWatch> {
        let stored = self.stored.as_ref()?;
        Some(Arc::clone(&self.store).watch(stored.stored_key, stored.key.clone(), interval))
    }

    /// Returns `true` if a value was read or changed.
    #[must_use]
    pub fn accessed(&self) -> bool {
        self.accessed.load(Ordering::Relaxed)
    }

    /// Returns `true` if the session was changed since it was opened or last saved.
    #[must_use]
    pub const fn modified(&self) -> bool {
        self.modified
    }

    /// Returns `true` if there is nothing to keep: the session has no key, no values and no subject. Such a
    /// session gets no row and no cookie. Calling this does not count as an access.
    #[must_use]
    pub fn is_unsaved_and_empty(&self) -> bool {
        self.stored.is_none() && self.subject().is_none() && self.visible().next().is_none()
    }

    /// Returns `true` if this value has ended the session: another request had not.
    #[cfg(feature = "tower")]
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns the key of the session that this value was to end, whether that had ended before or not.
    #[cfg(feature = "tower")]
    pub(crate) fn flushed(&self) -> Option<&SessionKey> {
        self.flushed.as_ref()
    }

    /// Returns `true` if the session is stored, without a subject. Changes since then do not count.
    #[cfg(feature = "tower")]
    pub(crate) fn is_stored_as_anonymous(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.loaded.record.subject().is_none())
    }

    /// Returns when the session began. `None` until it is first saved.
    #[must_use]
    pub fn created_at(&self) -> Option<Timestamp> {
        self.stored.as_ref().map(|stored| stored.loaded.record.created_at())
    }

    /// Returns when the session ends if it is not used any more, as it is stored now. `None` until it is first
    /// saved. Unlike [`expires_at`](Self::expires_at), this does not count the present request as use.
    #[must_use]
    pub fn stored_expires_at(&self) -> Option<Timestamp> {
        self.stored.as_ref().map(|stored| stored.loaded.record.expires_at())
    }

    /// Returns when the session was last used, as precisely as
    /// [`touch_interval`](crate::Builder::touch_interval) allows. `None` until it is first saved.
    #[must_use]
    pub fn last_seen_at(&self) -> Option<Timestamp> {
        self.stored.as_ref().map(|stored| stored.loaded.record.last_seen_at())
    }

    /// Returns the session's subject: the application's own id of the user to whom it belongs.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        let subject = match &self.subject {
            Some(changed) => changed.as_ref(),
            None => self.stored.as_ref().and_then(|stored| stored.loaded.record.subject()),
        };
        subject.map(Subject::as_str)
    }

    /// Sets the session's subject. Takes effect with the next [`save`](Self::save), which gives a stored session another key
    /// as well. To log a user in, call [`log_in`](Self::log_in).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSubject`] unless the subject has 1 to 255 bytes and no NUL character.
    pub fn set_subject(&mut self, subject: &str) -> Result<(), Error> {
        self.subject = Some(Some(Subject::parse(subject)?));
        self.note_change();
        Ok(())
    }

    /// Removes the session's subject. Takes effect with the next [`save`](Self::save), which gives the session another key as
    /// well. To log a user out, call [`log_out`](Self::log_out).
    pub fn clear_subject(&mut self) {
        self.subject = Some(None);
        self.note_change();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("has_key", &self.stored.is_some())
            .field("data", self.data())
            .field("accessed", &self.accessed())
            .field("modified", &self.modified)
            .finish_non_exhaustive()
    }
}
