//! What is done to all sessions of a table, a page at a time.

use std::pin::pin;
use std::sync::Arc;

use session_core::{Cache, ExpiryWrite, KeyForm, Persistence, Record, Row, Scan, SessionKey, StoredKey};

use crate::flight::Loaded;
use crate::inner::Inner;
use crate::operations::Saved;
use crate::queue::Update;
use crate::tasks::Admission;
use crate::{CachedDb, Error};

/// What was done to a page of a table. See [`CachedDb::reseal`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweepPage {
    /// Sessions that were looked at, expired ones too.
    pub seen: u64,
    /// Those that were written.
    pub written: u64,
    /// Those that would have been, but somebody else wrote or ended them at the same time. Sweep once more.
    pub missed: u64,
    /// Those that cannot be read. Their rows were left alone, each with an event; [`revoke`](crate::CachedDb::revoke) ends
    /// such a session.
    pub unreadable: Vec<StoredKey>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<StoredKey>,
}

impl<C: Cache, P: Scan> CachedDb<C, P> {
    /// Encodes the sessions of one page of the table anew, as far as their payloads are not
    /// [current](session_core::Codec::is_current): after the sealing key was changed, or for a table that was not
    /// sealed before. Nobody is logged out, and no session lives longer by it.
    ///
    /// # Behavior
    ///
    /// - Begins after the key `after`, or with the first one, and looks at `limit` sessions at most.
    /// - Every session is written by itself, against the version that was read, as a save is. So it can run while the
    ///   store is in use, on several nodes, and can be stopped at any time and begun again.
    /// - The work is done when a whole sweep, with all nodes on the new key, has neither written nor missed anything.
    /// - What cannot be read is counted and left alone, and so is what has expired.
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
    /// [`Error::Database`] when the database does not answer; [`Error::Closed`]; or the error of a write.
    ///
    /// # Cancel safety
    ///
    /// The page is gone through to its end by a task of its own; [`close`](Self::close) waits for it.
    pub fn reseal(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<SweepPage, Error>> + Send {
        self.inner.sweep(Sweep::Reseal, after, limit)
    }

    /// Gives the sessions of one page of the table hashed keys, as far as they are stored under plain ones: for a table
    /// from before. See [`Builder::accept_plain_keys`](crate::Builder::accept_plain_keys), by which a session that is
    /// opened meanwhile gets one as well. Nobody is logged out, and no session lives longer by it.
    ///
    /// # Behavior
    ///
    /// - As [`reseal`](Self::reseal).
    /// - What looks like a hashed key with this store's prefix counts as one. What can be no session key at all is left
    ///   alone.
    ///
    /// # Errors
    ///
    /// As [`reseal`](Self::reseal).
    ///
    /// # Cancel safety
    ///
    /// As [`reseal`](Self::reseal).
    pub fn hash_plain_keys(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<SweepPage, Error>> + Send {
        self.inner.sweep(Sweep::HashKeys, after, limit)
    }
}

/// What a sweep does.
#[derive(Clone, Copy, Debug)]
enum Sweep {
    Reseal,
    HashKeys,
}

impl<C: Cache, P: Scan> Inner<C, P> {
    /// Goes on with the page if the returned future is dropped.
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
        let page = self.bounded_read(pin!(self.db.scan(after.as_ref(), limit))).await?;
        let mut swept = SweepPage::default();
        if u32::try_from(page.len()).is_ok_and(|len| len >= limit) {
            swept.next = page.last().map(|row| row.key);
        }
        for Row { key, contents, .. } in page.into_iter().filter(|row| self.config.owns(&row.key)) {
            swept.seen += 1;
            let record = match contents {
                Ok(record) => Arc::new(record),
                Err(error) => {
                    self.note_unreadable_row(&key, &Error::Database(Arc::new(error)));
                    swept.unreadable.push(key);
                    continue;
                }
            };
            if record.is_expired(self.runtime.now()) {
                continue;
            }
            let done = match sweep {
                Sweep::Reseal => self.reseal(&key, &record).await,
                Sweep::HashKeys => self.hash_key(&key, &record).await,
            };
            match done {
                Ok(true) => swept.written += 1,
                Ok(false) => {}
                Err(Error::Conflict | Error::SessionGone | Error::AlreadyExists) => swept.missed += 1,
                Err(error) if error.is_row_error() => swept.unreadable.push(key),
                Err(error) => return Err(error),
            }
        }
        Ok(swept)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// The record that is stored under `from`, encoded to be stored under `to`, and otherwise the same.
    fn encoded_anew(&self, from: &StoredKey, to: &StoredKey, record: &Arc<Record>) -> Result<Record, Error> {
        let data = record.data(from, &*self.codec).map_err(|error| self.unreadable(from, error))?;
        let payload = self.codec.encode(to, &data).map_err(|error| Error::Unencodable(Arc::new(error)))?;
        Ok(Record::new(payload, record.created_at(), record.expires_at())
            .with_last_seen_at(record.last_seen_at())
            .with_subject(record.subject().cloned()))
    }

    /// Encodes a session anew, if that is due; whether it was.
    async fn reseal(self: &Arc<Self>, key: &StoredKey, record: &Arc<Record>) -> Result<bool, Error> {
        if self.codec.is_current(record.payload()) {
            return Ok(false);
        }
        let anew = self.encoded_anew(key, key, record)?;
        let expected = Some(record.version());
        let update = Update { record: anew, expected, expiry: ExpiryWrite::Extend, rename: None };
        self.update(*key, update, Admission::Continuation).await?;
        Ok(true)
    }

    /// Gives a session that is stored under a plain key its hashed one; whether it was.
    async fn hash_key(self: &Arc<Self>, key: &StoredKey, record: &Arc<Record>) -> Result<bool, Error> {
        let Ok(session_key) = SessionKey::parse(key.as_str()) else { return Ok(false) };
        if self.config.key_form != KeyForm::Hashed || !self.config.may_be_plain(&session_key) {
            return Ok(false);
        }
        let Ok(hashed) = self.config.stored_key(&session_key) else { return Ok(false) };
        self.rename_plain(key, &hashed, record, Admission::Continuation).await?;
        Ok(true)
    }

    async fn rename_plain(
        self: &Arc<Self>,
        plain: &StoredKey,
        hashed: &StoredKey,
        record: &Arc<Record>,
        admission: Admission,
    ) -> Result<Saved, Error> {
        let anew = self.encoded_anew(plain, hashed, record)?;
        let expected = Some(record.version());
        let update = Update { record: anew, expected, expiry: ExpiryWrite::Extend, rename: Some(*hashed) };
        self.update(*plain, update, admission).await
    }

    /// The session of `key`, which is not stored under `hashed`, if it is still stored under the plain key: under its
    /// hashed key from now on. Gives what it is stored under.
    pub(crate) async fn adopt_plain(
        self: &Arc<Self>,
        key: &SessionKey,
        hashed: &StoredKey,
    ) -> Result<Option<(StoredKey, Loaded)>, Error> {
        // What looks like a hashed key may be that of another session, which somebody has seen in the table.
        let plain = match StoredKey::parse(key.expose()) {
            Ok(plain) if self.config.may_be_plain(key) => plain,
            _ => return Ok(None),
        };
        if let Some(loaded) = self.load_readable(&plain).await? {
            match self.rename_plain(&plain, hashed, &loaded.record, Admission::New).await {
                Ok(saved) => return Ok(Some((*hashed, saved.loaded))),
                // Somebody else did it, or has written or ended it.
                Err(Error::SessionGone | Error::AlreadyExists | Error::Conflict) => {}
                Err(error) => {
                    tracing::warn!(target: "session_cached_db", event = "plain_key_kept", session = %self.name(&plain), %error,
                        "a session could not be given a hashed key; it is served under its plain one");
                    return Ok(Some((plain, loaded)));
                }
            }
        }
        // It may have got its hashed key between the two looks.
        if let Some(loaded) = self.load_readable(hashed).await? {
            return Ok(Some((*hashed, loaded)));
        }
        Ok(self.load_readable(&plain).await?.map(|loaded| (plain, loaded)))
    }
}
