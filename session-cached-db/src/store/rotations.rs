//! The grace after a rotation: the new key of a session is noted, so that late requests with the old key can follow.

use std::sync::Arc;

use session_core::{Cache, Persistence, Rotation, SessionKey, StoredKey};

use super::inner::Inner;
use crate::Error;
use crate::coherence::Loaded;

/// Maximum number of keys to follow: those of a session that moved several times, and those of its other notes.
const MAX_FOLLOWED: usize = 8;

/// A session that was found under its new key.
pub(crate) struct Followed {
    /// The new session key. `None` if clients of the old one must not get it, nor open the session.
    pub(crate) key: Option<SessionKey>,
    pub(crate) stored_key: StoredKey,
    /// No rotation on the way was a change of rights.
    pub(crate) is_renewed: bool,
    pub(crate) loaded: Loaded,
}

/// The reason to follow a rotation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Follows {
    /// A request presents the old key.
    Open,
    /// A request that was opened with the old key saves, ends or rotates the session.
    Write,
    /// The session is watched under the old key.
    Watch,
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Notes a rotation that is about to happen. The grace begins now, because the rotation may have waited. If the note fails,
    /// the rotation happens without a grace.
    pub(super) async fn note_rotation(&self, rotation: &Rotation) {
        let (Some(table), Some(grace)) = (&self.rotations, self.settings.rotation_grace) else { return };
        let mut rotation = rotation.clone();
        rotation.expires_at = self.runtime.now() + grace;
        if let Err(error) = table.note(&self.db, &rotation).await
            && let Some(suppressed) =
                self.telemetry.log_limits.admit("rotation_not_noted", self.runtime.now())
        {
            tracing::warn!(target: "session_cached_db", event = "rotation_not_noted",
                session = %self.telemetry.log_id(&rotation.old), %error, suppressed,
                "the new key of a session could not be noted; requests with the old key cannot follow");
        }
    }

    /// Returns the session that was under `stored_key`, if it has another key for no longer than the grace. `key` is the
    /// session key of `stored_key`, if that is known.
    pub(crate) async fn follow(
        self: &Arc<Self>,
        key: Option<SessionKey>,
        stored_key: StoredKey,
        why: Follows,
    ) -> Result<Option<Followed>, Error> {
        let Some(table) = &self.rotations else { return Ok(None) };
        let mut keys = vec![(key, stored_key, true)];
        for _ in 0..MAX_FOLLOWED {
            let Some((key, old, is_renewed)) = keys.pop() else { break };
            let mut missing = Vec::new();
            for rotation in table.find(&self.db, &old).await? {
                let is_renewed = is_renewed && rotation.masked_key.is_some();
                let new_key = key.as_ref().and_then(|key| self.revealed(&rotation, key));
                let is_followed = match why {
                    Follows::Open => new_key.is_some(),
                    Follows::Write => true,
                    Follows::Watch => false,
                };
                let is_revealed = new_key.is_some() && !matches!(why, Follows::Watch);
                match self.load_moved(&rotation.new, is_revealed).await? {
                    Some(loaded) => {
                        if is_followed {
                            self.note_followed(&stored_key, &rotation.new, why);
                        }
                        let stored_key = rotation.new;
                        return Ok(Some(Followed { key: new_key, stored_key, is_renewed, loaded }));
                    }
                    None => missing.push((new_key, rotation.new, is_renewed)),
                }
            }
            // Follow the first note to its end before the second one: nearly always, the first has moved the session.
            keys.extend(missing.into_iter().rev());
        }
        Ok(None)
    }

    /// Loads the session that has moved to `key`. With a near cache, first waits until no node shows the session under its old
    /// key from memory. Otherwise a client that has used the new key could see an older state under the old one, on a node that
    /// has not heard of the rotation yet.
    async fn load_moved(
        self: &Arc<Self>,
        key: &StoredKey,
        is_revealed: bool,
    ) -> Result<Option<Loaded>, Error> {
        let found = self.load_readable(key).await?;
        if found.is_none() || !is_revealed || !self.cache.is_near() {
            return Ok(found);
        }
        mutant!(NearLedAtOnce => return Ok(found));
        self.cache.wait_for_all_nodes().await;
        self.load_readable(key).await
    }

    /// Returns the new session key that `rotation` reveals to clients of the old `key`.
    fn revealed(&self, rotation: &Rotation, key: &SessionKey) -> Option<SessionKey> {
        let new_key = rotation.masked_key.as_ref()?.unmask(&rotation.new, key)?;
        // A note by another program opens nothing.
        let is_right = self.settings.stored_key(&new_key).is_ok_and(|stored| stored == rotation.new);
        is_right.then_some(new_key)
    }

    fn note_followed(&self, old: &StoredKey, key: &StoredKey, why: Follows) {
        self.telemetry.counters.rotations_followed.bump();
        self.telemetry.call_hooks(|hooks| hooks.followed(old, key));
        if let Some(suppressed) = self.telemetry.log_limits.admit("rotation_followed", self.runtime.now()) {
            tracing::info!(target: "session_cached_db", event = "rotation_followed", session = %self.telemetry.log_id(key),
                from = %self.telemetry.log_id(old), ?why, suppressed,
                "a request with the old key of a session followed it to the new one");
        }
    }
}
