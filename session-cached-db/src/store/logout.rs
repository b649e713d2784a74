//! Ending a session in the name of its client, wherever it has moved.

use std::sync::Arc;

use session_core::{Cache, Persistence, SessionKey, Stamp, StoredKey};

use super::inner::Inner;
use super::job::{Delete, Job, Written};
use super::rotations::Follows;
use crate::runtime::Admission;
use crate::telemetry::Ending;
use crate::{Coherence, Error};

/// The maximum number of times to follow a session that moves to another key before it is ended.
const MAX_TRIES: usize = 8;

/// The keys under which a session that is to end may be stored.
#[derive(Debug, Default)]
pub(crate) struct Logout {
    pub(crate) keys: Vec<(StoredKey, Option<Stamp>)>,
    /// If there is none under `keys`, the key from which it may have moved to another, within the grace.
    pub(crate) moved_from: Option<(SessionKey, StoredKey, Follows)>,
    /// A write with an unknown outcome may have stored it under this key as well, or may yet do so.
    pub(crate) unsettled: Option<StoredKey>,
}

impl Written<bool> {
    pub(crate) const NONE: Self = Self { value: false, coherence: Coherence::Coherent };

    fn or(self, other: &Self) -> Self {
        Self { value: self.value || other.value, coherence: self.coherence.and(other.coherence) }
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends a session, and returns `true` if there was one. Goes on if the returned future is dropped.
    pub(crate) fn log_out(
        self: &Arc<Self>,
        logout: Logout,
    ) -> impl Future<Output = Result<Written<bool>, Error>> + Send + use<C, P> {
        let store = Arc::clone(self);
        self.tasks.run(async move { store.log_out_now(logout).await })
    }

    async fn log_out_now(self: &Arc<Self>, logout: Logout) -> Result<Written<bool>, Error> {
        let Logout { keys, moved_from, unsettled } = logout;
        let mut ended = Written::NONE;
        for (key, seen) in keys {
            ended = ended.or(&self.destroy(&key, seen).await?);
        }
        if let Some((key, stored_key, why)) = moved_from
            && !ended.value
            && !mutant!(LogoutNotFollowed)
        {
            ended = ended.or(&self.destroy_moved(&key, stored_key, why).await?);
        }
        // Last: from the key before, it can no longer move to this one.
        if let Some(key) = unsettled {
            ended = ended.or(&self.destroy(&key, None).await?);
        }
        Ok(ended)
    }

    async fn destroy(self: &Arc<Self>, key: &StoredKey, seen: Option<Stamp>) -> Result<Written<bool>, Error> {
        let delete = Delete { seen, ending: Ending::Destroyed, seat: None };
        self.write(key, Admission::Continuation, |reply| Job::Delete(delete, reply)).await
    }

    async fn destroy_moved(
        self: &Arc<Self>,
        key: &SessionKey,
        stored_key: StoredKey,
        why: Follows,
    ) -> Result<Written<bool>, Error> {
        let mut ended = Written::NONE;
        for _ in 0..MAX_TRIES {
            let Some(followed) = self.follow(Some(key.clone()), stored_key, why).await? else {
                return Ok(ended);
            };
            // A key that was planted before a login must not end the session of the login.
            if followed.key.is_none() && matches!(why, Follows::Open) {
                return Ok(ended);
            }
            ended = ended.or(&self.destroy(&followed.stored_key, None).await?);
            if ended.value {
                return Ok(ended);
            }
            // It has moved again since it was found.
        }
        Err(Error::Conflict)
    }
}
