//! Writes under a new key whose outcome is unknown: the answer was lost, or the caller has dropped its future.

use std::sync::{Arc, OnceLock};

use session_core::{SessionData, SessionKey, StoredKey, Subject};

use super::rotation::{NewKey, Next};
use super::{Session, Stored};
use crate::Error;

/// A key under which the session may be stored.
pub(super) struct Unsettled {
    key: SessionKey,
    stored_key: StoredKey,
    /// The key from which the session was to move. `None` if it was to be stored beside any other.
    old: Option<StoredKey>,
    /// Clients that present the key before are led to this one.
    is_revealed: bool,
    /// The data and the subject that the write has stored at least, if it took place.
    data: SessionData,
    subject: Option<Option<Subject>>,
}

impl Session {
    /// Notes that the session is about to be written under a new key. Until the write is known to have taken place or not,
    /// the key is not forgotten: otherwise the client could be out, and its session stay without a client.
    pub(super) fn note_unsettled(&mut self, next: &Next, old: Option<StoredKey>) {
        // If the same write is tried again, either of the two may take place: what the first one stores is certain to be there.
        if self.unsettled_key() == Some(next.stored_key) {
            return;
        }
        self.abandon_unsettled();
        let (data, subject) = (self.data().clone(), self.subject.clone());
        let (key, stored_key, is_revealed) = (next.key.clone(), next.stored_key, next.is_revealed());
        self.unsettled = Some(Box::new(Unsettled { key, stored_key, old, is_revealed, data, subject }));
    }

    /// Returns the key to which a write with an unknown outcome has moved, or may yet move, the session under `old`. The next
    /// such write tries the same key: only one of the two can find the session under `old`. A key that clients of `old` may
    /// get is none for a session with more rights.
    pub(super) fn unsettled_move(&self, old: StoredKey, reason: NewKey) -> Option<(SessionKey, StoredKey)> {
        let unsettled = self.unsettled.as_ref().filter(|unsettled| unsettled.old == Some(old))?;
        if unsettled.is_revealed && reason == NewKey::Rights {
            return None;
        }
        Some((unsettled.key.clone(), unsettled.stored_key))
    }

    /// Finds out whether a write under a new key took place, if that is unknown. Asks the database, and not the cache. Returns
    /// `true` if it did: the session then is under that key. If it did not, it may still do so later.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub(crate) async fn settle(&mut self) -> Result<bool, Error> {
        let Some(unsettled) = &self.unsettled else { return Ok(false) };
        let Some(loaded) = Arc::clone(&self.store).read(unsettled.stored_key).await? else {
            return Ok(false);
        };
        if unsettled.old.is_some() {
            // With a near cache, another node may show the session under its old key for a while.
            Arc::clone(&self.store).wait_for_all_nodes().await;
        }
        let Some(unsettled) = self.unsettled.take() else { return Ok(false) };
        let Unsettled { key, stored_key, data, subject, .. } = *unsettled;
        let since = (self.modified && *self.data() != data).then(|| self.data().clone());
        let stored = Stored { key, stored_key, loaded, data: OnceLock::new() };
        self.stored = Some(stored);
        self.changed = None;
        if self.subject == subject {
            self.subject = None;
        }
        match since {
            Some(since) => self.changed = Some(since.rebase_since(&data, self.data())),
            None => self.modified = self.subject.is_some(),
        }
        Ok(true)
    }

    /// Returns `true` if a write is unsettled that was to store a new session.
    pub(super) fn may_be_created(&self) -> bool {
        self.unsettled.as_ref().is_some_and(|unsettled| unsettled.old.is_none())
    }

    /// Returns `true` if a write is unsettled under a key that clients of the old one are led to.
    pub(super) fn is_unsettled_revealed(&self) -> bool {
        self.unsettled.as_ref().is_some_and(|unsettled| unsettled.is_revealed)
    }

    /// Forgets the key of a write that can no longer take place.
    pub(super) fn forget_unsettled(&mut self) {
        self.unsettled = None;
    }

    /// Returns the key under which the session may be stored as well.
    pub(super) fn unsettled_key(&self) -> Option<StoredKey> {
        self.unsettled.as_ref().map(|unsettled| unsettled.stored_key)
    }

    /// Gives up a key that no client will ever present. The store ends what may be stored under it.
    pub(super) fn abandon_unsettled(&mut self) {
        if let Some(unsettled) = self.unsettled.take() {
            Arc::clone(&self.store).abandon(unsettled.stored_key);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A key that the client is led to is not lost.
        if !self.is_unsettled_revealed() {
            self.abandon_unsettled();
        }
    }
}
