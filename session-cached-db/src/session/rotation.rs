//! Giving the session another key, and following a session that another request has given one.

use std::sync::{Arc, OnceLock};

use session_core::{MaskedKey, Record, Rotation, SessionKey, StoredKey};

use super::{MAX_TRIES, Session, Stored};
use crate::coherence::Loaded;
use crate::store::job::{Job, Save};
use crate::store::{ConflictPolicy, Followed};
use crate::{Coherence, Error};

/// The reason for which a session gets another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewKey {
    /// Its user may have gained rights. An attacker may have planted the old key, so it must open nothing.
    Rights,
    /// None but the age of the old key, whose clients may follow.
    Renewal,
}

/// A key that a write is about to give to the session.
pub(super) struct Next {
    pub(super) key: SessionKey,
    pub(super) stored_key: StoredKey,
    pub(super) rotation: Option<Box<Rotation>>,
}

impl Next {
    /// Returns `true` if clients with the old key are led to this one.
    pub(super) fn is_revealed(&self) -> bool {
        self.rotation.as_ref().is_some_and(|rotation| rotation.masked_key.is_some())
    }
}

impl Session {
    /// Moves the session to a new key and stores it, in one statement. The old key is dead.
    ///
    /// Call it whenever a user gains rights, so that a key that an attacker planted before is worth nothing (session fixation;
    /// ASVS 5.0 7.2.4). A [login](Self::log_in) does it by itself. A session without a key is created. If this request has given a
    /// [subject](Self::set_subject) to a session that had none, and that has gone in the meantime, a new session is stored, as
    /// by [`log_in`](Self::log_in): a login form was submitted twice.
    ///
    /// # Errors
    ///
    /// The errors of [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// The same as [`save`](Self::save).
    pub async fn cycle_key(&mut self) -> Result<Coherence, Error> {
        let was_revealed = self.is_unsettled_revealed();
        if self.settle().await? && !self.modified && !was_revealed {
            return Ok(Coherence::Coherent);
        }
        self.check_superseded()?;
        let is_login = self.gains_subject();
        match self.change_key(NewKey::Rights).await {
            Err(Error::SessionGone) if is_login => Box::pin(self.begin_anew()).await,
            changed => changed,
        }
    }

    /// Moves the session to a new key and stores it, like [`cycle_key`](Self::cycle_key), for no reason but the age of the old
    /// key: call it now and then, so that a key which was stolen unnoticed is not good for long. Never call it for a change
    /// of rights.
    ///
    /// With a [`rotation_grace`](crate::Builder::rotation_grace), a request that presents the old key within the grace still
    /// gets the session, and the client its new key. Without one, this is the same as `cycle_key`, and a client that loses
    /// the answer loses its session.
    ///
    /// If another request has renewed the key at the same time, this one goes on with that key. A session without a key is
    /// created, unless there is nothing to keep: a request that comes late with the key from before a login, and only renews
    /// it, must get no key that takes the place of the login's.
    ///
    /// # Errors
    ///
    /// The errors of [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// The same as [`save`](Self::save).
    pub async fn renew_key(&mut self) -> Result<Coherence, Error> {
        if self.settle().await? && !self.modified {
            return Ok(Coherence::Coherent);
        }
        self.check_superseded()?;
        if self.is_unsaved_and_empty() {
            return Ok(Coherence::Coherent);
        }
        self.change_key(NewKey::Renewal).await
    }

    pub(super) async fn change_key(&mut self, reason: NewKey) -> Result<Coherence, Error> {
        for _ in 0..MAX_TRIES {
            let Some(stored) = &self.stored else { return self.create_new().await };
            let old = stored.stored_key;
            let changes_subject = self.changes_subject(stored);
            let reason = if changes_subject { NewKey::Rights } else { reason };
            let tried = self.unsettled_move(old, reason);
            let may_have_moved = tried.is_some();
            let (key, stored_key) = tried.map_or_else(|| self.new_key(), Ok)?;
            let next = self.next(stored, key, stored_key, reason);
            let changes = self.changes(stored, Some(&next));
            self.note_unsettled(&next, Some(old));
            match self.store.write(&old, |reply| Job::Save(changes, reply)).await {
                Err(Error::SessionGone) if may_have_moved && self.settle().await? => {}
                // The first try may still take place.
                Err(error)
                    if may_have_moved && !matches!(error, Error::SessionGone | Error::AlreadyExists) =>
                {
                    return Err(error);
                }
                // Another request has moved the session, and this client may know where to.
                Err(Error::SessionGone) if self.is_led().await? => {
                    self.forget_unsettled();
                    if reason == NewKey::Renewal {
                        return self.save_again().await;
                    }
                }
                renamed => {
                    if let Some(coherence) = self.adopt_if_new(next.key, stored_key, renamed)? {
                        return Ok(coherence);
                    }
                }
            }
        }
        Err(Error::AlreadyExists)
    }

