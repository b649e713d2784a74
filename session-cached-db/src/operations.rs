//! What can be done to a stored session, by its stored key. Each write runs in a task of its own.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use session_core::{
    Cache, Expiry, ExpiryWrite, Outcome, Persistence, Record, Row, SessionData, SessionTimes, Stamp,
    StoredKey, Subject, SubjectIndex, Timestamp, Version,
};
use tracing::{Instrument as _, Span};

use crate::events::{Ending, Revocation};
use crate::flight::Loaded;
use crate::inner::Inner;
use crate::queue::{Job, Latest, Touch, Update, Waiting};
use crate::tasks::Admission;
use crate::write::Write;
use crate::{Coherence, ConflictPolicy, EXPIRY_KEY, Error, Operation};

/// How often a subject's sessions are listed again. Each time, some were there to be ended.
const MAX_REVOCATIONS: u32 = 256;

/// How many of a subject's sessions are listed at a time.
const PAGE: u32 = 1_000;

/// How many sessions are ended at the same time.
const SIDE_BY_SIDE: usize = 16;

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
    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self) -> u64 {
        use crate::simulation::digest_of;
        let data: Vec<_> = self.data.iter().collect();
        let rename = self.rename.map(|key| key.as_str().to_owned());
        digest_of((data, self.base.version().as_u64(), self.seen, self.subject.is_some(), rename))
    }

    /// What it is composed onto: `committed`, which this process has committed last, is newer than what the save began with.
    fn latest_base(&self, committed: Option<Arc<Record>>) -> Arc<Record> {
        mutant!(BaseNotRenewed => return crate::simulation::base_as_loaded(&self.base, committed.as_ref()));
        committed.unwrap_or_else(|| Arc::clone(&self.base))
    }

    /// Whether this and another request, since which the session is that of `theirs`, gave it to different subjects.
    fn overlaps_subject(&self, theirs: Option<&Subject>) -> bool {
        let is_other = |mine: &Option<Subject>| theirs != self.base.subject() && theirs != mine.as_ref();
        self.subject.as_ref().is_some_and(is_other)
    }

    /// The subject that this gives the session, unless it is the one that it had.
    fn new_subject(&self) -> Option<&Subject> {
        let subject = self.subject.as_ref()?.as_ref();
        subject.filter(|_| subject != self.base.subject())
    }
}

/// Saves applied to a session, one after the other.
struct Sum {
    /// The record that the first of them was applied to.
    base: Arc<Record>,
    /// What has become of its data. `None` as long as nothing was applied.
    data: Option<SessionData>,
    subject: Option<Option<Subject>>,
    expiry: ExpiryWrite,
}

impl Sum {
    const fn of(base: Arc<Record>) -> Self {
        Self { base, data: None, subject: None, expiry: ExpiryWrite::Extend }
    }

    fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref().map_or(self.base.subject(), Option::as_ref)
    }
}

/// Whether a save was applied.
enum Applied {
    Yes,
    Rejected,
}

/// A record to be written, if the session still has this version.
struct Draft {
    expected: Version,
    record: Record,
    expiry: ExpiryWrite,
}

/// What saves were composed to.
enum Composed {
    Write(Draft),
    /// All of them were rejected.
    Nothing,
    /// What they are composed onto has to be read before one of them is rejected.
    MustRead,
}

/// Where the record comes from that saves are composed onto.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    /// From what this process has read or written before.
    Remembered,
    /// From the database, now.
    Read,
}

impl From<Saved> for Written<Arc<Record>> {
    fn from(saved: Saved) -> Self {
        Self { value: saved.loaded.record, coherence: saved.coherence }
    }
}

