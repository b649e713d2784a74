//! Operations on every session of a table, a page at a time.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use session_core::{Cache, ExpiryWrite, KeyForm, Persistence, Record, Row, Scan, SessionKey, StoredKey};

use super::inner::Inner;
use super::job::{Job, Saved, Update};
use super::subjects::SIDE_BY_SIDE_NEAR;
use crate::coherence::Loaded;
use crate::runtime::Admission;
use crate::{CachedDb, Error};

/// The result of one page of a sweep through the table. See [`CachedDb::reseal`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweepPage {
    /// The number of sessions that were read, including expired ones.
    pub seen: u64,
    /// The number of sessions that were written.
    pub written: u64,
    /// The number of sessions that were not written because another writer wrote or ended them at the same time. Sweep once
    /// more.
    pub missed: u64,
    /// The sessions that cannot be read. Their rows were left alone, each with a log event;
    /// [`revoke`](crate::CachedDb::revoke) ends such a session.
    pub unreadable: Vec<StoredKey>,
    /// The sessions that could not be written, each with a log event that says why: the payload became too large or cannot be
    /// encoded, the codec panicked, the cache or the session's queue of writes refused the write, or the database the
    /// statement. Mend that, and sweep once more.
    pub failed: Vec<StoredKey>,
    /// The key after which the next page begins. `None` after the last page.
    pub next: Option<StoredKey>,
}

