//! What can be done to a stored session, by its stored key. Each write runs in a task of its own.

use std::pin::pin;
use std::sync::Arc;

use session_core::{
    Cache, Expiry, ExpiryWrite, Outcome, Persistence, Record, SessionData, Stamp, StoredKey, Subject,
    SubjectIndex, Timestamp, Value, Version,
};
use tracing::{Instrument as _, Span};

use crate::events::{Ending, Revocation};
use crate::flight::Loaded;
use crate::inner::Inner;
use crate::write::Write;
use crate::{Coherence, ConflictPolicy, EXPIRY_KEY, Error, Operation};

/// How often a save is merged again before it gives up. Each time, somebody else's save has succeeded.
const MAX_MERGES: u32 = 256;

/// How often a subject's sessions are listed again. Each time, some were there to be ended.
const MAX_REVOCATIONS: u32 = 256;

/// What a write has brought about.
#[derive(Clone, Debug)]
pub struct Written<T> {
    /// What it has written or found.
    pub value: T,
    /// How far caches are to be trusted with it.
    pub coherence: Coherence,
}

/// A write of a session whose data was changed, against the state that it was read in.
#[derive(Clone, Debug)]
pub(crate) struct Save {
    /// The record as it was loaded.
    pub(crate) base: Arc<Record>,
    /// The stamp it had in the cache.
    pub(crate) seen: Option<Stamp>,
    /// Its data, with the changes.
    pub(crate) data: SessionData,
    /// A new subject, or none; or nothing new.
    pub(crate) subject: Option<Option<Subject>>,
    /// Another key for it.
    pub(crate) rename: Option<StoredKey>,
}

impl Save {
    /// Whether this and somebody else, who has made `fresh` of the session, gave it to different subjects.
    fn overlaps_subject(&self, fresh: &Record) -> bool {
        self.subject
            .as_ref()
            .is_some_and(|mine| fresh.subject() != self.base.subject() && fresh.subject() != mine.as_ref())
    }
}

impl From<Saved> for Written<Arc<Record>> {
    fn from(saved: Saved) -> Self {
        Self { value: saved.loaded.record, coherence: saved.coherence }
    }
}