/// A session as a write has left it.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub(crate) key: StoredKey,
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
                let value = self.value(&record, made_at);
                let stamp = self.settle_new(&key, lease, Some(value)).await;
                self.tell(|events| events.created(&key, &record));
                if let Some(subject) = record.subject() {
                    self.limit_sessions(subject, &key).await;
                }
                Ok(Saved { key, loaded: Loaded { record, stamp }, coherence: Coherence::Coherent })
            }
            Err(error) => {
                if error.outcome() == Outcome::NotApplied {
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

    /// Replaces the session under `key` by what is in `update`, or gives it another key besides.
    pub(crate) fn update(
        self: &Arc<Self>,
        key: StoredKey,
        update: Update,
        admission: Admission,
    ) -> impl Future<Output = Result<Saved, Error>> + Send + use<C, P> {
        let span = self.span(if update.rename.is_some() { "rename" } else { "save" }, &key);
        let queued = self
            .check_size(&update.record)
            .map(|()| self.enqueue(&key, admission, span, move |reply| Job::Update(update, reply)));
        async move { queued?.await }
    }

    /// Writes changed data over whatever the session has become, if it still is.
    pub(crate) fn save(
        self: &Arc<Self>,
        key: StoredKey,
        save: Save,
    ) -> impl Future<Output = Result<Saved, Error>> + Send + use<C, P> {
        let span = self.span(if save.rename.is_some() { "rename" } else { "save" }, &key);
        self.enqueue(&key, Admission::New, span, move |reply| Job::Save(save, reply))
    }

    /// Lets the session under `key` live until `expires_at`, unless it was used after `idle_since`.
    pub(crate) fn touch(
        self: &Arc<Self>,
        key: StoredKey,
        touch: Touch,
    ) -> impl Future<Output = Result<Coherence, Error>> + Send + use<C, P> {
        let is_noted = self.queues.was_touched_since(&key, touch.idle_since);
        let queued = (!is_noted).then(|| {
            let span = self.span("touch", &key);
            self.enqueue(&key, Admission::New, span, move |reply| Job::Touch(touch, reply))
        });
        async move {
            match queued {
                Some(queued) => queued.await,
                None => Ok(Coherence::Coherent),
            }
        }
    }

    /// Removes the session under `key`. Returns whether there was one.
    pub(crate) fn delete(
        self: &Arc<Self>,
        key: StoredKey,
        seen: Option<Stamp>,
        ending: Ending,
        admission: Admission,
    ) -> impl Future<Output = Result<Written<bool>, Error>> + Send + use<C, P> {
        let span = self.span("delete", &key);
        self.enqueue(&key, admission, span, move |reply| Job::Delete(seen, ending, reply))
    }

    /// Carries out a write whose turn it is, and answers it.
    pub(crate) async fn carry_out(self: &Arc<Self>, key: &StoredKey, job: Job, latest: &mut Latest) {
        match job {
            Job::Save(save, reply) => {
                let result = self.rename_now(key, &save, latest).await;
                self.answer_saves(vec![(save, reply)], &result);
            }
            Job::Update(update, reply) => {
                let result = self.update_now(key, update, latest).await;
                let _ = reply.send(result);
            }
            Job::Touch(touch, reply) => {
                let result = self.touch_now(key, touch, latest).await;
                let _ = reply.send(result);
            }
            Job::Delete(seen, ending, reply) => {
                let result = self.delete_now(key, seen, ending, latest).await;
                let _ = reply.send(result);
            }
            Job::Repair(repair) => self.repair(repair).await,
        }
    }

    /// Writes all of `saves` with one statement, as if one came right after the other.
    pub(crate) async fn save_all(
        self: &Arc<Self>,
        key: &StoredKey,
        mut saves: Vec<Waiting>,
        latest: &mut Latest,
    ) {
        let Some((first, _)) = saves.first() else { return };
        let Latest { record, stamp } = std::mem::take(latest);
        let base = first.latest_base(record);
        let seen = stamp.or(first.seen);
        // A codec of the application's may panic over one of them: then each for itself, too.
        let compose = AssertUnwindSafe(|| self.compose(key, base, &mut saves, Base::Remembered));
        let composed = match catch_unwind(compose) {
            Ok(composed) => composed,
            Err(_) if saves.len() > 1 => return self.save_one_by_one(key, saves, latest).await,
            Err(panic) => resume_unwind(panic),
        };
        let composed = match composed {
            Ok(Composed::MustRead) => self.compose_anew(key, &mut saves).await,
            composed => composed,
        };
        let mut draft = match composed {
            Ok(Composed::Write(draft)) => draft,
            Ok(Composed::Nothing | Composed::MustRead) => return,
            // One of them is to blame: each for itself.
            Err(error) if saves.len() > 1 && error.is_data_error() => {
                return self.save_one_by_one(key, saves, latest).await;
            }
            Err(error) => return self.answer_saves(saves, &Err(error)),
        };
        mutant!(BatchAnswersEarly => if saves.len() > 1 {
            let loaded = Loaded { record: Arc::new(draft.record.clone()), stamp: None };
            let saved = Saved { key: *key, loaded, coherence: Coherence::Coherent };
            self.answer_saves(std::mem::take(&mut saves), &Ok(saved));
        });
        let mut write = match Write::begin(self, Operation::Save, *key, seen).await {
            Ok(write) => write,
            Err(error) => return self.answer_saves(saves, &Err(error)),
        };
        let mut conflicts = 0;
        let (result, made_at) = loop {
            let made_at = self.runtime.now();
            let result = {
                let Draft { expected, record, expiry } = &draft;
                write.statement(pin!(self.db.update(key, record, Some(*expected), *expiry, made_at))).await
            };
            if !matches!(result, Err(Error::Conflict)) || !write.may_try_again(conflicts).await {
                break (result.map(|version| draft.record.with_version(version)), made_at);
            }
            conflicts += 1;
            // Boxed, as all that is rare here: every save's future would have room for it.
            match Box::pin(self.compose_anew(key, &mut saves)).await {
                Ok(Composed::Write(anew)) => draft = anew,
                Ok(Composed::Nothing | Composed::MustRead) => {
                    write.settle(None).await;
                    return;
                }
                Err(error) if saves.len() > 1 && error.is_data_error() => {
                    write.settle(None).await;
                    return self.save_one_by_one(key, saves, latest).await;
                }
                Err(error) => break (Err(error), made_at),
            }
        };
        let result = self.saved(write, None, result, made_at).await;
        if let Ok(Saved { loaded, .. }) = &result {
            *latest = Latest { record: Some(Arc::clone(&loaded.record)), stamp: loaded.stamp };
        }
        self.answer_saves(saves, &result);
    }

    /// Writes each of `saves` with a statement of its own, because one of them is to blame for what befell all.
    fn save_one_by_one<'a>(
        self: &'a Arc<Self>,
        key: &'a StoredKey,
        saves: Vec<Waiting>,
        latest: &'a mut Latest,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            for save in saves {
                let alone = self.save_all(key, vec![save], latest);
                if AssertUnwindSafe(alone).catch_unwind().await.is_err() {
                    self.note_panic(key);
                    latest.forget();
                }
            }
        })
    }

    /// A write of `key` has panicked, in a codec or a hook of the application's.
    pub(crate) fn note_panic(&self, key: &StoredKey) {
        tracing::error!(target: "session_cached_db", event = "write_panicked", session = %self.name(key),
            "a write panicked, in a codec or a hook of the application's; whether it happened is unknown");
    }

    /// Answers saves that have become one statement, after the limits of the subjects that they brought were seen to.
    fn answer_saves(self: &Arc<Self>, saves: Vec<Waiting>, result: &Result<Saved, Error>) {
        for (save, reply) in saves {
            match (result, save.new_subject()) {
                (Ok(saved), Some(subject)) => self.limit_then_answer(subject, saved.clone(), reply),
                // A caller that has left needs no answer.
                _ => drop(reply.send(result.clone())),
            }
        }
    }

    /// Reads what the session has become, and composes `saves` onto that.
    async fn compose_anew(&self, key: &StoredKey, saves: &mut Vec<Waiting>) -> Result<Composed, Error> {
        let fresh = self.read(key).await?.ok_or(Error::SessionGone)?.record;
        self.compose(key, fresh, saves, Base::Read)
    }

    /// Applies the changes of `saves`, one after the other, to `base`. Saves that the conflict policy rejects are answered
    /// and taken away.
    fn compose(
        &self,
        key: &StoredKey,
        base: Arc<Record>,
        saves: &mut Vec<Waiting>,
        source: Base,
    ) -> Result<Composed, Error> {
        let mut sum = Sum::of(base);
        let mut rejected = Vec::new();
        for (number, (save, _)) in saves.iter().enumerate() {
            match self.apply(key, save, &mut sum)? {
                Applied::Yes => {}
                // Another process may have written since, and this save may have seen that.
                Applied::Rejected if source == Base::Remembered => return Ok(Composed::MustRead),
                Applied::Rejected => rejected.push(number),
            }
        }
        for number in rejected.into_iter().rev() {
            self.counters.conflicts.bump();
            drop(saves.remove(number).1.send(Err(Error::Conflict)));
        }
        if saves.is_empty() {
            return Ok(Composed::Nothing);
        }
        self.draft(key, sum).map(Composed::Write)
    }

    /// The record that `sum` becomes under `key`.
    fn draft(&self, key: &StoredKey, sum: Sum) -> Result<Draft, Error> {
        let Sum { base, data, subject, expiry } = sum;
        let subject = subject.unwrap_or_else(|| base.subject().cloned());
        let record = self.record(key, &data.unwrap_or_default(), base.created_at(), subject)?;
        Ok(Draft { expected: base.version(), record, expiry })
    }

    /// Applies the changes of `save` to `sum`, unless the conflict policy rejects them.
    fn apply(&self, key: &StoredKey, save: &Save, sum: &mut Sum) -> Result<Applied, Error> {
        let changes_expiry = self.changes_expiry(key, save);
        if sum.data.is_none() && sum.base.version() == save.base.version() {
            sum.data = Some(save.data.clone());
        } else {
            let theirs = match &sum.data {
                Some(data) => data,
                None => &sum.base.data(key, &*self.codec).map_err(|error| self.unreadable(key, error))?,
            };
            let overlaps = save.data.overlaps(theirs) || save.overlaps_subject(sum.subject());
            if self.config.conflict_policy == ConflictPolicy::Reject && overlaps {
                return Ok(Applied::Rejected);
            }
            let mut merged = save.data.rebase(theirs);
            if !changes_expiry {
                // A clear is not meant for the expiry, but removes what another request has chosen.
                match theirs.get(EXPIRY_KEY) {
                    // It was read from there, so it is JSON.
                    Some(theirs) => drop(merged.insert(EXPIRY_KEY, theirs.to_owned())),
                    None => drop(merged.remove(EXPIRY_KEY)),
                }
            }
            self.counters.merges.bump();
            sum.data = Some(merged);
        }
        if let Some(subject) = &save.subject {
            sum.subject = Some(subject.clone());
        }
        if changes_expiry {
            sum.expiry = ExpiryWrite::Replace;
        }
        Ok(Applied::Yes)
    }

    /// Whether `save`, of the session under `key`, chooses another expiry.
    fn changes_expiry(&self, key: &StoredKey, save: &Save) -> bool {
        let before = save.base.data(key, &*self.codec).unwrap_or_default();
        save.data.get(EXPIRY_KEY) != before.get(EXPIRY_KEY)
    }

    /// Gives a session another key, and writes its changed data.
    async fn rename_now(
        self: &Arc<Self>,
        key: &StoredKey,
        save: &Save,
        latest: &mut Latest,
    ) -> Result<Saved, Error> {
        let Some(new) = save.rename else { return Err(Error::Conflict) };
        let Latest { record, stamp } = std::mem::take(latest);
        // Before the fence: a session that cannot be written leaves no trace.
        let base = record.unwrap_or_else(|| Arc::clone(&save.base));
        let mut draft = match self.compose_rename(key, &new, save, base)? {
            Some(draft) => draft,
            None => self.compose_rename_anew(key, &new, save).await?,
        };
        let mut write = Write::begin(self, Operation::Rename, *key, stamp.or(save.seen)).await?;
        let lease = self.lease_new(&new).await;
        let mut conflicts = 0;
        let (result, made_at) = loop {
            let made_at = self.runtime.now();
            let result = {
                let Draft { expected, record, expiry } = &draft;
                let rename = self.db.rename(key, &new, record, Some(*expected), *expiry, made_at);
                write.statement(pin!(rename)).await
            };
            if !matches!(result, Err(Error::Conflict)) || !write.may_try_again(conflicts).await {
                break (result.map(|version| draft.record.with_version(version)), made_at);
            }
            conflicts += 1;
            match self.compose_rename_anew(key, &new, save).await {
                Ok(anew) => draft = anew,
                Err(error) => break (Err(error), made_at),
            }
        };
        self.saved(write, Some((new, lease)), result, made_at).await
    }

    /// What `save` makes of `base` under the key `new`. `None` if the conflict policy rejects it.
    fn compose_rename(
        &self,
        key: &StoredKey,
        new: &StoredKey,
        save: &Save,
        base: Arc<Record>,
    ) -> Result<Option<Draft>, Error> {
        let mut sum = Sum::of(base);
        match self.apply(key, save, &mut sum)? {
            Applied::Yes => self.draft(new, sum).map(Some),
            Applied::Rejected => Ok(None),
        }
    }

    /// Reads what the session has become, and composes `save` onto that.
    async fn compose_rename_anew(
        &self,
        key: &StoredKey,
        new: &StoredKey,
        save: &Save,
    ) -> Result<Draft, Error> {
        let fresh = self.read(key).await?.ok_or(Error::SessionGone)?.record;
        self.compose_rename(key, new, save, fresh)?.ok_or(Error::Conflict)
    }

    async fn update_now(
        self: &Arc<Self>,
        key: &StoredKey,
        update: Update,
        latest: &mut Latest,
    ) -> Result<Saved, Error> {
        let Update { record, expected, expiry, rename } = update;
        let seen = std::mem::take(latest).stamp;
        let operation = if rename.is_some() { Operation::Rename } else { Operation::Save };
        let mut write = Write::begin(self, operation, *key, seen).await?;
        let new_key = match rename {
            Some(new) => Some((new, self.lease_new(&new).await)),
            None => None,
        };
        let made_at = self.runtime.now();
        let result = match rename {
            None => write.statement(pin!(self.db.update(key, &record, expected, expiry, made_at))).await,
            Some(new) => {
                write.statement(pin!(self.db.rename(key, &new, &record, expected, expiry, made_at))).await
            }
        };
        mutant!(UpsertingSave => if rename.is_none() && matches!(result, Err(Error::SessionGone)) {
            let result = write.statement(pin!(self.db.insert(key, &record))).await;
            let result = result.map(|version| record.with_version(version));
            return self.saved(write, None, result, made_at).await;
        });
        let result = result.map(|version| record.with_version(version));
        let saved = self.saved(write, new_key, result, made_at).await?;
        if rename.is_none() {
            *latest = Latest { record: Some(Arc::clone(&saved.loaded.record)), stamp: saved.loaded.stamp };
        }
        Ok(saved)
    }

    async fn touch_now(
        self: &Arc<Self>,
        key: &StoredKey,
        touch: Touch,
        latest: &mut Latest,
    ) -> Result<Coherence, Error> {
        let Touch { seen, expires_at, idle_since } = touch;
        let is_noted = |record: &Arc<Record>| record.last_seen_at() > idle_since;
        if latest.record.as_ref().is_some_and(is_noted) || self.queues.was_touched_since(key, idle_since) {
            return Ok(Coherence::Coherent);
        }
        mutant!(TouchPublishes => return self.touch_and_publish(*key, expires_at).await);
        let seen = std::mem::take(&mut latest.stamp).or(seen);
        let mut write = Write::begin(self, Operation::Touch, *key, seen).await?;
        let now = self.runtime.now();
        let touched = write.statement(pin!(self.db.touch(key, expires_at, idle_since, now))).await;
        // The record that was loaded may not be the present one: nothing is published.
        let (_, coherence) = write.settle(None).await;
        match touched {
            Ok(true) => {
                self.queues.note_touch(key, now, self.config.touch_interval);
                latest.record = latest.record.take().map(|record| {
                    let later = record.expires_at().max(expires_at);
                    Arc::new(Record::clone(&record).with_expires_at(later).with_last_seen_at(now))
                });
            }
            Ok(false) => {}
            Err(error) => {
                latest.forget();
                return Err(error);
            }
        }
        Ok(coherence)
    }

    async fn delete_now(
        self: &Arc<Self>,
        key: &StoredKey,
        seen: Option<Stamp>,
        ending: Ending,
        latest: &mut Latest,
    ) -> Result<Written<bool>, Error> {
        let seen = std::mem::take(latest).stamp.or(seen);
        self.queues.forget_touch(key);
        let mut write = Write::begin(self, Operation::Delete, *key, seen).await?;
        let deleted = write.statement(pin!(self.db.delete(key))).await;
        let (_, coherence) = write.settle(None).await;
        if let Ok(true) = deleted {
            self.tell(|events| match ending {
                Ending::Destroyed => events.destroyed(key),
                Ending::Revoked(cause) => events.revoked(key, cause),
            });
        }
        deleted.map(|value| Written { value, coherence })
    }

    /// Settles `write`, and the lease of a new key, after a statement that has left `result`.
    async fn saved(
        self: &Arc<Self>,
        write: Write<'_, C, P>,
        new_key: Option<(StoredKey, Option<Stamp>)>,
        result: Result<Record, Error>,
        made_at: Timestamp,
    ) -> Result<Saved, Error> {
        if matches!(result, Err(Error::Conflict)) {
            self.counters.conflicts.bump();
        }
        let definite = result.as_ref().err().is_none_or(|error| error.outcome() == Outcome::NotApplied);
        let record = result.map(Arc::new);
        let value = record.as_ref().ok().map(|record| self.value(record, made_at));
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
        let key = new_key.map_or(old, |(new, _)| new);
        Ok(Saved { key, loaded: Loaded { record, stamp }, coherence })
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
    /// Returns a page of the sessions of `subject`, those of this store's key prefix only.
    async fn page_of_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
    ) -> Result<Page, Error> {
        let rows = pin!(self.db.list_by_subject(subject, now, after, PAGE));
        let mut rows = self.bounded_read(rows).await?;
        let is_full = u32::try_from(rows.len()).is_ok_and(|len| len >= PAGE);
        let next = rows.last().filter(|_| is_full).map(|row| row.key);
        rows.retain(|row| self.config.owns(&row.key));
        Ok(Page { rows, next })
    }

    /// Returns all sessions of `subject`.
    pub(crate) async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
    ) -> Result<Vec<Row<SessionTimes>>, Error> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let Page { rows, next } = self.page_of_subject(subject, now, after.as_ref()).await?;
            all.extend(rows);
            after = next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Ends all sessions of `subject`, and returns how many. Goes on if the returned future is dropped.
    pub(crate) fn revoke_subject(
        self: &Arc<Self>,
        subject: Subject,
    ) -> impl Future<Output = Result<Written<u64>, Error>> + Send + use<C, P> {
        let store = Arc::clone(self);
        self.tasks.run(async move { store.revoke_now(&subject).await })
    }

    async fn revoke_now(self: &Arc<Self>, subject: &Subject) -> Result<Written<u64>, Error> {
        let mut revoked = Written { value: 0, coherence: Coherence::Coherent };
        for _ in 0..MAX_REVOCATIONS {
            // Another node's clock may be behind: what has just expired here can live on there.
            let as_of = self.runtime.now() - self.config.clock_slack;
            let sessions = self.list_by_subject(subject, as_of).await?;
            if sessions.is_empty() {
                return Ok(revoked);
            }
            let keys = sessions.into_iter().map(|row| row.key);
            let ended = self.end_all(keys, Revocation::Subject).await?;
            revoked.value += ended.value;
            revoked.coherence = revoked.coherence.and(ended.coherence);
            mutant!(RevokeListsOnce => return Ok(revoked));
        }
        Err(Error::Conflict)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends these sessions, several at a time. After an error the others are ended all the same.
    pub(crate) async fn end_all(
        self: &Arc<Self>,
        keys: impl Iterator<Item = StoredKey> + Send,
        cause: Revocation,
    ) -> Result<Written<u64>, Error> {
        let mut ended = Ok(Written { value: 0, coherence: Coherence::Coherent });
        let deletions =
            keys.map(|key| self.delete(key, None, Ending::Revoked(cause), Admission::Continuation));
        let mut deletions = stream::iter(deletions).buffer_unordered(SIDE_BY_SIDE);
        while let Some(deleted) = deletions.next().await {
            match (&mut ended, deleted) {
                (Ok(sum), Ok(deleted)) => {
                    sum.value += u64::from(deleted.value);
                    sum.coherence = sum.coherence.and(deleted.coherence);
                }
                (Ok(_), Err(error)) => ended = Err(error),
                (Err(_), _) => {}
            }
        }
        ended
    }
}

struct Page {
    rows: Vec<Row<SessionTimes>>,
    /// Where the next page begins; `None` after the last one.
    next: Option<StoredKey>,
}

/// The expiry that a session has chosen for itself.
pub(crate) fn expiry_of(data: &SessionData) -> Option<Expiry> {
    data.get(EXPIRY_KEY).and_then(Expiry::from_json)
}
