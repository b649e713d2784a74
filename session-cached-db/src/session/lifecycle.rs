use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use session_core::{Outcome, Record, SessionKey, StoredKey, Subject};

use super::rotation::{NewKey, Next};
use super::{Session, Stored};
use crate::coherence::Loaded;
use crate::store::expiry::expiry_of;
use crate::store::job::{Create, Delete, Job, KeyOrigin, Save, Saved, Touch, Touched, Written};
use crate::store::{Follows, Logout};
use crate::telemetry::Ending;
use crate::{Coherence, Error};

/// Maximum number of tries with another key: a random key that exists already is all but impossible.
pub(crate) const MAX_TRIES: u32 = 8;

/// Operations that reach the database. Each write runs in a task of its own: a caller that drops its future
/// does not learn the result, but nothing is left half done.
impl Session {
    /// Stores the session. A session without a key gets one; otherwise the changes are applied to whatever
    /// the stored session has become. Saving counts as use, so a sliding expiry starts anew.
    ///
    /// A session whose subject has changed gets another key in the same statement, as by [`cycle_key`](Self::cycle_key): a key
    /// that an attacker has planted before a login is worth nothing after it.
    ///
    /// If another request has given the session another key in the meantime, the changes follow it within the
    /// [grace](crate::Builder::rotation_grace).
    ///
    /// # Errors
    ///
    /// - [`Error::SessionGone`] when the session was ended in the meantime, or has got another key and cannot be followed. Within
    ///   the [grace](crate::Builder::rotation_grace), also for a new session without a subject whose client has presented the
    ///   key from before a login: its key would take the place of the login's.
    /// - [`Error::TooLarge`] or [`Error::TooManyKeys`] when it exceeds a limit of the store.
    /// - [`Error::Conflict`] when another request has changed the same key, under
    ///   [`ConflictPolicy::Reject`](crate::ConflictPolicy::Reject), or when other writers kept changing the
    ///   session.
    /// - An [error of every write](crate::CachedDb#errors-of-every-write).
    ///
    /// After an error, the session is as it was before the call and can be saved again. If it is unknown whether it was stored
    /// under a new key, the next call finds out, and goes on with that key.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the write. The next call finds out about a new key. If the session is dropped as well,
    /// what was stored under a key that no client knows is ended.
    pub async fn save(&mut self) -> Result<Coherence, Error> {
        let is_settled = self.settle().await?;
        self.check_superseded()?;
        match &self.stored {
            Some(_) if is_settled && !self.modified => Ok(Coherence::Coherent),
            None => self.create_new().await,
            Some(stored) if self.changes_subject(stored) => self.change_key(NewKey::Rights).await,
            Some(stored) => {
                let (key, stored_key) = (stored.key.clone(), stored.stored_key);
                let changes = self.changes(stored, None);
                match self.store.write(&stored_key, |reply| Job::Save(changes, reply)).await {
                    Ok(saved) => Ok(self.adopt(key, stored_key, saved)),
                    // It has moved to the key of a write that was on the way.
                    Err(Error::SessionGone) if self.settle().await? => self.save_again().await,
                    Err(Error::SessionGone) => Box::pin(self.save_moved()).await,
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Stores the session as [`save`](Self::save) does, and returns only when no node shows it as it was before. That takes
    /// the freshness bound of a near cache. Other caches show nothing old after any save.
    ///
    /// To make every save of a store behave so, see [`Builder::strict`](crate::Builder::strict).
    ///
    /// # Errors
    ///
    /// The errors of [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// That of [`save`](Self::save).
    pub async fn save_strict(&mut self) -> Result<Coherence, Error> {
        let coherence = self.save().await?;
        if coherence == Coherence::Coherent {
            Arc::clone(&self.store).wait_for_all_nodes().await;
        }
        Ok(coherence)
    }

    /// Saves the session from within a save. The type of the future is erased, because it would contain itself.
    pub(super) fn save_again(&mut self) -> BoxFuture<'_, Result<Coherence, Error>> {
        Box::pin(self.save())
    }

    /// Stores the session under a new key, as a session of its own. If it had a key, the session that is
    /// stored under that key stays. To change a session's key, call [`cycle_key`](Self::cycle_key).
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] or [`Error::TooManyKeys`] when the session exceeds a limit of the store, or an
    /// [error of every write](crate::CachedDb#errors-of-every-write).
    ///
    /// # Cancel safety
    ///
    /// The same as [`save`](Self::save).
    pub async fn create(&mut self) -> Result<Coherence, Error> {
        let may_be_created = self.may_be_created();
        if self.settle().await? && may_be_created && !self.modified {
            return Ok(Coherence::Coherent);
        }
        self.create_new().await
    }

    pub(super) async fn create_new(&mut self) -> Result<Coherence, Error> {
        let subject = self.subject().map(Subject::parse).transpose()?;
        for _ in 0..MAX_TRIES {
            let (key, stored_key) = self.new_key()?;
            let record = self.store.new_record(&stored_key, self.data(), subject.clone())?;
            let next = Next { key, stored_key, rotation: None };
            self.note_unsettled(&next, None);
            let create = Create { record, origin: KeyOrigin::Random };
            let created = self.store.write(&stored_key, |reply| Job::Create(create, reply)).await;
            if let Some(coherence) = self.adopt_if_new(next.key, stored_key, created)? {
                return Ok(coherence);
            }
        }
        Err(Error::AlreadyExists)
    }

    /// Records that the session is in use, so that a sliding expiry starts anew. Writes to the database at
    /// most once per [`touch_interval`](crate::Builder::touch_interval), however many requests and nodes use
    /// the session. Does nothing for a session without a key.
    ///
    /// # Errors
    ///
    /// [`Error::SessionGone`] when the session was ended in the meantime, or an [error of every
    /// write](crate::CachedDb#errors-of-every-write).
    pub async fn touch(&mut self) -> Result<Coherence, Error> {
        self.settle().await?;
        let now = self.store.now();
        let settings = self.store.settings();
        let Some(stored) = self.stored.as_ref() else { return Ok(Coherence::Coherent) };
        let record = &stored.loaded.record;
        // The stored data decides, not the changes since: those may never be saved.
        let data = record.data(&stored.stored_key, self.store.codec()).unwrap_or_default();
        let expiry = expiry_of(&data);
        let interval = settings.touch_interval(expiry);
        if now.since(record.last_seen_at()) < interval {
            return Ok(Coherence::Coherent);
        }
        let expires_at = settings.expires_at(expiry, record.created_at(), now).max(record.expires_at());
        let touched = Record::clone(record).with_expires_at(expires_at).with_last_seen_at(now);
        let (key, seen) = (stored.stored_key, stored.loaded.stamp);
        let touch = Touch { seen, expires_at, idle_since: now - interval };
        let Touched { coherence, is_asked } =
            self.store.write(&key, |reply| Job::Touch(touch, reply)).await?;
        // Otherwise the session may have ended or moved, and the client may have got another key: this request has nothing to
        // tell it.
        if is_asked && let Some(stored) = &mut self.stored {
            stored.loaded = Loaded { record: Arc::new(touched), stamp: None };
        }
        Ok(coherence)
    }

    /// Returns `true` if the session is still stored.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database does not answer.
    pub async fn exists(&self) -> Result<bool, Error> {
        if let Some(key) = self.unsettled_key()
            && Arc::clone(&self.store).read(key).await?.is_some()
        {
            return Ok(true);
        }
        match self.stored_key() {
            Some(key) => Arc::clone(&self.store).exists(*key).await,
            None => Ok(false),
        }
    }

    /// Ends the session in the database and in the cache. Its values stay in memory, but can never be saved
    /// again. To log a user out, call [`log_out`](Self::log_out). Does nothing for a session without a key. If another request
    /// has given the session another key, it is followed within the [grace](crate::Builder::rotation_grace).
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when other requests kept giving the session other keys, or an [error of every
    /// write](crate::CachedDb#errors-of-every-write).
    ///
    /// # Cancel safety
    ///
    /// Goes on to its end if the future is dropped; [`close`](crate::CachedDb::close) waits for it.
    pub async fn delete(&self) -> Result<Coherence, Error> {
        Ok(self.end_stored().await?.coherence)
    }

    /// Ends the session. Returns `true` if there was one.
    pub(super) async fn end_stored(&self) -> Result<Written<bool>, Error> {
        let unsettled = self.unsettled_key();
        let mut logout = Logout { unsettled, ..Logout::default() };
        if let Some(Stored { key, stored_key, loaded, .. }) = &self.stored {
            if unsettled.is_none() && self.store.settings().rotation_grace.is_none() {
                // It can be nowhere else, so this is one write.
                let delete = Delete { seen: loaded.stamp, ending: Ending::Destroyed, seat: None };
                return self.store.write(stored_key, |reply| Job::Delete(delete, reply)).await;
            }
            logout.keys.push((*stored_key, loaded.stamp));
            logout.moved_from = Some((key.clone(), *stored_key, Follows::Write));
        } else if unsettled.is_none() {
            return Ok(Written::NONE);
        }
        Arc::clone(&self.store).log_out(logout).await
    }

    /// Ends the session everywhere, for good, and empties this value, which is then a new session without a
    /// key. The same as [`log_out`](Self::log_out), under the name that it has in Django.
    ///
    /// # Errors
    ///
    /// The errors of [`delete`](Self::delete). The session is then as it was before the call.
    ///
    /// # Cancel safety
    ///
    /// The same as [`delete`](Self::delete).
    pub async fn flush(&mut self) -> Result<Coherence, Error> {
        let Written { value, coherence } = self.end_stored().await?;
        self.has_ended |= value;
        self.abandon_unsettled();
        if let Some(stored) = self.stored.take() {
            self.flushed = Some(stored.key);
        }
        self.changed = None;
        self.subject = None;
        self.note_change();
        Ok(coherence)
    }

    pub(super) fn new_key(&self) -> Result<(SessionKey, StoredKey), Error> {
        #[cfg(not(feature = "__simulation"))]
        let key = SessionKey::generate()?;
        #[cfg(feature = "__simulation")]
        let key = crate::simulation::new_key().map_or_else(SessionKey::generate, Ok)?;
        // Does not fail: the builder has checked that the store takes the keys that are generated.
        let stored_key = self.store.settings().stored_key(&key).map_err(|_| Error::AlreadyExists)?;
        Ok((key, stored_key))
    }

    /// Returns the changes to the session in `stored`, which gets the key `next`, if that is some.
    pub(super) fn changes(&self, stored: &Stored, next: Option<&Next>) -> Save {
        Save {
            base: Arc::clone(&stored.loaded.record),
            seen: stored.loaded.stamp,
            data: self.data().clone(),
            subject: self.subject.clone(),
            rename: next.map(|next| next.stored_key),
            rotation: next.and_then(|next| next.rotation.clone()),
            conflict_policy: self.store.settings().conflict_policy,
        }
    }

    /// Takes over the result of a write under a new key. Returns `None` if the key exists already, so that
    /// the caller tries another one.
    pub(super) fn adopt_if_new(
        &mut self,
        key: SessionKey,
        stored_key: StoredKey,
        written: Result<Saved, Error>,
    ) -> Result<Option<Coherence>, Error> {
        if written.as_ref().is_err_and(|error| error.outcome() == Outcome::NotApplied) {
            self.forget_unsettled();
        }
        match written {
            Ok(saved) => Ok(Some(self.adopt(key, stored_key, saved))),
            Err(Error::AlreadyExists) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns `true` if saving the session gives it to another subject, or to none, than it has in `stored`.
    pub(super) fn changes_subject(&self, stored: &Stored) -> bool {
        self.subject.as_ref().is_some_and(|subject| subject.as_ref() != stored.loaded.record.subject())
    }

    /// Returns `true` if this request logs a visitor in: it has given a subject to a session that is stored with none.
    pub(super) fn gains_subject(&self) -> bool {
        let had_none = self.stored.as_ref().is_some_and(|stored| stored.loaded.record.subject().is_none());
        had_none && self.subject().is_some()
    }

    /// Takes over the result of a write.
    fn adopt(&mut self, key: SessionKey, stored_key: StoredKey, saved: Saved) -> Coherence {
        self.forget_unsettled();
        self.changed = None;
        self.stored = Some(Stored { key, stored_key, loaded: saved.loaded, data: OnceLock::new() });
        self.subject = None;
        self.modified = false;
        saved.coherence
    }
}
