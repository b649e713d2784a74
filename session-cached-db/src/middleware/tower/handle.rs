use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::future::{Either, poll_immediate, select};
use session_core::SessionKey;
use tokio::sync::OnceCell;

use super::lock::{Last, Locked, Room, Worker};
use super::opened::{Effects, KeyChange, Opened};
use super::settings::Settings;
use super::transport::PresentedKeys;
use crate::{Coherence, Error, Session};

/// The session of one request. Cheap to clone; its clones, and all handles that are extracted from one
/// request, share one session.
///
/// [`SessionLayer`](super::SessionLayer) puts it into the request's extensions. With the feature `axum` it is an
/// extractor as well. `M` is the layer's [marker](super::SessionLayer::marker), for an application with several layers.
pub struct SessionHandle<M = ()> {
    shared: Arc<Shared>,
    marker: PhantomData<fn() -> M>,
}

struct Shared {
    settings: Arc<Settings>,
    presented: PresentedKeys,
    /// A page makes the request by itself, so that others may be on their way at the same time.
    is_background: bool,
    is_used: AtomicBool,
    is_touching: AtomicBool,
    /// One of the presented sessions was ended without being opened.
    is_ended: AtomicBool,
    /// All presented sessions were ended.
    are_all_ended: AtomicBool,
    /// The response is made, or will never be.
    is_finished: AtomicBool,
    /// The worker that handles the request.
    worker: OnceLock<Worker>,
    room: OnceCell<Room>,
}

/// Exclusive access to the request's [`Session`], until this guard is dropped.
pub struct SessionGuard<'a>(Locked<'a>);

impl<M> SessionHandle<M> {
    pub(super) fn new(settings: Arc<Settings>, presented: PresentedKeys, is_background: bool) -> Self {
        let (is_used, is_touching) = (AtomicBool::new(false), AtomicBool::new(settings.is_touching));
        let shared = Shared {
            settings,
            presented,
            is_background,
            is_used,
            is_touching,
            is_ended: AtomicBool::new(false),
            are_all_ended: AtomicBool::new(false),
            is_finished: AtomicBool::new(false),
            worker: OnceLock::new(),
            room: OnceCell::new(),
        };
        Self { shared: Arc::new(shared), marker: PhantomData }
    }

    /// Notes that the present worker handles the request.
    pub(super) fn begin(&self) {
        // The first one stays.
        let _ = self.shared.worker.set(Worker::current());
    }

