//! Looking at a watched session.

use std::sync::{Arc, Weak};
use std::time::Duration;

use session_core::{BoxFuture, Cache, Persistence, StoredKey};

use super::inner::Inner;
use super::rotations::{Followed, Follows};
use crate::watch::{Look, Seen, SessionEnd, SessionWatch};
use crate::{CachedDb, Error};

impl<C: Cache, P: Persistence> CachedDb<C, P> {
    /// Watches the session under `key`, whose end is told on this node wherever it is made. Looks at the session at least once
    /// in `interval`; [`SessionWatch`] says when it is told sooner. An interval below 50 ms counts as 50 ms.
    ///
    /// Makes no call by itself. A session that has ended already is found out by the first look.
    #[must_use]
    pub fn watch(&self, key: &StoredKey, interval: Duration) -> SessionWatch {
        self.inner.watch(*key, interval)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    pub(crate) fn watch(self: &Arc<Self>, key: StoredKey, interval: Duration) -> SessionWatch {
        let store = Arc::downgrade(self) as Weak<dyn Look>;
        SessionWatch::new(&self.watches, store, key, interval)
    }

    async fn look_at(self: &Arc<Self>, key: StoredKey) -> Result<Seen, Error> {
        self.telemetry.counters.watch_looks.bump();
        // Before the load, so that a change after it is reported.
        let is_told = self.cache.ask_for_report(&key).await;
        match self.load(&key).await {
            Ok(Some(loaded)) => {
                return Ok(Seen::There { until: Some(loaded.record.expires_at()), is_told });
            }
            Ok(None) => {}
            // It is there, and its end is noticed like any other's.
            Err(error) if error.is_row_error() => return Ok(Seen::There { until: None, is_told }),
            Err(error) => return Err(error),
        }
        Ok(match self.follow(None, key, Follows::Watch).await? {
            None => Seen::Ended(SessionEnd::Gone),
            Some(Followed { stored_key, is_renewed: true, .. }) => Seen::Moved(stored_key),
            Some(_) => Seen::Ended(SessionEnd::NewRights),
        })
    }
}

impl<C: Cache, P: Persistence> Look for Inner<C, P> {
    fn look(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<Seen, Error>> {
        let store = Arc::clone(&self);
        Box::pin(self.tasks.run(async move { store.look_at(key).await }))
    }

    fn note_failed_look(&self, key: &StoredKey, error: &Error) {
        if let Some(suppressed) = self.telemetry.log_limits.admit("watch_look_failed", self.runtime.now()) {
            tracing::warn!(target: "session_cached_db", event = "watch_look_failed", session = %self.telemetry.log_id(key),
                %error, suppressed, "a watched session could not be looked at; it is tried again");
        }
    }

    fn closed(&self) -> BoxFuture<()> {
        Box::pin(self.tasks.closed())
    }
}