impl<C: Cache, P: Scan> CachedDb<C, P> {
    /// Encodes again those sessions of one page of the table whose payloads are not
    /// [current](session_core::Codec::is_current): after a change of the sealing key, or for a table that was not sealed
    /// before. No client is logged out, and no session lives longer for it.
    ///
    /// # Behavior
    ///
    /// - Begins after the key `after`, or with the first key, and looks at `limit` sessions at most.
    /// - Writes every session by itself, against the version that was read, as a save does. So a sweep can run while the store
    ///   is in use, on several nodes, and can be stopped at any time and begun again.
    /// - The work is done when a whole sweep, with all nodes on the new key, has neither written nor missed any session.
    /// - A session that cannot be read or written stops no sweep: it is left alone, and reported by its key. Expired sessions
    ///   are left alone.
    ///
    /// ```
    /// # use session_cached_db::{CachedDb, Error};
    /// # use session_core::{Cache, Scan};
    /// # async fn example<C: Cache, P: Scan>(store: CachedDb<C, P>) -> Result<(), Error> {
    /// let mut after = None;
    /// loop {
    ///     let page = store.reseal(after.as_ref(), 500).await?;
    ///     after = page.next;
    ///     if after.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database is out of reach, is locked or does not answer; [`Error::CacheUnavailable`] when
    /// the cache does not answer and the outage policy of saves is to fail; [`Error::Closed`]; or [`Error::Interrupted`] when
    /// the runtime ends.
    ///
    /// # Cancel safety
    ///
    /// Goes on to the end of the page if the future is dropped; [`close`](Self::close) waits for it.
    pub fn reseal(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<SweepPage, Error>> + Send {
        self.inner.sweep(Sweep::Reseal, after, limit)
    }

    /// Gives hashed keys to those sessions of one page of the table that are stored under plain keys, in a table from before
    /// keys were hashed. With [`Builder::accept_plain_keys`](crate::Builder::accept_plain_keys), a session that is opened
    /// meanwhile gets a hashed key as well. No client is logged out, and no session lives longer for it.
    ///
    /// # Behavior
    ///
    /// - Goes through the page as [`reseal`](Self::reseal) does.
    /// - A key that looks like a hashed key with this store's prefix counts as one. A key that cannot be a session key is left
    ///   alone.
    ///
    /// # Errors
    ///
    /// The errors of [`reseal`](Self::reseal).
    ///
    /// # Cancel safety
    ///
    /// Goes on to the end of the page if the future is dropped; [`close`](Self::close) waits for it.
    pub fn hash_plain_keys(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<SweepPage, Error>> + Send {
        self.inner.sweep(Sweep::HashKeys, after, limit)
    }
}

/// The purpose of a sweep.
#[derive(Clone, Copy, Debug)]
enum Sweep {
    Reseal,
    HashKeys,
}

/// The outcome for one session of a sweep.
enum Rewritten {
    Yes,
    NotDue,
    Unreadable,
}

impl<C: Cache, P: Scan> Inner<C, P> {
    /// Works through one page. Goes on if the returned future is dropped.
    fn sweep(
        self: &Arc<Self>,
        sweep: Sweep,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<SweepPage, Error>> + Send + use<C, P> {
        let (store, after) = (Arc::clone(self), after.copied());
        self.tasks.run(async move { store.sweep_page(sweep, after, limit.max(1)).await })
    }

    async fn sweep_page(
        self: &Arc<Self>,
        sweep: Sweep,
        after: Option<StoredKey>,
        limit: u32,
    ) -> Result<SweepPage, Error> {
        let page = self.db.scan(after.as_ref(), limit).await?;
        let mut swept = SweepPage::default();
        if u32::try_from(page.len()).is_ok_and(|len| len >= limit) {
            swept.next = page.last().map(|row| row.key);
        }
        // Plain keys have no prefix, so `owns` leaves them out in a store that has one and does not accept
        // them.
        let is_due = |key: &StoredKey| {
            self.settings.owns(key) || matches!(sweep, Sweep::HashKeys) && self.settings.is_plain(key)
        };
        let due: Vec<_> = page.into_iter().filter(|row| is_due(&row.key)).collect();
        let work = due.into_iter().map(|row| async move {
            let key = row.key;
            // A codec of the application may panic over one session.
            let done = AssertUnwindSafe(self.sweep_row(sweep, row)).catch_unwind().await;
            (key, done.unwrap_or(Err(Error::Interrupted)))
        });
        // One after another, to leave the database to requests; but each wait for the other nodes would add up.
        let side_by_side = if self.cache.is_near() { SIDE_BY_SIDE_NEAR } else { 1 };
        let mut work = stream::iter(work).buffered(side_by_side);
        while let Some((key, done)) = work.next().await {
            swept.seen += 1;
            match done {
                Ok(Rewritten::Yes) => swept.written += 1,
                Ok(Rewritten::NotDue) => {}
                Ok(Rewritten::Unreadable) => swept.unreadable.push(key),
                Err(Error::Conflict | Error::SessionGone | Error::AlreadyExists) => swept.missed += 1,
                Err(error) if error.is_row_error() => swept.unreadable.push(key),
                Err(error) if self.stops_sweep(&error) => return Err(error),
                Err(error) => {
                    self.note_failed_row(&key, &error);
                    swept.failed.push(key);
                }
            }
        }
        Ok(swept)
    }

    /// Returns `true` if the next sessions of the sweep would fail in the same way, after a wait.
    fn stops_sweep(&self, error: &Error) -> bool {
        match error {
            Error::Database(error) => error.is_retryable(),
            Error::CacheUnavailable => !self.cache.answers(),
            Error::Closed => true,
            _ => false,
        }
    }

    fn note_failed_row(&self, key: &StoredKey, error: &Error) {
        if let Some(suppressed) = self.telemetry.log_limits.admit("row_not_rewritten", self.runtime.now()) {
            tracing::warn!(target: "session_cached_db", event = "row_not_rewritten", session = %self.telemetry.log_id(key), %error, suppressed,
                "a session could not be written in a sweep over the table; it is left as it was");
        }
    }

    /// Rewrites a session, if that is due.
    async fn sweep_row(self: &Arc<Self>, sweep: Sweep, row: Row<Record>) -> Result<Rewritten, Error> {
        let Row { key, contents, .. } = row;
        let record = match contents {
            Ok(record) => Arc::new(record),
            Err(error) => {
                self.note_unreadable_row(&key, &Error::Database(Arc::new(error)));
                return Ok(Rewritten::Unreadable);
            }
        };
        if record.is_expired(self.runtime.now()) {
            return Ok(Rewritten::NotDue);
        }
        let was_due = match sweep {
            Sweep::Reseal => self.reseal(&key, &record).await?,
            Sweep::HashKeys => self.hash_key(&key, &record).await?,
        };
        Ok(if was_due { Rewritten::Yes } else { Rewritten::NotDue })
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Encodes a session again, if that is due. Returns `true` if it was.
    async fn reseal(self: &Arc<Self>, key: &StoredKey, record: &Arc<Record>) -> Result<bool, Error> {
        if self.codec.is_current(record.payload()) {
            return Ok(false);
        }
        self.encode_again(key, None, record, Admission::Continuation).await?;
        Ok(true)
    }

    /// Gives a session that is stored under a plain key its hashed key. Returns `true` if it had a plain one.
    async fn hash_key(self: &Arc<Self>, key: &StoredKey, record: &Arc<Record>) -> Result<bool, Error> {
        let Ok(session_key) = SessionKey::parse(key.as_str()) else { return Ok(false) };
        if self.settings.key_form != KeyForm::Hashed || !self.settings.may_be_plain(&session_key) {
            return Ok(false);
        }
        let Ok(hashed) = self.settings.stored_key(&session_key) else { return Ok(false) };
        self.encode_again(key, Some(hashed), record, Admission::Continuation).await?;
        Ok(true)
    }

    /// Encodes the session under `key` again, and moves it to the key `rename` if there is one. It lives no longer for it.
    async fn encode_again(
        self: &Arc<Self>,
        key: &StoredKey,
        rename: Option<StoredKey>,
        record: &Arc<Record>,
        admission: Admission,
    ) -> Result<Saved, Error> {
        let data = record.data(key, &*self.codec).map_err(|error| self.unreadable(key, error))?;
        let payload = self.codec.encode(rename.as_ref().unwrap_or(key), &data);
        let payload = payload.map_err(Error::of_encoding)?;
        let encoded = Record::clone(record).with_payload(payload);
        let expected = Some(record.version());
        let update = Update { record: encoded, expected, expiry: ExpiryWrite::Extend, rename };
        self.write(key, admission, |reply| Job::Update(update, reply)).await
    }

    /// Finds the session of `key`, which is not stored under `hashed`, under the plain key, and moves it to its hashed key.
    /// Returns the key under which it is stored now, and the session.
    pub(crate) async fn adopt_plain(
        self: &Arc<Self>,
        key: &SessionKey,
        hashed: &StoredKey,
    ) -> Result<Option<(StoredKey, Loaded)>, Error> {
        // A key that looks like a hashed key may be the stored key of another session, copied from the table.
        let plain = match StoredKey::parse(key.expose()) {
            Ok(plain) if self.settings.may_be_plain(key) => plain,
            _ => return Ok(None),
        };
        if let Some(loaded) = self.load_readable(&plain).await? {
            match self.encode_again(&plain, Some(*hashed), &loaded.record, Admission::New).await {
                Ok(saved) => return Ok(Some((*hashed, saved.loaded))),
                // Another request has moved the session, or has written or ended it.
                Err(Error::SessionGone | Error::AlreadyExists | Error::Conflict) => {}
                Err(error) => {
                    let limits = &self.telemetry.log_limits;
                    if let Some(suppressed) = limits.admit("plain_key_kept", self.runtime.now()) {
                        tracing::warn!(target: "session_cached_db", event = "plain_key_kept", session = %self.telemetry.log_id(&plain), %error, suppressed,
                            "a session could not be given a hashed key; it is served under its plain one");
                    }
                    return Ok(Some((plain, loaded)));
                }
            }
        }
        // The session may have got its hashed key between the two loads.
        if let Some(loaded) = self.load_readable(hashed).await? {
            return Ok(Some((*hashed, loaded)));
        }
        Ok(self.load_readable(&plain).await?.map(|loaded| (plain, loaded)))
    }
}
