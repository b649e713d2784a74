//! Watches: waiting for the end of a session, on whichever node it ends.
//!
//! ```text
//!   SessionWatch ──► Looking, shared by all watches of a session in this process
//!                       │   look: ask for a report, then load
//!                       │   wait: for a hint, the interval, or the session's expiry
//!                       ▲
//!                    hints: reports of a near cache, this process's own writes, a channel that is lost or opened
//! ```
//!
//! A hint is never believed: it only makes the next look come early. Without any, the interval is the bound.

mod hints;
mod looking;
mod watches;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use session_core::{SessionKey, StoredKey};

use self::looking::{Finding, Looking};
pub(crate) use self::looking::{Look, Seen};
pub(crate) use self::watches::Watches;

/// A handle that waits for the end of a session, on whichever node it ends. Create one with
/// [`CachedDb::watch`](crate::CachedDb::watch) or [`Session::watch`](crate::Session::watch).
///
/// Use it for work that outlives a request and must not outlive its session: a websocket, a stream of events, a long import.
///
/// # Behavior
///
/// - With a [near cache](session_core::Near), over Redis, Valkey or Postgres, other nodes report their changes. The watch resolves
///   within the cache's freshness bound of the change, plus the time of a read. With any backend, it resolves as soon when this
///   process ends the session.
/// - Otherwise, and while the channel of the reports is lost, the session is loaded once per `interval`, and when it is due to
///   expire. A cache of this process that hears of no changes may add its [`max_cache_age`](crate::Builder::max_cache_age) to
///   that.
/// - A report is only a hint. The session is loaded before the watch resolves. If the database does not answer, the session is
///   loaded again later.
/// - All watches of a session in a process share their loads: at most one per `interval`, plus those that follow reports. These
///   are at least 50 ms apart, and up to 1 s while they find nothing new. A watch does not count as use of the session, and does
///   not prolong it.
/// - Within a [`rotation_grace`](crate::Builder::rotation_grace), a watch that was made by [`Session::watch`](crate::Session::watch)
///   follows a session whose key was [renewed](crate::Session::renew_key), and [`key`](Self::key) then returns the new key: the note
///   of the rotation is believed only if it fits the session's own key. A change of rights, such as a login, resolves the watch
///   with [`SessionEnd::NewRights`]. After the grace, or without the setting, both resolve it with [`SessionEnd::Gone`]. Where
///   no reports come, choose an interval that is shorter than the grace.
/// - A dropped watch costs nothing. A watch that no task awaits loads nothing.
///
/// ```
/// # async fn example<C: session_core::Cache, P: session_core::Persistence>(
/// #     store: session_cached_db::CachedDb<C, P>, cookie: &str, mut socket: tokio::sync::mpsc::Receiver<String>,
/// # ) -> Result<(), session_cached_db::Error> {
/// use std::time::Duration;
///
/// let session = store.open(cookie).await?;
/// // At the latest, look every 30 s.
/// let Some(mut watch) = session.watch(Duration::from_secs(30)) else { return Ok(()) };
/// drop(session);
/// loop {
///     tokio::select! {
///         message = socket.recv() => match message {
///             Some(message) => println!("{message}"),
///             None => break,
///         },
///         // Logged out, here or on another node: close the socket.
///         _ = watch.ended() => break,
///     }
/// }
/// # Ok(()) }
/// ```
pub struct SessionWatch {
    watches: Arc<Watches>,
    store: Weak<dyn Look>,
    key: StoredKey,
    session_key: Option<SessionKey>,
    interval: Duration,
    looking: Looking,
}

/// The end of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEnd {
    /// No session is stored under the key any more: its user has logged out, it was revoked or has expired, or it has got
    /// another key and cannot be followed.
    Gone,
    /// The session has got another key by a change of rights: a login, another subject, or
    /// [`cycle_key`](crate::Session::cycle_key). It lives on, but what was opened with the old key must not act for the new
    /// rights: an attacker may have planted that key. The client presents the new one with its next request. Returned only within the
    /// [`rotation_grace`](crate::Builder::rotation_grace).
    NewRights,
    /// The store was closed. The session may live on.
    Closed,
}

impl SessionWatch {
    pub(crate) fn new(
        watches: &Arc<Watches>,
        store: Weak<dyn Look>,
        key: StoredKey,
        session_key: Option<SessionKey>,
        interval: Duration,
    ) -> Self {
        let looking = watches.join(key, session_key.clone(), interval, &store);
        Self { watches: Arc::clone(watches), store, key, session_key, interval, looking }
    }

    /// Waits until the session has ended, and returns how it ended. Later calls return the same at once.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time, as `select!` does. The next call continues.
    pub async fn ended(&mut self) -> SessionEnd {
        loop {
            // A clone, because a shared future must not be polled again after its end.
            match self.looking.clone().await {
                Finding::Ended(end) => return end,
                // This watch was made without the session's own key, which another watch of the session has.
                Finding::Moved(..) if self.session_key.is_none() => return SessionEnd::Gone,
                Finding::Moved(key, session_key) => {
                    let session_key = Some(session_key);
                    self.looking = self.watches.join(key, session_key.clone(), self.interval, &self.store);
                    (self.key, self.session_key) = (key, session_key);
                }
            }
        }
    }

    /// Returns the key under which the session was stored when it was last looked at.
    #[must_use]
    pub const fn key(&self) -> &StoredKey {
        &self.key
    }
}

impl fmt::Debug for SessionWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionWatch").field("interval", &self.interval).finish_non_exhaustive()
    }
}