/// A session as a write has left it.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) loaded: Loaded,
    pub(crate) coherence: Coherence,
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Adds a session under `key`.
    pub(crate) async fn create(self: &Arc<Self>, key: StoredKey, record: Record) -> Result<Saved, Error> {
        self.check_size(&record)?;
        let store = Arc::clone(self);
        let span = self.span("create", &key);
        self.tasks.run(async move { store.create_now(key, record).await }.instrument(span)).await
    }

    async fn create_now(self: &Arc<Self>, key: StoredKey, record: Record) -> Result<Saved, Error> {
        mutant!(PublishOverVacancy => return self.create_over_vacancy(key, record).await);
        let lease = self.lease_new(&key).await;
        let made_at = self.runtime.now();
        let inserted = self.bounded(pin!(self.db.insert(&key, &record))).await;
        match inserted {
            Ok(version) => {
                let record = Arc::new(record.with_version(version));
                let value = Value { record: Arc::clone(&record), made_at };
                let stamp = self.settle_new(&key, lease, Some(value)).await;
                self.tell(|events| events.created(&key, &record));
                if let Some(subject) = record.subject() {
                    self.limit_sessions(subject).await;
                }
                Ok(Saved { loaded: Loaded { record, stamp }, coherence: Coherence::Coherent })
            }
            Err(error) => {
                if error.outcome() == Outcome::Definite {
                    self.settle_new(&key, lease, None).await;
                }
                Err(error)
            }
        }
    }

    /// What a write of the session under `key` is done in.
    fn span(&self, operation: &'static str, key: &StoredKey) -> Span {
        tracing::debug_span!(target: "session_cached_db", "session_write", operation, session = %self.name(key))
    }

    /// Replaces the session under `key` by `record`.
    pub(crate) async fn update(
        self: &Arc<Self>,
        key: StoredKey,
        record: Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
    ) -> Result<Saved, Error> {
        self.check_size(&record)?;
        let store = Arc::clone(self);
        let span = self.span("save", &key);
        let task = async move {
            let mut write = Write::begin(&store, Operation::Save, key, None).await?;
            let made_at = store.runtime.now();
            let result =
                write.statement(pin!(store.db.update(&key, &record, expected, expiry, made_at))).await;
            mutant!(UpsertingSave => if matches!(result, Err(Error::SessionGone)) {
                let result = write.statement(pin!(store.db.insert(&key, &record))).await;
                let result = result.map(|version| record.with_version(version));
                return store.saved(write, None, result, made_at).await;
            });
            store.saved(write, None, result.map(|version| record.with_version(version)), made_at).await
        };
        self.tasks.run(task.instrument(span)).await
    }

    /// Gives the session under `old` the key `new`, and writes `record` to it.
    pub(crate) async fn rename(
        self: &Arc<Self>,
        old: StoredKey,
        new: StoredKey,
        record: Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
    ) -> Result<Saved, Error> {
        self.check_size(&record)?;
        let store = Arc::clone(self);
        let span = self.span("rename", &old);
        let task = async move {
            let mut write = Write::begin(&store, Operation::Rename, old, None).await?;
            let lease = store.lease_new(&new).await;
            let made_at = store.runtime.now();
            let result =
                write.statement(pin!(store.db.rename(&old, &new, &record, expected, expiry, made_at))).await;
            let result = result.map(|version| record.with_version(version));
            store.saved(write, Some((new, lease)), result, made_at).await
        };
        self.tasks.run(task.instrument(span)).await
    }

    /// Writes changed data over whatever the session has become, if it still is.
    pub(crate) async fn save(self: &Arc<Self>, key: StoredKey, save: Save) -> Result<Saved, Error> {
        let store = Arc::clone(self);
        let span = self.span(if save.rename.is_some() { "rename" } else { "save" }, &key);
        self.tasks.run(async move { store.save_now(key, save).await }.instrument(span)).await
    }

    async fn save_now(self: &Arc<Self>, key: StoredKey, mut save: Save) -> Result<Saved, Error> {
        // Before the fence: a session that cannot be written leaves no trace.
        let target = save.rename.unwrap_or(key);
        let mut prepared = self.prepare(&key, &target, &save)?;
        let operation = if save.rename.is_some() { Operation::Rename } else { Operation::Save };
        let mut write = Write::begin(self, operation, key, save.seen).await?;
        let new_key = match save.rename {
            Some(new) => Some((new, Box::pin(self.lease_new(&new)).await)),
            None => None,
        };
        let mut merges = 0;
        loop {
            let made_at = self.runtime.now();
            let (record, expiry) = &prepared;
            let expected = Some(save.base.version());
            let result = match save.rename {
                None => write.statement(pin!(self.db.update(&key, record, expected, *expiry, made_at))).await,
                // Boxed, as all that is rare here: every save's future would have room for it.
                Some(new) => {
                    let mut rename = Box::pin(self.db.rename(&key, &new, record, expected, *expiry, made_at));
                    write.statement(rename.as_mut()).await
                }
            };
            let result = match result {
                Err(Error::Conflict) if merges < MAX_MERGES => Box::pin(self.merge(&key, &mut save)).await,
                result => {
                    let result = result.map(|version| prepared.0.with_version(version));
                    let saved = self.saved(write, new_key, result, made_at).await?;
                    if let (Some(Some(subject)), before) = (&save.subject, save.base.subject())
                        && before != Some(subject)
                    {
                        Box::pin(self.limit_sessions(subject)).await;
                    }
                    return Ok(saved);
                }
            };
            merges += 1;
            self.counters.merges.bump();
            match result.and_then(|()| self.prepare(&key, &target, &save)) {
                Ok(again) => prepared = again,
                Err(error) => return self.saved(write, new_key, Err(error), made_at).await,
            }
        }
    }

    /// Applies the changes of `save` to what the session has become.
    async fn merge(&self, key: &StoredKey, save: &mut Save) -> Result<(), Error> {
        let fresh = self.read(key).await.map_err(Error::Database)?.ok_or(Error::SessionGone)?.record;
        let data = fresh.data(key, &*self.codec).map_err(|error| self.unreadable(key, error))?;
        let overlaps = save.data.overlaps(&data) || save.overlaps_subject(&fresh);
        if self.config.conflict_policy == ConflictPolicy::Reject && overlaps {
            return Err(Error::Conflict);
        }
        let mut merged = save.data.rebase(&data);
        if !self.changes_expiry(key, save) {
            // A clear is not meant for the expiry, but removes what somebody else has chosen.
            match data.get(EXPIRY_KEY) {
                // It was read from there, so it is JSON.
                Some(theirs) => drop(merged.insert(EXPIRY_KEY, theirs.to_owned())),
                None => drop(merged.remove(EXPIRY_KEY)),
            }
        }
        save.data = merged;
        save.base = fresh;
        Ok(())
    }

    /// Whether `save`, of the session under `key`, chooses another expiry.
    fn changes_expiry(&self, key: &StoredKey, save: &Save) -> bool {
        let before = save.base.data(key, &*self.codec).unwrap_or_default();
        save.data.get(EXPIRY_KEY) != before.get(EXPIRY_KEY)
    }

    /// The record that `save`, of the session under `key`, writes under `target`, and what becomes of the expiry.
    fn prepare(
        &self,
        key: &StoredKey,
        target: &StoredKey,
        save: &Save,
    ) -> Result<(Record, ExpiryWrite), Error> {
        let base = &save.base;
        let subject = save.subject.clone().unwrap_or_else(|| base.subject().cloned());
        let record = self.record(target, &save.data, base.created_at(), subject)?;
        let expiry = if self.changes_expiry(key, save) { ExpiryWrite::Replace } else { ExpiryWrite::Extend };
        Ok((record, expiry))
    }

    /// A record of `data`, last used now.
    pub(crate) fn record(
        &self,
        key: &StoredKey,
        data: &SessionData,
        created_at: Timestamp,
        subject: Option<Subject>,
    ) -> Result<Record, Error> {
        self.check_keys(data)?;
        let now = self.runtime.now();
        let payload = self.codec.encode(key, data).map_err(|error| Error::Unencodable(Arc::new(error)))?;
        let expires_at = self.config.expires_at(expiry_of(data), created_at, now);
        let record =
            Record::new(payload, created_at, expires_at).with_last_seen_at(now).with_subject(subject);
        self.check_size(&record)?;
        Ok(record)
    }

    /// Settles `write`, and the lease of a new key, after a statement that has left `result`.
    async fn saved(
        &self,
        write: Write<'_, C, P>,
        new_key: Option<(StoredKey, Option<Stamp>)>,
        result: Result<Record, Error>,
        made_at: Timestamp,
    ) -> Result<Saved, Error> {
        if matches!(result, Err(Error::Conflict)) {
            self.counters.conflicts.bump();
        }
        let definite = result.as_ref().err().is_none_or(|error| error.outcome() == Outcome::Definite);
        let record = result.map(Arc::new);
        let value = record.as_ref().ok().map(|record| Value { record: Arc::clone(record), made_at });
        let old = *write.key();
        let (stamp, coherence) = match new_key {
            None => write.settle(value).await,
            Some((new, lease)) => {
                // The old key comes first: it is the one that must not be served any more.
                let (_, coherence) = write.settle(None).await;
                let stamp = if definite { Box::pin(self.settle_new(&new, lease, value)).await } else { None };
                (stamp, coherence)
            }
        };
        let record = record?;
        if let Some((new, _)) = &new_key {
            self.tell(|events| events.renewed(&old, new, &record));
        }
        Ok(Saved { loaded: Loaded { record, stamp }, coherence })
    }

    /// Lets the session under `key` live until `expires_at`.
    pub(crate) async fn touch(
        self: &Arc<Self>,
        key: StoredKey,
        seen: Option<Stamp>,
        expires_at: Timestamp,
    ) -> Result<Coherence, Error> {
        let store = Arc::clone(self);
        let span = self.span("touch", &key);
        let task = async move {
            mutant!(TouchPublishes => return store.touch_and_publish(key, expires_at).await);
            let mut write = Write::begin(&store, Operation::Touch, key, seen).await?;
            let touched = write.statement(pin!(store.db.touch(&key, expires_at, store.runtime.now()))).await;
            // The record that was loaded may not be the present one: nothing is published.
            let (_, coherence) = write.settle(None).await;
            touched.map(|()| coherence)
        };
        self.tasks.run(task.instrument(span)).await
    }

    /// Removes the session under `key`; whether there was one.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        key: StoredKey,
        seen: Option<Stamp>,
        ending: Ending,
    ) -> Result<Written<bool>, Error> {
        let store = Arc::clone(self);
        let span = self.span("delete", &key);
        let task = async move {
            let mut write = Write::begin(&store, Operation::Delete, key, seen).await?;
            let deleted = write.statement(pin!(store.db.delete(&key))).await;
            let (_, coherence) = write.settle(None).await;
            if let Ok(true) = deleted {
                store.tell(|events| match ending {
                    Ending::Destroyed => events.destroyed(&key),
                    Ending::Revoked(cause) => events.revoked(&key, cause),
                });
            }
            deleted.map(|value| Written { value, coherence })
        };
        self.tasks.run(task.instrument(span)).await
    }

    fn check_keys(&self, data: &SessionData) -> Result<(), Error> {
        let Some(limit) = self.config.max_keys else { return Ok(()) };
        // What the session keeps for itself does not count.
        let actual = data.len() - usize::from(data.contains(EXPIRY_KEY));
        if actual > limit { Err(Error::TooManyKeys { actual, limit }) } else { Ok(()) }
    }

    fn check_size(&self, record: &Record) -> Result<(), Error> {
        let (actual, limit) = (record.payload().len(), self.config.max_payload_bytes);
        if actual > limit { Err(Error::TooLarge { actual, limit }) } else { Ok(()) }
    }
}

