use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{BoxFuture, CacheError, DatabaseNotices, Entry, Runtime, StoredKey};

/// The memory of this process in a near cache, which a store uses besides [`Cache`](crate::Cache).
///
/// A near cache keeps in memory the entries that it has read from a shared cache, or from the database, and receives reports
/// of their changes. It answers from memory only while it has certainly received the report of every change that is older
/// than the [bound](Self::freshness_bound).
///
/// # Behavior
///
/// - What [`peek`](Self::peek) returns was in the shared cache, or in the database, at some instant less than the bound ago.
/// - After an exchange or a `get` of this handle has returned, `peek` shows nothing of its key that was read before.
/// - After [`forget`](Self::forget) has returned, `peek` shows nothing of the key that was read before.
/// - After the future of [`watch`](Self::watch) has returned `true`, the next change of the key by another node, or the loss of the channel,
///   is passed to the [observer](Self::start).
pub trait Near: Send + Sync {
    /// Returns the value in this process's memory under `key`, if it may be shown. Makes no call.
    fn peek(&self, key: &StoredKey) -> Option<Entry>;

    /// Removes the value in this process's memory under `key`. A read that is under way may still add one. The store calls this
    /// before it shows a session that it has read from the database: memory may hold an older state, and must not show it
    /// afterwards.
    fn forget(&self, key: &StoredKey);

    /// Asks for a report of the next change of `key`. The future returns `true` if the change will be reported. Returns `None`
    /// if no channel is open: the observer receives [`NearEvent::Opened`] when one is.
    fn watch(&self, key: &StoredKey) -> Option<BoxFuture<bool>>;

    /// Returns the maximum time by which memory is behind.
    fn freshness_bound(&self) -> Duration;

    /// Returns the reporter of changes. Makes no call.
    fn source(&self) -> NearSource;

    /// Returns the reason why a store that is built now would never be told of changes, or `None`. Makes no call.
    fn refusal(&self) -> Option<&'static str>;

    /// Starts to listen for changes, on tasks of `runtime`, until [`stop`](Self::stop) was called as often as this, or the
    /// cache is dropped. Further calls share the task of the first one. `notices` are those of the database, if that is the
    /// [source](Self::source). The observer receives all events of this memory for as long as the caller keeps it.
    ///
    /// # Errors
    ///
    /// Returns the [reason](Self::refusal) why the caller's store would never be told of changes, and starts nothing: another store
    /// may have taken the memory since that was asked.
    fn start(
        &self,
        runtime: &Arc<dyn Runtime>,
        observer: Arc<dyn NearObserver>,
        notices: Option<Arc<dyn DatabaseNotices>>,
    ) -> Result<(), &'static str>;

    /// Undoes one successful call of [`start`](Self::start). When the future of the last such call ends, the connection for reports
    /// is closed, memory is empty and no longer answers, and the database's notices are dropped. A later `start` begins anew.
    ///
    /// # Cancel safety
    ///
    /// The task ends even if the future is dropped.
    fn stop(&self) -> BoxFuture<()>;

    /// For a seeded fault.
    #[cfg(feature = "__simulation")]
    #[doc(hidden)]
    fn __peek_anyway(&self, key: &StoredKey) -> Option<Entry>;

    /// For a seeded fault.
    #[cfg(feature = "__simulation")]
    #[doc(hidden)]
    fn __is_fresh(&self) -> bool;
}

/// The reporter of changes to a near cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NearSource {
    /// The shared cache behind memory. Once it has confirmed a writer's fence, no node reads there what the write replaces.
    SharedCache,
    /// The database: memory alone, which each process has for itself. The fences in it keep out the readers of this process
    /// only, so other nodes hear of a write when it is committed.
    Database,
}

/// The receiver of a near cache's events. Its method returns at once.
pub trait NearObserver: Send + Sync + fmt::Debug + 'static {
    /// Takes an event.
    fn note(&self, event: NearEvent<'_>);
}

/// An event in the life of a near cache.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum NearEvent<'a> {
    /// A change of the entry under this key was reported.
    Noticed(&'a StoredKey),
    /// A report was ignored, because it names no session.
    Ignored,
    /// Everything was removed from memory.
    Forgotten,
    /// A channel was opened: memory is used from the next answer on.
    Opened,
    /// The channel answered.
    Answered {
        /// The time that the answer took.
        took: Duration,
        /// The greatest age that the basis has had, just before this answer. Memory does not answer from an age of the bound on.
        basis_age: Duration,
    },
    /// The channel was lost: memory is not used until another one is open.
    Lost(&'a CacheError),
    /// No channel could be opened. It will be tried again.
    NotOpened(&'a CacheError),
    /// The last store that uses the cache was closed, and the channel with it.
    Stopped,
}
