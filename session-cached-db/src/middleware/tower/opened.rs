use std::time::Duration;

use session_core::{SessionKey, Timestamp};

use crate::Session;

/// A session that a request has opened.
pub(super) struct Opened {
    pub(super) session: Session,
    /// The [`mark`] of the session when it was opened, with the key that the client presented: it may have been an older one.
    before: Mark,
}

/// A session's key and when it was last used: a session whose mark has changed was written.
type Mark = (Option<SessionKey>, Option<Timestamp>);

/// Tells the client what has become of its key.
pub(super) enum KeyChange {
    /// The session was written, or has another key than the client presented. `max_age` is `None` for one that ends with the browser.
    Written { key: SessionKey, max_age: Option<Duration> },
    /// The request has ended its session.
    Ended,
}

impl Opened {
    /// `presented` is the client's key that has opened the session.
    pub(super) fn new(session: Session, presented: Option<SessionKey>) -> Self {
        let before = (presented, session.last_seen_at());
        Self { session, before }
    }

    /// Returns what the response has to tell the client, as far as the session was written by now.
    pub(super) fn key_change(&self) -> Option<KeyChange> {
        let Self { session, before } = self;
        match session.key() {
            // Only if this request has ended the session. A key that opened none is left alone: the client may have got
            // another one since, and another node may know its session.
            None if session.is_unsaved_and_empty() && before.0.is_some() => Some(KeyChange::Ended),
            Some(key) if mark(session) != *before => {
                let max_age = (!session.expires_at_browser_close()).then(|| session.expiry_age());
                Some(KeyChange::Written { key: key.clone(), max_age })
            }
            // Nothing, not even a removal when the session was found to be gone: the client may have got another key since, by
            // a new login.
            _ => None,
        }
    }
}

fn mark(session: &Session) -> Mark {
    (session.key().cloned(), session.last_seen_at())
}