    /// Locks the session, loading it on the first call in this request. If the client presents nothing that could be a key,
    /// loading it does no I/O.
    ///
    /// # Behavior
    ///
    /// - While a guard is held, `lock` waits in other tasks, in the order of the calls. In the same task it fails at once,
    ///   because it would wait for itself. The branches of a `join!` are one task: lock once and share the guard, or let each
    ///   branch drop its guard before it awaits something else.
    /// - A task that holds a guard must not await another task which calls `lock`: that call fails after the time that the
    ///   longest write may take, twice to four times the [`write_timeout`](crate::Builder::write_timeout) and the database's bound
    ///   on statements. Drop the guard first.
    /// - The response does not wait for a task that was spawned and keeps a guard. What was changed before that task locked the
    ///   session is saved when it does, and the client gets its key. What the task changes after that is its own to save, with
    ///   [`Session::save`]; the event `task_keeps_session` tells of such a task. It must not give the session another key: the
    ///   client would not learn it.
    /// - To know of the end of the session after the response, as for a websocket, take a [watch](Session::watch) and drop the
    ///   guard.
    ///
    /// # Errors
    ///
    /// - [`Error::Database`] when the database does not answer, and [`Error::Unreadable`] when the session is there and
    ///   this node cannot read it. The next call tries again.
    /// - [`Error::AlreadyLocked`] when this task holds a guard.
    /// - [`Error::Busy`] when another task keeps its guard for longer than the longest write may take, or has begun to open the
    ///   session and does not go on with it for as long.
    /// - In a task other than the one that handles the request, an error of [`Session::save`]: what was changed before could
    ///   not be saved. It is tried again at the end of the request.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub async fn lock(&self) -> Result<SessionGuard<'_>, Error> {
        self.shared.is_used.store(true, Ordering::Relaxed);
        let room = self.room().await?;
        if self.shared.is_finished.load(Ordering::Relaxed) {
            // The session was first opened after the response.
            room.finish();
        }
        let worker = self.shared.worker.get().copied();
        Ok(SessionGuard(room.lock(worker, &*self.shared.settings.store).await?))
    }

    /// Sets whether this request prolongs the session's life if it does not change the session. Defaults to the
    /// layer's [`touch`](super::SessionLayer::touch).
    ///
    /// Turn it off in a handler that a page calls by itself, such as a poll that asks how long the session still
    /// lives ([`Session::stored_expires_at`]): otherwise an open page keeps its session alive for ever.
    pub fn touch(&self, is_touching: bool) {
        self.shared.is_touching.store(is_touching, Ordering::Relaxed);
    }

    /// Ends the client's session everywhere, for good, without reading it, and has its key removed: a logout that also
    /// works when this node cannot read the session, so that [`lock`](Self::lock) fails with [`Error::Unreadable`]. If
    /// the request presents several keys, the sessions of all end. If none of them has a session any more, the client keeps its
    /// key: it may have got another one since.
    ///
    /// With a guard, call [`Session::flush`].
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyLocked`] when this task holds a guard, or an
    /// [error of every write](crate::CachedDb#errors-of-every-write). Some of several sessions may have ended.
    pub async fn end(&self) -> Result<Coherence, Error> {
        let Shared { settings, is_used, are_all_ended, worker, room, .. } = &*self.shared;
        is_used.store(true, Ordering::Relaxed);
        let (mut own, mut coherence) = (None, Coherence::Coherent);
        if let Some(room) = room.get() {
            let mut locked = room.lock(worker.get().copied(), &*settings.store).await?;
            coherence = locked.opened.session.flush().await?;
            own = locked.opened.session.flushed().cloned();
        }
        coherence = coherence.and(self.end_presented(own.as_ref()).await?);
        are_all_ended.store(true, Ordering::Relaxed);
        Ok(coherence)
    }

    /// Ends the sessions of all presented keys but `own`, and notes whether there was one. After an error, goes on with the
    /// others.
    async fn end_presented(&self, own: Option<&SessionKey>) -> Result<Coherence, Error> {
        let Shared { settings, presented, is_ended, .. } = &*self.shared;
        let mut result = Ok(Coherence::Coherent);
        for key in presented.iter().filter(|key| Some(*key) != own) {
            let ended = Arc::clone(&settings.store).end(key.clone()).await;
            // Otherwise the client may have got another key since.
            is_ended.fetch_or(ended.as_ref().is_ok_and(|ended| ended.value), Ordering::Relaxed);
            result = result.and_then(|coherence| Ok(coherence.and(ended?.coherence)));
        }
        result
    }

    /// Returns the session's room, which the first worker opens. Others wait for it, but no longer than the longest write may
    /// take: it may be polled no more.
    async fn room(&self) -> Result<&Room, Error> {
        let Shared { settings, room, .. } = &*self.shared;
        if let Some(room) = room.get() {
            return Ok(room);
        }
        let is_first = AtomicBool::new(false);
        let mut opening = pin!(room.get_or_try_init(|| {
            is_first.store(true, Ordering::Relaxed);
            self.open()
        }));
        if let Some(room) = poll_immediate(opening.as_mut()).await {
            return room;
        }
        if is_first.load(Ordering::Relaxed) {
            return opening.await;
        }
        let patience = settings.store.sleep(settings.store.settings().longest_write);
        match select(opening, patience).await {
            Either::Left((room, _)) => room,
            Either::Right(_) => Err(Error::Busy),
        }
    }

    async fn open(&self) -> Result<Room, Error> {
        let (session, presented) = self.open_best().await?;
        Ok(Room::new(Opened::new(session, presented, self.shared.is_background)))
    }

    /// Opens the session that counts: of the keys that have one, the first with a subject, or else the first. Without any, a new
    /// session. Returns the key, too.
    ///
    /// An anonymous session does not count beside a key that may be that of a login: its own key, sent again, would take the
    /// other's place.
    async fn open_best(&self) -> Result<(Session, Option<SessionKey>), Error> {
        let Shared { settings, presented, .. } = &*self.shared;
        let (mut anonymous, mut unreadable, mut superseded) = (None, None, None);
        for key in presented.iter() {
            match Arc::clone(&settings.store).open(Some(key.clone())).await {
                Ok(session) if session.key().is_some() => {
                    let found = (session, Some(key.clone()));
                    if found.0.subject().is_some() {
                        return Ok(found);
                    }
                    anonymous = anonymous.or(Some(found));
                }
                Ok(session) => superseded = superseded.or(session.is_superseded().then_some(session)),
                Err(error) if error.is_row_error() => unreadable = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (unreadable, superseded, anonymous) {
            // Not another session: the row is there, and another node may be able to read it.
            (Some(error), ..) => Err(error),
            (None, Some(session), _) => Ok((session, None)),
            (None, None, Some(found)) => Ok(found),
            (None, None, None) => Ok((Arc::clone(&settings.store).open(None).await?, None)),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Returns `true` if the response depends on the session.
    pub(super) fn is_used(&self) -> bool {
        self.shared.is_used.load(Ordering::Relaxed)
    }

    /// Notes that changes from now on are not those of the request.
    pub(super) fn close(&self) {
        self.shared.is_finished.store(true, Ordering::Relaxed);
        if let Some(room) = self.shared.room.get() {
            room.finish();
        }
    }

    /// Stores the changes, if the session `is_to_be_stored`, and returns what the response has to tell the client.
    pub(super) async fn finish(&self, is_to_be_stored: bool) -> Finished {
        let Shared { settings, is_ended, are_all_ended, room, .. } = &*self.shared;
        let ended = is_ended.load(Ordering::Relaxed).then_some(KeyChange::Ended);
        let Some(room) = room.get() else {
            return Finished { key_change: ended, failure: None };
        };
        if !is_to_be_stored {
            room.finish();
        }
        let mut own = None;
        let (Effects { key_change, is_logout }, failure) = match room.lock_last(&*settings.store).await {
            Last::Free(mut opened) => {
                // The handler may have left a write under a new key whose outcome is unknown. If it took place, the client
                // needs the key.
                let _ = opened.session.settle().await;
                let failure =
                    if is_to_be_stored { self.store(&mut opened.session).await.err() } else { None };
                // Before the next worker locks the session: a change that could not be stored is not its own to save.
                room.finish();
                own = opened.session.flushed().cloned();
                (opened.effects(), failure)
            }
            Last::Kept(effects) => {
                settings.note_kept();
                (effects, None)
            }
            Last::Stuck(effects) => {
                settings.note_kept();
                (effects, is_to_be_stored.then_some(Error::Busy))
            }
        };
        // After a logout, none of the other sessions that the client presents may log it in again.
        let is_over = !is_logout || are_all_ended.load(Ordering::Relaxed);
        let others = if is_over { None } else { self.end_presented(own.as_ref()).await.err() };
        Finished { key_change: key_change.or(ended), failure: failure.or(others) }
    }

    async fn store(&self, session: &mut Session) -> Result<(), Error> {
        if session.is_unsaved_and_empty() {
            return Ok(());
        }
        if session.modified() {
            session.save().await?;
        } else if self.shared.is_touching.load(Ordering::Relaxed) {
            self.shared.settings.note_use(session).await;
        }
        Ok(())
    }
}

impl Deref for SessionGuard<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0.opened.session
    }
}

impl DerefMut for SessionGuard<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.0.opened.session
    }
}

/// The parts of a response that the session decides at the end of a request.
#[derive(Default)]
pub(super) struct Finished {
    pub(super) key_change: Option<KeyChange>,
    pub(super) failure: Option<Error>,
}

impl<M> Clone for SessionHandle<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), marker: PhantomData }
    }
}

/// Shows neither the key nor the contents.
impl<M> fmt::Debug for SessionHandle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle").field("is_used", &self.is_used()).finish_non_exhaustive()
    }
}

impl fmt::Debug for SessionGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SessionGuard").field(&**self).finish()
    }
}
