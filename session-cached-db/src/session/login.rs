use session_core::{Outcome, SessionData, Subject};

use super::Session;
use crate::{Coherence, Error};

/// Logging in and out.
impl Session {
    /// Logs in the user whom the application knows as `subject`: gives the session to that subject under a new key, and stores
    /// it, in one statement. The old key opens nothing any more. Call it once the user has been authenticated.
    ///
    /// # Behavior
    ///
    /// - What the visitor has stored before the login stays: a cart, for instance.
    /// - A session that is stored for another subject is ended instead, and a new one is stored. It holds the changes of this
    ///   request and nothing else: nothing of one user passes to another. Django's `login()` flushes such a session, too.
    /// - If the session has ended in the meantime, or another request of the same client has logged in first (a form that was
    ///   submitted twice), a new session is stored for `subject`. It holds the changes of this request and nothing else: what
    ///   the ended session held does not come back.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidSubject`] unless the subject has 1 to 255 bytes and no NUL character.
    /// - The errors of [`save`](Self::save), except [`Error::SessionGone`].
    ///
    /// After an error, the session has the subject that it had before, unless the [outcome](Error::outcome) is unknown. The
    /// session of another subject may have ended.
    ///
    /// # Cancel safety
    ///
    /// The same as [`save`](Self::save).
    pub async fn log_in(&mut self, subject: &str) -> Result<Coherence, Error> {
        let subject = Subject::parse(subject)?;
        let before = (self.subject.clone(), self.modified);
        let stored_for = self.stored.as_ref().and_then(|stored| stored.loaded.record.subject());
        let is_of_another = stored_for.is_some_and(|stored_for| *stored_for != subject);
        // Before this has the new subject: should the login end here, nothing is written for that one.
        let ended = if is_of_another { self.end_of_another().await? } else { Coherence::Coherent };
        self.subject = Some(Some(subject));
        self.note_change();
        let logged_in =
            if is_of_another { self.begin_anew().await } else { self.cycle_key_or_begin_anew().await };
        let logged_in = logged_in.inspect_err(|_| (self.subject, self.modified) = before);
        Ok(ended.and(logged_in?))
    }

    /// Logs out: ends the session everywhere, for good, and empties this value, which is then a new session without a key.
    ///
    /// # Errors
    ///
    /// An [error of every write](crate::CachedDb#errors-of-every-write). The session is then as it was before the call.
    pub async fn log_out(&mut self) -> Result<Coherence, Error> {
        self.flush().await
    }

    /// Gives the session a new key for a login. If it has gone, stores a new one.
    pub(crate) async fn cycle_key_or_begin_anew(&mut self) -> Result<Coherence, Error> {
        match self.cycle_key().await {
            Err(Error::SessionGone) => self.begin_anew().await,
            result => result,
        }
    }

    /// Ends the session of another subject.
    async fn end_of_another(&mut self) -> Result<Coherence, Error> {
        let ended = self.end_stored().await?;
        self.has_ended |= ended.value;
        self.abandon_unsettled();
        Ok(ended.coherence)
    }

    /// Stores a new session with the subject and the changes of this one, whose session has gone.
    pub(super) async fn begin_anew(&mut self) -> Result<Coherence, Error> {
        let gone = self.stored.take();
        let changed = self.changed.take();
        self.changed = changed.as_ref().map(|changed| changed.rebase(&SessionData::new()));
        let created = self.create_new().await;
        // If the new session may be stored, what the one before held must not be taken for a change of it.
        if created.as_ref().is_err_and(|error| error.outcome() == Outcome::NotApplied) {
            (self.stored, self.changed) = (gone, changed);
        }
        created
    }
}
