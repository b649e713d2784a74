//! Looking at a watched session.

use std::sync::{Arc, Weak};
use std::time::Duration;

use session_core::{BoxFuture, Cache, Persistence, SessionKey, StoredKey};

use super::inner::Inner;
use super::rotations::{Followed, Follows};
use crate::watch::{Look, Seen, SessionEnd, SessionWatch};
use crate::{CachedDb, Error};

impl<C: Cache, P: Persistence> CachedDb<C, P> {
    /// Returns a watch that resolves when the session under `key` has ended, on whichever node. Loads the session at least once
    /// per `interval`; [`SessionWatch`] describes when it resolves sooner. An interval below 50 ms counts as 50 ms.
    ///
    /// Makes no call by itself. The first load finds a session that has ended already. If the session's key is renewed, the watch
    /// resolves with [`SessionEnd::Gone`]; [`Session::watch`](crate::Session::watch), which has the session's own key, follows it.
    #[must_use]
    pub fn watch(&self, key: &StoredKey, interval: Duration) -> SessionWatch {
        self.inner.watch(*key, None, interval)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    pub(crate) fn watch(
        self: &Arc<Self>,
        key: StoredKey,
        session_key: Option<SessionKey>,
        interval: Duration,
    ) -> SessionWatch {
        let store = Arc::downgrade(self) as Weak<dyn Look>;
        SessionWatch::new(&self.watches, store, key, session_key, interval)
    }

    async fn look_at(
        self: &Arc<Self>,
        key: StoredKey,
        session_key: Option<SessionKey>,
    ) -> Result<Seen, Error> {
        self.telemetry.counters.watch_looks.bump();
        // Ask before the load, so that a change after the load is reported.
        let has_no_report = self.cache.ask_for_report(&key).await.is_err();
        let record = match self.load(&key).await {
            Ok(loaded) => loaded.map(|loaded| Some(loaded.record)),
            // It is there, and its end is noticed like any other's.
            Err(error) if error.is_row_error() => Some(None),
            Err(error) => return Err(error),
        };
        if let Some(record) = record {
            return Ok(Seen::There { record, has_no_report });
        }
        Ok(match self.follow(session_key, key, Follows::Watch).await? {
            Some(Followed { key: Some(key), stored_key, .. }) => Seen::Moved(stored_key, key),
            Some(Followed { is_renewed: false, .. }) => Seen::Ended(SessionEnd::NewRights),
            Some(_) | None => Seen::Ended(SessionEnd::Gone),
        })
    }
}

impl<C: Cache, P: Persistence> Look for Inner<C, P> {
    fn look(
        self: Arc<Self>,
        key: StoredKey,
        session_key: Option<SessionKey>,
    ) -> BoxFuture<Result<Seen, Error>> {
        let store = Arc::clone(&self);
        Box::pin(self.tasks.run(async move { store.look_at(key, session_key).await }))
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
