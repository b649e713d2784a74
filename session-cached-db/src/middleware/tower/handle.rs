use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderValue;
use session_core::{SessionKey, Timestamp};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard, OnceCell};

use super::cookie::Presented;
use super::settings::Settings;
use crate::{Coherence, Error, Session};

/// The session of one request. Cheap to clone; its clones, and all handles that are extracted from one
/// request, share one session.
///
/// [`SessionLayer`](super::SessionLayer) puts it into the request's extensions. With the feature `axum` it is an
/// extractor as well.
#[derive(Clone)]
pub struct SessionHandle {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Arc<Settings>,
    presented: Presented,
    is_used: AtomicBool,
    is_touching: AtomicBool,
    is_ended: AtomicBool,
    opened: OnceCell<Mutex<Opened>>,
}

struct Opened {
    session: Session,
    /// The [`mark`] of the session when it was opened.
    mark: Mark,
}

/// A session's key and when it was last used: a session whose mark has changed was written.
type Mark = (Option<SessionKey>, Option<Timestamp>);

/// Exclusive access to the request's [`Session`], until this guard is dropped.
#[derive(Debug)]
pub struct SessionGuard<'a>(MappedMutexGuard<'a, Session>);

impl SessionHandle {
    pub(super) fn new(settings: Arc<Settings>, presented: Presented) -> Self {
        let (is_used, is_touching) = (AtomicBool::new(false), AtomicBool::new(settings.is_touching));
        Self {
            shared: Arc::new(Shared {
                settings,
                presented,
                is_used,
                is_touching,
                is_ended: AtomicBool::new(false),
                opened: OnceCell::new(),
            }),
        }
    }

    /// Locks the session, loading it on the first call in this request. Without a cookie that could be a key,
    /// loading it does no I/O.
    ///
    /// Calling `lock` again while a guard is held deadlocks. Pass the guard on, or drop it.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database does not answer, and [`Error::Unreadable`] when the session is there and
    /// this node cannot read it. The next call tries again.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub async fn lock(&self) -> Result<SessionGuard<'_>, Error> {
        self.shared.is_used.store(true, Ordering::Relaxed);
        let opened = self.shared.opened.get_or_try_init(|| self.open()).await?;
        Ok(SessionGuard(MutexGuard::map(opened.lock().await, |opened| &mut opened.session)))
    }

    /// Sets whether this request prolongs the session's life if it does not change the session. Defaults to the
    /// layer's [`touch`](super::SessionLayer::touch).
    ///
    /// Turn it off in a handler that a page calls by itself, such as a poll that asks how long the session still
    /// lives ([`Session::stored_expires_at`]): otherwise an open page keeps its session alive for ever.
    pub fn touch(&self, is_touching: bool) {
        self.shared.is_touching.store(is_touching, Ordering::Relaxed);
    }

    /// Ends the client's session everywhere, for good, without reading it, and has its cookie removed: a logout that also
    /// works when this node cannot read the session, so that [`lock`](Self::lock) fails with [`Error::Unreadable`]. If
    /// several cookies of the request name sessions, all of them end.
    ///
    /// Calling `end` while a guard is held deadlocks. With a guard, call [`Session::flush`].
    ///
    /// # Errors
    ///
    /// An [error of every write](crate::CachedDb#errors-of-every-write). Some of several sessions may have ended.
    pub async fn end(&self) -> Result<Coherence, Error> {
        let Shared { settings, presented, is_used, is_ended, opened, .. } = &*self.shared;
        is_used.store(true, Ordering::Relaxed);
        let mut coherence = match opened.get() {
            Some(opened) => opened.lock().await.session.flush().await?,
            None => Coherence::Coherent,
        };
        for key in &presented.keys {
            let ended = Arc::clone(&settings.store).end(key.clone()).await?;
            coherence = coherence.and(ended.coherence);
        }
        is_ended.store(!presented.keys.is_empty(), Ordering::Relaxed);
        Ok(coherence)
    }

    async fn open(&self) -> Result<Mutex<Opened>, Error> {
        let session = self.open_first().await?;
        let mark = mark(&session);
        Ok(Mutex::new(Opened { session, mark }))
    }

    /// Opens the session of the first cookie that has one, or a new session.
    async fn open_first(&self) -> Result<Session, Error> {
        let Shared { settings, presented, .. } = &*self.shared;
        let mut unreadable = None;
        for key in &presented.keys {
            match Arc::clone(&settings.store).open(Some(key.clone())).await {
                Ok(session) if session.key().is_some() => return Ok(session),
                Ok(_) => {}
                Err(error) if error.is_row_error() => unreadable = Some(error),
                Err(error) => return Err(error),
            }
        }
        match unreadable {
            // Not a new session: the row is there, and another node may be able to read it.
            Some(error) => Err(error),
            None => Arc::clone(&settings.store).open(None).await,
        }
    }

    /// Returns `true` if the response depends on the session.
    pub(super) fn is_used(&self) -> bool {
        self.shared.is_used.load(Ordering::Relaxed)
    }

    /// Stores the changes, if the session `is_to_be_stored`, and returns the cookie to send.
    pub(super) async fn finish(&self, is_to_be_stored: bool) -> Finished {
        let Shared { settings, is_touching, is_ended, opened, .. } = &*self.shared;
        let is_ended = is_ended.load(Ordering::Relaxed);
        let Some(opened) = opened.get() else {
            let cookie = if is_ended { settings.cookie.removal() } else { None };
            return Finished { cookie, failure: None };
        };
        let mut opened = opened.lock().await;
        let Opened { session, mark: mark_before } = &mut *opened;

        let mut failure = None;
        // The handler may have left a write under a new key whose outcome is unknown. If it took place, the client needs the key.
        let _ = session.settle().await;
        if is_to_be_stored && !session.is_unsaved_and_empty() {
            if session.modified() {
                failure = session.save().await.err();
            } else if is_touching.load(Ordering::Relaxed) {
                note_use(session).await;
            }
        }
        let cookie = match session.key() {
            // Only if this request has ended the session. A cookie that opened none is left alone: the client may have got
            // another one since, and another node may know its session.
            None if session.is_unsaved_and_empty() && (mark_before.0.is_some() || is_ended) => {
                settings.cookie.removal()
            }
            Some(key) if mark(session) != *mark_before => {
                let max_age = (!session.expires_at_browser_close()).then(|| session.expiry_age());
                settings.cookie.issue(key, max_age)
            }
            // No cookie, not even a removal when the session was found to be gone: the client may have got
            // another cookie since, by a new login.
            _ => None,
        };
        Finished { cookie, failure }
    }
}

impl Deref for SessionGuard<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl DerefMut for SessionGuard<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.0
    }
}

/// The parts of a response that the session decides at the end of a request.
#[derive(Default)]
pub(super) struct Finished {
    pub(super) cookie: Option<HeaderValue>,
    pub(super) failure: Option<Error>,
}

fn mark(session: &Session) -> Mark {
    (session.key().cloned(), session.last_seen_at())
}

/// Records that the session is in use. An error is logged and fails no request, because nothing that the
/// client asked for depends on this.
async fn note_use(session: &mut Session) {
    match session.touch().await {
        Ok(_) | Err(Error::SessionGone) => {}
        Err(error) => tracing::warn!(target: "session_cached_db", event = "touch_failed", %error,
            "the use of a session could not be recorded; it may end earlier than it should"),
    }
}

/// Shows neither the key nor the contents.
impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle").field("is_used", &self.is_used()).finish_non_exhaustive()
    }
}
