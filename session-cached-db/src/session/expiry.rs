use std::time::Duration;

use session_core::{Expiry, Timestamp};

use super::Session;
use crate::store::expiry::{EXPIRY_KEY, expiry_of, set_expiry};

/// When the session ends.
impl Session {
    /// Chooses when this session ends, or with `None` leaves that to the store. Takes effect with the next
    /// [`save`](Self::save).
    ///
    /// An expiry in the past ends the session as soon as it is saved. Another request that was opened before may still
    /// prolong the session by its own [`touch`](Self::touch), according to what it read.
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

    /// What was chosen by [`set_expiry`](Self::set_expiry).
    #[must_use]
    pub fn expiry(&self) -> Option<Expiry> {
        expiry_of(self.data())
    }

    /// When the session ends if it is saved now and then left alone.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at_from(self.store.now())
    }

    /// When the session ends if it is saved at `modification` and then left alone.
    #[must_use]
    pub fn expires_at_from(&self, modification: Timestamp) -> Timestamp {
        let created_at = self.created_at().unwrap_or(modification);
        self.store.settings().expires_at(self.expiry(), created_at, modification)
    }

    /// How long the session lives if it is saved now and then left alone: the cookie's `Max-Age`.
    #[must_use]
    pub fn expiry_age(&self) -> Duration {
        self.expiry_age_from(self.store.now())
    }

    /// How long the session lives if it is saved at `modification` and then left alone.
    #[must_use]
    pub fn expiry_age_from(&self, modification: Timestamp) -> Duration {
        self.expires_at_from(modification).since(modification)
    }

    /// Whether the client is to drop the cookie when the browser closes.
    #[must_use]
    pub fn expires_at_browser_close(&self) -> bool {
        self.expiry()
            .map_or(self.store.settings().expire_at_browser_close, |expiry| expiry == Expiry::BrowserSession)
    }
}