impl<C: Cache, P: SubjectIndex> Inner<C, P> {
    /// The sessions of `subject`.
    pub(crate) async fn list_by_subject(&self, subject: &Subject) -> Result<Vec<(StoredKey, Record)>, Error> {
        let list = pin!(self.db.list_by_subject(subject, self.runtime.now()));
        self.bounded_read(list).await.map_err(Error::Database)
    }

    /// Ends all sessions of `subject`; how many.
    pub(crate) async fn revoke_subject(self: &Arc<Self>, subject: &Subject) -> Result<Written<u64>, Error> {
        let mut revoked = Written { value: 0, coherence: Coherence::Coherent };
        for _ in 0..MAX_REVOCATIONS {
            let sessions = self.list_by_subject(subject).await?;
            if sessions.is_empty() {
                return Ok(revoked);
            }
            for (key, _) in sessions {
                let deleted = self.delete(key, None, Ending::Revoked(Revocation::Subject)).await?;
                revoked.value += u64::from(deleted.value);
                revoked.coherence = revoked.coherence.and(deleted.coherence);
            }
            mutant!(RevokeListsOnce => return Ok(revoked));
        }
        Err(Error::Conflict)
    }
}

/// The expiry that a session has chosen for itself.
pub(crate) fn expiry_of(data: &SessionData) -> Option<Expiry> {
    data.get(EXPIRY_KEY).and_then(Expiry::from_json)
}
