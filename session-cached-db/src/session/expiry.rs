use std::time::Duration;

use session_core::{Expiry, Timestamp};

use super::Session;
use crate::store::expiry::{EXPIRY_KEY, expiry_of, set_expiry};

/// The session's expiry.
impl Session {
    /// Sets when this session ends. `None` leaves that to the store. Takes effect with the next
    /// [`save`](Self::save).
    ///
    /// An expiry in the past ends the session as soon as it is saved. Another request that opened the session
    /// before that may still prolong it by its own [`touch`](Self::touch), according to what that request has
    /// read.
    pub fn set_expiry(&mut self, expiry: impl Into<Option<Expiry>>) {
        match expiry.into() {
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

    /// Returns `true` if the client is to drop the cookie when the browser closes.
    #[must_use]
    pub fn expires_at_browser_close(&self) -> bool {
        self.expiry()
            .map_or(self.store.settings().expire_at_browser_close, |expiry| expiry == Expiry::BrowserSession)
    }
}
