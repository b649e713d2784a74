//! Saving changed data: one statement for all saves of a session that wait together.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use session_core::{Cache, Outcome, Persistence, Record, Rotation, SessionData, Stamp, StoredKey, Subject};

use super::inner::Inner;
use super::merge::{Base, Draft, Merged};
use super::queue::{Job, Latest, Waiting};
use super::settings::ConflictPolicy;
use super::writes::Saved;
use crate::coherence::FencedWrite;
use crate::runtime::Admission;
use crate::{Error, WriteOperation};

/// A write of a session whose data was changed, against the state that it was read in.
#[derive(Clone, Debug)]
pub(crate) struct Save {
    /// The record as it was loaded.
    pub(crate) base: Arc<Record>,
    /// The stamp that the record had in the cache.
    pub(crate) seen: Option<Stamp>,
    /// The session's data, with the changes.
    pub(crate) data: SessionData,
    /// The new subject, if it was changed; `Some(None)` removes it.
    pub(crate) subject: Option<Option<Subject>>,
    /// The session's new key, if it gets one.
    pub(crate) rename: Option<StoredKey>,
    /// The note of that, for requests that come with the old key. On the heap, because it is rare.
    pub(crate) rotation: Option<Box<Rotation>>,
    /// The choice if another request has changed the same key.
    pub(crate) conflict_policy: ConflictPolicy,
}

