use std::time::Duration;

use session_core::{Expiry, Timestamp};

use super::Session;
use crate::store::expiry::{EXPIRY_KEY, expiry_of, set_expiry};

/// The use of a session, as it is stored.
#[cfg(feature = "tower")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    last_seen_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
}

/// The session's expiry.
impl Session {
    /// Sets when this session ends. `None` leaves that to the store. Takes effect with the next
    /// [`save`](Self::save).
    ///
    /// An expiry in the past ends the session as soon as it is saved. Another request that opened the session
    /// before that may still prolong it by its own [`touch`](Self::touch), according to what that request has
    /// read.
    pub fn set_expiry(&mut self, expiry: impl Into<Option<Expiry>>) {
        let expiry = expiry.into();
        // Not if it stays: an answer that comes late, after that of a login, would put the old key in the place of the new one.
        self.has_chosen_expiry |= self.expiry() != expiry;
        match expiry {
            Some(expiry) => {
                set_expiry(self.change(), expiry);
                self.note_change();
            }
            None => {
                self.note_access();
                if self.expiry().is_some() {
                    self.modified |= self.change().remove(EXPIRY_KEY);
                }
            }
        }
    }

    /// Returns the expiry that [`set_expiry`](Self::set_expiry) set, or `None` if the store decides.
    #[must_use]
    pub fn expiry(&self) -> Option<Expiry> {
        expiry_of(self.data())
    }

    /// Returns when the session ends if it is saved now and not used after that.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at_from(self.store.now())
    }

    /// Returns when the session ends if it is saved at `modification` and not used after that.
    #[must_use]
    pub fn expires_at_from(&self, modification: Timestamp) -> Timestamp {
        let created_at = self.created_at().unwrap_or(modification);
        self.store.settings().expires_at(self.expiry(), created_at, modification)
    }

    /// Returns how long the session lives if it is saved now and not used after that: the cookie's `Max-Age`.
    #[must_use]
    pub fn expiry_age(&self) -> Duration {
        self.expiry_age_from(self.store.now())
    }

    /// Returns how long the session lives if it is saved at `modification` and not used after that.
    #[must_use]
    pub fn expiry_age_from(&self, modification: Timestamp) -> Duration {
        self.expires_at_from(modification).since(modification)
    }

    /// Returns `true` if the client is to be told anew how long its key is good, since the session was as `before`: another expiry
    /// was chosen, or this is the first write in a period as long as the touch interval, by the time of use or by the expiry,
    /// which slides with use. Periods begin at the same instants on all nodes.
    ///
    /// An interval longer than a quarter of the session's life would let a cookie end long before its session. For a request that
    /// `is_background`, it is that long: the later of two answers counts, and one that comes later than that of a login would put
    /// the old key in the place of the new one.
    #[cfg(feature = "tower")]
    pub(crate) fn prolongs_key(&self, before: Use, is_background: bool) -> bool {
        let longest = self.expiry_age() / 4;
        let interval = match is_background {
            true => longest,
            false => self.store.settings().touch_interval(self.expiry()).min(longest),
        };
        let interval = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX);
        let period = |instant: Option<Timestamp>| instant?.as_micros().checked_div_euclid(interval);
        let periods = |at: Use| (period(at.last_seen_at), period(at.expires_at));
        let (before, now) = (periods(before), periods(self.use_now()));
        self.has_chosen_expiry || now.0.is_none() || before != now
    }

    /// Returns the last use that is stored.
    #[cfg(feature = "tower")]
    pub(crate) fn use_now(&self) -> Use {
        Use { last_seen_at: self.last_seen_at(), expires_at: self.stored_expires_at() }
    }

    /// Returns `true` if the client is to drop the cookie when the browser closes.
    #[must_use]
    pub fn expires_at_browser_close(&self) -> bool {
        self.expiry()
            .map_or(self.store.settings().expire_at_browser_close, |expiry| expiry == Expiry::BrowserSession)
    }
}
