//! Sessions whose key was lost with the answer of the write that stored them. No client can ever open one, so it is ended.

use std::sync::{Arc, Weak};
use std::time::Duration;

use session_core::{Cache, Persistence, StoredKey};

use super::inner::Inner;
use super::job::{Delete, Job};
use crate::Error;
use crate::runtime::{Admission, run_until};
use crate::telemetry::{Ending, Revocation};

/// The number of times that the database is asked before the session is left to expire.
const ATTEMPTS: u32 = 5;

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends the session that a write with an unknown outcome may have stored under `key`, which no client knows, or may still
    /// store there. Waits in the background until the write can no longer be applied.
    pub(crate) fn abandon(self: &Arc<Self>, key: StoredKey) {
        let closed = self.tasks.closed();
        let ending = end_abandoned(Arc::downgrade(self), key, self.settings.longest_write);
        self.runtime.spawn(Box::pin(run_until(closed, ending)));
    }

    /// Ends the session under `key`, if there is one.
    async fn end_if_there(self: &Arc<Self>, key: StoredKey) -> Result<(), Error> {
        if self.read(&key).await?.is_some() {
            let delete = Delete { seen: None, ending: Ending::Revoked(Revocation::Abandoned), seat: None };
            self.write(&key, Admission::New, |reply| Job::Delete(delete, reply)).await?;
        }
        Ok(())
    }
}

async fn end_abandoned<C: Cache, P: Persistence>(store: Weak<Inner<C, P>>, key: StoredKey, pause: Duration) {
    for attempt in 1..=ATTEMPTS {
        let Some(inner) = store.upgrade() else { return };
        let timer = inner.runtime.sleep(pause);
        // Hold only a weak reference over the pause: a store that nothing uses any more ends its tasks.
        drop(inner);
        timer.await;
        let Some(inner) = store.upgrade() else { return };
        match inner.end_if_there(key).await {
            Ok(()) | Err(Error::Closed) => return,
            Err(error) if attempt == ATTEMPTS => {
                let limits = &inner.telemetry.log_limits;
                let Some(suppressed) = limits.admit("abandoned_session_left", inner.runtime.now()) else {
                    return;
                };
                tracing::warn!(target: "session_cached_db", event = "abandoned_session_left",
                    session = %inner.telemetry.log_id(&key), %error, suppressed,
                    "a session that no client can open may be left; it ends when it expires, or with `sessionctl revoke`");
            }
            Err(_) => {}
        }
    }
}