impl Save {
    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self) -> u64 {
        use crate::simulation::digest_of;
        let data: Vec<_> = self.data.iter().collect();
        let rename = self.rename.map(|key| key.as_str().to_owned());
        digest_of((data, self.base.version().as_u64(), self.seen, self.subject.is_some(), rename))
    }

    /// Returns the record to merge onto: `committed`, which this process has committed last, is newer than the record that the
    /// save began with.
    pub(super) fn latest_base(&self, committed: Option<Arc<Record>>) -> Arc<Record> {
        mutant!(BaseNotRenewed => return super::mutants::base_as_loaded(&self.base, committed.as_ref()));
        committed.unwrap_or_else(|| Arc::clone(&self.base))
    }

    /// Returns `true` if this save and another request, since which the session belongs to `theirs`, gave it to different
    /// subjects.
    pub(super) fn overlaps_subject(&self, theirs: Option<&Subject>) -> bool {
        let is_other = |mine: &Option<Subject>| theirs != self.base.subject() && theirs != mine.as_ref();
        self.subject.as_ref().is_some_and(is_other)
    }

    /// Returns the subject that this save gives the session, unless the session had it before.
    pub(super) fn new_subject(&self) -> Option<&Subject> {
        let subject = self.subject.as_ref()?.as_ref();
        subject.filter(|_| subject != self.base.subject())
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Merges changed data onto whatever the session has become, unless it has ended.
    pub(crate) fn save(
        self: &Arc<Self>,
        key: StoredKey,
        save: Save,
    ) -> impl Future<Output = Result<Saved, Error>> + Send + use<C, P> {
        let span = self.span(if save.rename.is_some() { "rename" } else { "save" }, &key);
        self.enqueue(&key, Admission::New, span, move |reply| Job::Save(save, reply))
    }

    /// Writes all of `saves` with one statement, as if each came right after the one before.
    ///
    /// In one piece: each step can end the save, and an async function for a step would need room of its own
    /// in the future of every save.
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
        // If a codec of the application panics over one of them, write each with a statement of its own.
        let merge = AssertUnwindSafe(|| self.merge(key, base, &mut saves, Base::Remembered));
        let merged = match catch_unwind(merge) {
            Ok(merged) => merged,
            Err(_) if saves.len() > 1 => return self.save_one_by_one(key, saves, latest).await,
            Err(panic) => resume_unwind(panic),
        };
        let merged = match merged {
            Ok(Merged::MustRead) => self.merge_anew(key, &mut saves).await,
            merged => merged,
        };
        let mut draft = match merged {
            Ok(Merged::Write(draft)) => draft,
            Ok(Merged::Nothing | Merged::MustRead) => return,
            // One of them is to blame: write each with a statement of its own.
            Err(error) if saves.len() > 1 && error.is_data_error() => {
                return self.save_one_by_one(key, saves, latest).await;
            }
            Err(error) => return self.answer_saves(saves, &Err(error)),
        };
        mutant!(BatchAnswersEarly => if saves.len() > 1 {
            let loaded = crate::coherence::Loaded { record: Arc::new(draft.record.clone()), stamp: None };
            let saved = Saved { key: *key, loaded, coherence: crate::Coherence::Coherent };
            self.answer_saves(std::mem::take(&mut saves), &Ok(saved));
        });
        let mut write = match FencedWrite::begin(&self.cache, WriteOperation::Save, *key, seen).await {
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
            // Boxed because it is rare: the future of every save would have room for it.
            match Box::pin(self.merge_anew(key, &mut saves)).await {
                Ok(Merged::Write(anew)) => draft = anew,
                Ok(Merged::Nothing | Merged::MustRead) => {
                    write.finish(None).await;
                    return;
                }
                Err(error) if saves.len() > 1 && error.is_data_error() => {
                    write.finish(None).await;
                    return self.save_one_by_one(key, saves, latest).await;
                }
                Err(error) => break (Err(error), made_at),
            }
        };
        let result = self.end_write(write, None, result, made_at).await;
        if let Ok(Saved { loaded, .. }) = &result {
            *latest = Latest { record: Some(Arc::clone(&loaded.record)), stamp: loaded.stamp };
        }
        self.answer_saves(saves, &result);
    }

    /// Writes each of `saves` with a statement of its own, because one of them made all fail.
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

    /// Logs that a write of `key` has panicked, in a codec or a hook of the application.
    pub(crate) fn note_panic(&self, key: &StoredKey) {
        tracing::error!(target: "session_cached_db", event = "write_panicked", session = %self.telemetry.log_id(key),
            "a write panicked, in a codec or a hook of the application's; whether it happened is unknown");
    }

    /// Answers saves that have become one statement, after the limits of their new subjects are enforced.
    pub(super) fn answer_saves(self: &Arc<Self>, saves: Vec<Waiting>, result: &Result<Saved, Error>) {
        for (save, reply) in saves {
            match (result, save.new_subject()) {
                (Ok(saved), Some(subject)) => self.limit_then_answer(subject, saved.clone(), reply),
                // A caller that has dropped its future needs no answer.
                _ => drop(reply.send(result.clone())),
            }
        }
    }

    /// Moves a session to another key, and writes its changed data.
    pub(super) async fn rename_now(
        self: &Arc<Self>,
        key: &StoredKey,
        save: &Save,
        latest: &mut Latest,
    ) -> Result<Saved, Error> {
        let Some(new) = save.rename else { return Err(Error::Conflict) };
        let Latest { record, stamp } = std::mem::take(latest);
        // Before the fence: a session that cannot be written leaves no trace.
        let base = record.unwrap_or_else(|| Arc::clone(&save.base));
        let mut draft = match self.merge_rename(key, &new, save, base)? {
            Some(draft) => draft,
            None => self.merge_rename_anew(key, &new, save).await?,
        };
        if let Some(rotation) = &save.rotation {
            // Before the statement: there is no moment at which the old key is dead and leads nowhere.
            self.note_rotation(rotation).await;
        }
        let mut write =
            FencedWrite::begin(&self.cache, WriteOperation::Rename, *key, stamp.or(save.seen)).await?;
        let lease = self.cache.lease_new(&new).await;
        let mut conflicts = 0;
        let (result, made_at) = loop {
            let made_at = self.runtime.now();
            let result = {
                let Draft { expected, record, expiry } = &draft;
                let rename = self.db.rename(key, &new, record, Some(*expected), *expiry, made_at);
                write.statement(pin!(rename)).await
            };
            if !matches!(result, Err(Error::Conflict)) || !write.may_try_again(conflicts).await {
                let result = match result {
                    Err(error) if error.outcome() == Outcome::Unknown => {
                        let look = Box::pin(self.look_for(&new, &draft.record, error));
                        look.await.map(|found| found.version())
                    }
                    result => result,
                };
                break (result.map(|version| draft.record.with_version(version)), made_at);
            }
            conflicts += 1;
            match self.merge_rename_anew(key, &new, save).await {
                Ok(anew) => draft = anew,
                Err(error) => break (Err(error), made_at),
            }
        };
        self.end_write(write, Some((new, lease)), result, made_at).await
    }
}
