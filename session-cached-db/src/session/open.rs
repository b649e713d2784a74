use std::sync::Arc;

use session_core::{Cache, InvalidKey, Persistence, SessionKey, StoredKey};

use super::{MAX_TRIES, Session};
use crate::coherence::Loaded;
use crate::runtime::Admission;
use crate::store::job::{Delete, Job, Written};
use crate::store::{CachedDb, Followed, Follows, Inner};
use crate::telemetry::Ending;
use crate::{Coherence, Error};

#[allow(
    clippy::manual_async_fn,
    reason = "of an `async fn` that awaits a method of a `dyn` backend, callers cannot prove that its future is Send"
)]
impl<C: Cache, P: Persistence> CachedDb<C, P> {
    /// Opens the session of a client that presented `cookie`. If the cookie is unknown, malformed or expired,
    /// returns a new, empty, unsaved session without a key: a key that a client presents is never adopted. A key that the
    /// session had a moment ago opens it within the [grace](crate::Builder::rotation_grace): send the client the session's
    /// [new key](Session::key).
    ///
    /// # Errors
    ///
    /// - [`Error::Database`] when the database does not answer. A cache that does not answer is not an error.
    /// - [`Error::Unreadable`], or [`Error::Database`] with a corrupt row, when the session is there and this node
    ///   cannot read it: it is damaged, or was written with a newer version or with another sealing key. Answer that
    ///   the service is unavailable and leave the client's cookie alone. [`end`](CachedDb::end) and
    ///   [`revoke`](CachedDb::revoke) end such a session.
    pub fn open(&self, cookie: &str) -> impl Future<Output = Result<Session, Error>> + Send {
        async move {
            match SessionKey::parse(cookie) {
                Ok(key) => self.open_key(key).await,
                Err(InvalidKey) => {
                    if !cookie.is_empty() {
                        self.inner.note_unknown_key(None);
                    }
                    Ok(self.new_session())
                }
            }
        }
    }

    /// Opens the session of a client, like [`open`](Self::open), by a key that was parsed before.
    ///
    /// # Errors
    ///
    /// The errors of [`open`](Self::open).
    pub fn open_key(&self, key: SessionKey) -> impl Future<Output = Result<Session, Error>> + Send {
        async move {
            let Ok(stored_key) = self.stored_key(&key) else {
                self.inner.note_unknown_key(Some(&key));
                return Ok(self.new_session());
            };
            let found = self.inner.load_readable(&stored_key).await;
            // A hit returns here, before anything else: on this path, even a copy of the keys costs.
            if let Ok(Some(loaded)) = found {
                return Ok(self.opened(key, stored_key, loaded));
            }
            let adopted = match found {
                Ok(_) if self.inner.settings.accepts_plain_keys => {
                    Box::pin(self.inner.adopt_plain(&key, &stored_key)).await
                }
                found => found.map(|_| None),
            };
            if let Some((stored_key, loaded)) = adopted? {
                return Ok(self.opened(key, stored_key, loaded));
            }
            let followed = Box::pin(self.inner.follow(Some(key.clone()), stored_key, Follows::Open)).await?;
            match followed {
                Some(Followed { key: Some(key), stored_key, loaded, .. }) => {
                    Ok(self.opened(key, stored_key, loaded))
                }
                superseded => {
                    self.inner.note_unknown_key(Some(&key));
                    let store = Arc::clone(&self.inner) as _;
                    Ok(if superseded.is_some() { Session::superseded(store) } else { Session::new(store) })
                }
            }
        }
    }

    /// Ends the session of a client by the key that it presents, without reading it: a logout of a session that this node
    /// [cannot read](Error::Unreadable). Returns `true` if there was one. Follows the session like [`open`](Self::open).
    ///
    /// A session that can be read is ended by [`Session::flush`].
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when other requests kept giving the session other keys, or an [error of every
    /// write](Self#errors-of-every-write).
    ///
    /// # Cancel safety
    ///
    /// Goes on to its end if the future is dropped; [`close`](Self::close) waits for it.
    pub fn end(&self, key: &SessionKey) -> impl Future<Output = Result<Written<bool>, Error>> + Send {
        let settings = &self.inner.settings;
        let hashed = settings.stored_key(key).ok();
        // A session from before the migration to hashed keys may still be under its plain one.
        let plain = (settings.accepts_plain_keys && settings.may_be_plain(key))
            .then(|| StoredKey::parse(key.expose()).ok())
            .flatten();
        let delete = |key: StoredKey| destroy(&self.inner, &key);
        let moved = hashed.map(|stored_key| (key.clone(), stored_key));
        let (hashed, plain) = (hashed.map(delete), plain.map(delete));
        async move {
            let mut ended = Written { value: false, coherence: Coherence::Coherent };
            for deleting in [hashed, plain].into_iter().flatten() {
                let Written { value, coherence } = deleting.await?;
                ended = Written { value: ended.value || value, coherence: ended.coherence.and(coherence) };
            }
            let Some((key, stored_key)) = moved else { return Ok(ended) };
            if ended.value {
                return Ok(ended);
            }
            for _ in 0..MAX_TRIES {
                // If it has moved again since it was found, the next try finds it.
                let followed =
                    Box::pin(self.inner.follow(Some(key.clone()), stored_key, Follows::Open)).await?;
                let Some(Followed { key: Some(_), stored_key, .. }) = followed else { return Ok(ended) };
                let Written { value, coherence } = destroy(&self.inner, &stored_key).await?;
                ended = Written { value, coherence: ended.coherence.and(coherence) };
                if value {
                    return Ok(ended);
                }
            }
            Err(Error::Conflict)
        }
    }

    #[inline]
    fn opened(&self, key: SessionKey, stored_key: StoredKey, loaded: Loaded) -> Session {
        self.inner.telemetry.call_hooks(|hooks| hooks.loaded(&stored_key, &loaded.record));
        Session::stored(Arc::clone(&self.inner) as _, key, stored_key, loaded)
    }

    /// Returns a new, empty, unsaved session. It gets a key when it is first saved.
    #[must_use]
    pub fn new_session(&self) -> Session {
        Session::new(Arc::clone(&self.inner) as _)
    }
}

/// Ends the session under `key` in the name of its client. Returns `true` if there was one.
fn destroy<C: Cache, P: Persistence>(
    store: &Arc<Inner<C, P>>,
    key: &StoredKey,
) -> impl Future<Output = Result<Written<bool>, Error>> + Send + use<C, P> {
    let delete = Delete { seen: None, ending: Ending::Destroyed, seat: None };
    store.write(key, Admission::New, |reply| Job::Delete(delete, reply))
}
