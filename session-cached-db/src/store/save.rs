//! Saving changed data: one statement for all saves of a session that wait together.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use session_core::{Cache, Outcome, Persistence, Record, StoredKey};

use super::inner::Inner;
use super::job::{Latest, Save, Saved, Waiting};
use super::merge::{Base, Merged};
use crate::coherence::FencedWrite;
use crate::{Error, WriteOperation};

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Writes all of `saves` with one statement, as if each came right after the one before.
    ///
    /// In one piece: each step can end the save, and an async function for a step would need room of its own
    /// in the future of every save.
    pub(super) async fn save_all(
        self: &Arc<Self>,
        key: &StoredKey,
        mut saves: Vec<Waiting>,
        latest: &mut Latest,
    ) {
        let Some((first, _)) = saves.first() else { return };
        let Latest { record, stamp } = std::mem::take(latest);
        let base = latest_base(first, record);
        let seen = stamp.or(first.seen);
        let merged = match self.merge(key, base, &mut saves, Base::Remembered) {
            Ok(Merged::MustRead) => self.merge_anew(key, &mut saves).await,
            merged => merged,
        };
        let mut draft = match merged {
            Ok(Merged::Write(draft)) => draft,
            Ok(Merged::Nothing | Merged::MustRead) => return,
            Ok(Merged::Apart) => return self.save_one_by_one(key, saves, latest).await,
            Err(error) => return answer(saves, &Err(error)),
        };
        mutant!(BatchAnswersEarly => if saves.len() > 1 {
            let loaded = crate::coherence::Loaded { record: Arc::new(draft.record.clone()), stamp: None };
            let saved = Saved { key: *key, loaded, coherence: crate::Coherence::Coherent };
            answer(std::mem::take(&mut saves), &Ok(saved));
        });
        let mut write = match FencedWrite::begin(&self.cache, WriteOperation::Save, *key, seen).await {
            Ok(write) => write,
            Err(error) => return answer(saves, &Err(error)),
        };
        let mut conflicts = 0;
        let (result, made_at) = loop {
            let made_at = self.runtime.now();
            let result = write.statement(pin!(self.db.update(key, draft.write(), made_at))).await;
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
                Ok(Merged::Apart) => {
                    write.finish(None).await;
                    return self.save_one_by_one(key, saves, latest).await;
                }
                Err(error) => break (Err(error), made_at),
            }
        };
        let result = self.end_write(write, None, result, made_at).await;
        if let Ok(Saved { loaded, .. }) = &result {
            latest.remember(loaded);
        }
        answer(saves, &result);
    }

    /// Writes each of `saves` with a statement of its own, because one of them made all fail.
    fn save_one_by_one<'a>(
        self: &'a Arc<Self>,
        key: &'a StoredKey,
        saves: Vec<Waiting>,
        latest: &'a mut Latest,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // They have left the queue, which would refuse them when they have waited for too long.
            let deadline = self.runtime.now() + self.settings.write_timeout;
            for save in saves {
                if self.runtime.now() >= deadline {
                    answer(vec![save], &Err(Error::Busy));
                    continue;
                }
                let alone = self.save_all(key, vec![save], latest);
                if AssertUnwindSafe(alone).catch_unwind().await.is_err() {
                    self.note_panic(key);
                    latest.forget();
                }
            }
        })
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
        self.touches.forget(key);
        // Before the fence: a session that cannot be written leaves no trace.
        let base = record.unwrap_or_else(|| Arc::clone(&save.base));
        let mut draft = match self.merge_rename(key, &new, save, base)? {
            Some(draft) => draft,
            None => self.merge_rename_anew(key, &new, save).await?,
        };
        if let Some(rotation) = &save.rotation
            && !mutant!(RotationNotedLate)
        {
            // Before the statement: there is no moment at which the old key is dead and leads nowhere.
            self.note_rotation(rotation).await;
        }
        let mut write =
            FencedWrite::begin(&self.cache, WriteOperation::Rename, *key, stamp.or(save.seen)).await?;
        let lease = self.cache.lease_new(&new).await;
        let mut conflicts = 0;
        let (result, made_at) = loop {
            let made_at = self.runtime.now();
            let result = write.statement(pin!(self.db.rename(key, &new, draft.write(), made_at))).await;
            if !matches!(result, Err(Error::Conflict)) || !write.may_try_again(conflicts).await {
                let result = match result {
                    Err(error) if error.outcome() == Outcome::Unknown => {
                        let look = Box::pin(self.look_for(&new, &draft.record, error));
                        let found = look.await;
                        if found.is_ok() {
                            write.note_commit();
                        }
                        found.map(|found| found.version())
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
        mutant!(RotationNotedLate => {
            let saved = self.end_write(write, Some((new, lease)), result, made_at).await;
            if let Some(rotation) = &save.rotation {
                self.note_rotation(rotation).await;
            }
            return saved;
        });
        self.end_write(write, Some((new, lease)), result, made_at).await
    }
}

/// Answers saves that have become one statement.
fn answer(saves: Vec<Waiting>, result: &Result<Saved, Error>) {
    for (_, reply) in saves {
        // A caller that has dropped its future needs no answer.
        drop(reply.send(result.clone()));
    }
}

/// Returns the record to merge `save` onto: `committed`, which this process has committed last, is newer than the record that
/// the save began with.
fn latest_base(save: &Save, committed: Option<Arc<Record>>) -> Arc<Record> {
    mutant!(BaseNotRenewed => return save.base_as_loaded(committed.as_ref()));
    committed.unwrap_or_else(|| Arc::clone(&save.base))
}