    /// Returns the key that the session in `stored` is to get, with the note of it if there is a grace.
    fn next(&self, stored: &Stored, key: SessionKey, stored_key: StoredKey, reason: NewKey) -> Next {
        let grace = self.store.settings().rotation_grace;
        let rotation = grace.map(|grace| {
            let masked_key = match reason {
                NewKey::Rights if !mutant!(RightsRevealed) => None,
                NewKey::Rights | NewKey::Renewal => MaskedKey::mask(&key, &stored_key, &stored.key),
            };
            let rotation = Rotation::new(stored.stored_key, stored_key, self.store.now() + grace);
            Box::new(rotation.with_masked_key(masked_key))
        });
        Next { key, stored_key, rotation }
    }

    /// Returns where another request has moved the session.
    async fn followed(&self) -> Result<Option<Followed>, Error> {
        let Some(stored) = &self.stored else { return Ok(None) };
        Arc::clone(&self.store).follow(stored.key.clone(), stored.stored_key).await
    }

    /// Goes on with the key that another request has given the session. Returns `false` if there is none, or clients of the old
    /// key must not get it.
    async fn is_led(&mut self) -> Result<bool, Error> {
        let Some(Followed { key: Some(key), stored_key, .. }) = self.followed().await? else {
            return Ok(false);
        };
        self.go_on_with(key, stored_key);
        Ok(true)
    }

    /// Takes over a key. The changes of this request stay as they are, on the record as it was loaded: the next write finds
    /// another version, and merges them.
    fn go_on_with(&mut self, key: SessionKey, stored_key: StoredKey) {
        if let Some(stored) = &mut self.stored {
            // The payload can be sealed for the old key. This does not fail: it was decoded when the session was opened.
            let _ = stored.loaded.record.decode(&stored.stored_key, self.store.codec());
            (stored.key, stored.stored_key, stored.loaded.stamp) = (key, stored_key, None);
        }
    }

    /// Saves the changes to the session that another request has moved to another key.
    pub(super) async fn save_moved(&mut self) -> Result<Coherence, Error> {
        let Some(Followed { key, stored_key, .. }) = self.followed().await? else {
            return Err(Error::SessionGone);
        };
        if let Some(key) = key {
            self.go_on_with(key, stored_key);
            return self.save_again().await;
        }
        let Some(stored) = &self.stored else { return Err(Error::SessionGone) };
        // An attacker may have planted the old key. What this request does is no more than it could have done right before the
        // session moved: it replaces nothing that was changed since, and it learns neither the key nor the values.
        let changes =
            Save { seen: None, conflict_policy: ConflictPolicy::Reject, ..self.changes(stored, None) };
        let seen = self.as_seen_here(stored)?;
        let saved = self.store.write(&stored_key, |reply| Job::Save(changes, reply)).await?;
        if let Some(stored) = &mut self.stored {
            (stored.loaded, stored.data) = (seen, OnceLock::new());
        }
        (self.changed, self.subject, self.modified) = (None, None, false);
        Ok(saved.coherence)
    }

    /// Returns the record in `stored` with the changes of this request, and of no other.
    fn as_seen_here(&self, stored: &Stored) -> Result<Loaded, Error> {
        let payload = self.store.codec().encode(&stored.stored_key, self.data());
        let payload = payload.map_err(Error::of_encoding)?;
        let record = Record::clone(&stored.loaded.record).with_payload(payload);
        // For those who know the session by its new key only.
        record
            .decode(&stored.stored_key, self.store.codec())
            .map_err(|error| Error::Unreadable(Arc::new(error)))?;
        Ok(Loaded { record: Arc::new(record), stamp: None })
    }
}
