use std::time::Duration;

use session_core::SessionKey;

use crate::Session;
use crate::session::Use;

/// A session that a request has opened.
pub(super) struct Opened {
    pub(super) session: Session,
    /// The key that the client presented. It may be an older one.
    presented: Option<SessionKey>,
    /// The last use of the session before this request.
    used_before: Use,
    is_background: bool,
    /// The session had a subject when it was opened.
    had_subject: bool,
}

/// The effects of a request on its session, as far as they are stored.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) key_change: Option<KeyChange>,
    /// The request has ended its session, or taken the subject away.
    pub(super) is_logout: bool,
}

/// Tells the client what has become of its key.
pub(super) enum KeyChange {
    /// The session has another key than the client presented, or the client may keep its key for longer. `max_age` is `None` for
    /// one that ends with the browser.
    Written { key: SessionKey, max_age: Option<Duration> },
    /// The request has ended its session.
    Ended,
}

impl Opened {
    /// `presented` is the client's key that has opened the session.
    pub(super) fn new(session: Session, presented: Option<SessionKey>, is_background: bool) -> Self {
        let (used_before, had_subject) = (session.use_now(), session.subject().is_some());
        Self { session, presented, used_before, is_background, had_subject }
    }

    /// Returns what the request has done to the session by now.
    pub(super) fn effects(&self) -> Effects {
        let is_logout =
            self.session.flushed().is_some() || self.had_subject && self.session.is_stored_as_anonymous();
        Effects { key_change: self.key_change(), is_logout }
    }

    /// Returns what the response has to tell the client, as far as the session was written by now.
    fn key_change(&self) -> Option<KeyChange> {
        let Self { session, presented, .. } = self;
        match session.key() {
            // Only if this request has ended the session. A key that opened none is left alone, and so is one whose session was
            // gone when it was to be ended: the client may have got another one since, and another node may know its session.
            None if presented.is_some() && session.has_ended() => Some(KeyChange::Ended),
            // Not at each save: an answer that comes late, after that of a login, would put the old key in the place of the
            // new one.
            Some(key) if presented.as_ref() != Some(key) || self.prolongs_key() => {
                let max_age = (!session.expires_at_browser_close()).then(|| session.expiry_age());
                Some(KeyChange::Written { key: key.clone(), max_age })
            }
            // Nothing, not even a removal when the session was found to be gone: the client may have got another key since, by
            // a new login.
            _ => None,
        }
    }

    fn prolongs_key(&self) -> bool {
        let Self { session, used_before, is_background, .. } = self;
        session.use_now() != *used_before && session.prolongs_key(*used_before, *is_background)
    }
}
