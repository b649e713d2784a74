use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::{BoxFuture, CacheError, Entry, PersistenceError, StoredKey};

/// A cache that reports which entries change, so that a process may keep in its memory what it has read.
///
/// The cache itself promises no more than [`Cache`](crate::Cache) does. What a process keeps, and for how long it may
/// show it, is the business of a near cache, which is the same for all sources.
///
/// # Behavior
///
/// - An entry that a channel has returned is *watched*: the channel reports its next change to the listener, whether
///   another handle or this one has replaced or removed it.
/// - A key for which a channel has returned `None` is watched as well: an entry that is placed there is a change.
/// - The end of a TTL is a change. It may be reported late.
/// - An entry is watched anew each time that it is read.
/// - A change that its writer was told of before [`ping`](NoticeChannel::ping) was called is reported before `ping`
///   returns.
/// - A change is reported before the channel returns an entry that replaced what was there.
/// - Every channel reports what it has read, whatever other channels do.
/// - A channel that may have lost a report fails every later call.
///
/// A report that is not needed does no harm.
pub trait NoticeSource: Send + Sync + fmt::Debug + 'static {
    /// A connection on which reports and answers come in order.
    type Channel: NoticeChannel;

    /// Opens a channel that reports to `listener`. It watches nothing yet.
    ///
    /// # Errors
    ///
    /// Returns [`CacheError`] if the server cannot be reached, or cannot report changes.
    fn open_channel(
        &self,
        listener: Arc<dyn NoticeListener>,
    ) -> impl Future<Output = Result<Self::Channel, CacheError>> + Send;

    /// Returns the reason why this source can never open a channel, for example because of its configuration, or
    /// `None`. Makes no call. Defaults to `None`.
    fn refusal(&self) -> Option<&'static str> {
        None
    }
}

/// A connection to a [`NoticeSource`]. Dropping it ends the reports.
///
/// # Cancel safety
///
/// The call of a future that is dropped may go on. Its answer is then ignored.
pub trait NoticeChannel: Send + Sync + 'static {
    /// Waits until every report that was on its way when this was called has been made.
    ///
    /// # Errors
    ///
    /// Returns [`CacheError`] if the call failed.
    fn ping(&self) -> impl Future<Output = Result<(), CacheError>> + Send;

    /// Returns the entry under `key`, or `None` if there is none, and watches the key from then on.
    ///
    /// # Errors
    ///
    /// Returns [`CacheError`] if the call failed.
    fn get(&self, key: &StoredKey) -> impl Future<Output = Result<Option<Entry>, CacheError>> + Send;
}

/// The reports of a database about the sessions that its writers change. See
/// [`Persistence::notify`](crate::Persistence::notify).
///
/// # Behavior
///
/// - Every insert, update, touch, rename and delete by a handle that reports is reported to every channel of the other
///   handles, with each key that it has changed. What a handle has written itself need not be reported to its own channels.
/// - A write whose writer was told of it before [`ping`](DatabaseChannel::ping) was called is reported before `ping`
///   returns, if it was committed after the channel was opened.
/// - A write that changes nothing, or is undone, is not reported.
/// - A channel that may have lost a report fails every later call.
///
/// A report that is not needed does no harm.
pub trait DatabaseNotices: Send + Sync + fmt::Debug + 'static {
    /// Opens a channel that reports to `listener` what is committed from the moment on at which this returns.
    ///
    /// # Errors
    ///
    /// The future returns [`PersistenceError`] if the server cannot be reached, or what lies before it passes no reports.
    fn open_channel(
        self: Arc<Self>,
        listener: Arc<dyn NoticeListener>,
    ) -> BoxFuture<Result<Box<dyn DatabaseChannel>, PersistenceError>>;
}

/// A connection to [`DatabaseNotices`]. Dropping it ends the reports.
///
/// # Cancel safety
///
/// The call of a future that is dropped may go on. Its answer is then ignored.
pub trait DatabaseChannel: Send + Sync + 'static {
    /// Waits until every report that was on its way when this was called has been made.
    ///
    /// # Errors
    ///
    /// The future returns [`PersistenceError`] if the call failed.
    fn ping(&self) -> BoxFuture<Result<(), PersistenceError>>;
}

/// The receiver of the reports of a channel. Its methods return at once.
pub trait NoticeListener: Send + Sync + fmt::Debug + 'static {
    /// Takes the report that the entry under `key` has changed.
    fn changed(&self, key: &StoredKey);

    /// Takes the report that any entry may have changed.
    fn all_changed(&self);

    /// Takes a report that names no session, as another program may have made it. Defaults to doing nothing.
    fn ignored(&self) {}
}
