//! Creating, replacing, touching and ending a session.

use std::pin::pin;
use std::sync::Arc;

use session_core::{Cache, Outcome, Persistence, Record, Stamp, StoredKey, Timestamp};
use tracing::{Instrument as _, Span};

use super::inner::Inner;
use super::queue::{Job, Latest, Touch, Update};
use crate::coherence::{FencedWrite, Loaded};
use crate::runtime::Admission;
use crate::telemetry::Ending;
use crate::{Coherence, Error, WriteOperation};

/// The result of a write.
#[derive(Clone, Debug)]
pub struct Written<T> {
    /// The value that the write has written or found.
    pub value: T,
    /// The trust that caches deserve after it.
    pub coherence: Coherence,
}

impl From<Saved> for Written<Arc<Record>> {
    fn from(saved: Saved) -> Self {
        Self { value: saved.loaded.record, coherence: saved.coherence }
    }
}

/// A session in the state after a write.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub(crate) key: StoredKey,
    pub(crate) loaded: Loaded,
    pub(crate) coherence: Coherence,
}

/// The origin of the key of a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyOrigin {
    /// This process has made it at random, so no other writer knows it.
    Random,
    /// The caller has chosen it.
    Chosen,
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Adds a session under `key`.
    pub(crate) async fn create(
        self: &Arc<Self>,
        key: StoredKey,
        record: Record,
        origin: KeyOrigin,
    ) -> Result<Saved, Error> {
        self.check_size(&record)?;
        let store = Arc::clone(self);
        let span = self.span("create", &key);
        self.tasks.run(async move { store.create_now(key, record, origin).await }.instrument(span)).await
    }

    async fn create_now(
        self: &Arc<Self>,
        key: StoredKey,
        record: Record,
        origin: KeyOrigin,
    ) -> Result<Saved, Error> {
        mutant!(PublishOverVacancy => return self.create_over_vacancy(key, record).await);
        let lease = self.cache.lease_new(&key).await;
        let made_at = self.runtime.now();
        let inserted = match self.db.insert(&key, &record).await {
            Err(error) if origin == KeyOrigin::Random && error.outcome() == Outcome::Unknown => {
                // Boxed because it is rare.
                Box::pin(self.look_for(&key, &record, error)).await.map(|found| found.version())
            }
            inserted => inserted,
        };
        match inserted {
            Ok(version) => {
                let record = Arc::new(record.with_version(version));
                let value = self.cache.value(&key, &record, made_at);
                let stamp = self.cache.fill_new(&key, lease, value).await;
                self.telemetry.call_hooks(|hooks| hooks.created(&key, &record));
                if let Some(subject) = record.subject() {
                    self.limit_sessions(subject, &key).await;
                }
                Ok(Saved { key, loaded: Loaded { record, stamp }, coherence: Coherence::Coherent })
            }
            Err(error) => {
                if error.outcome() == Outcome::NotApplied {
                    self.cache.fill_new(&key, lease, None).await;
                }
                Err(error)
            }
        }
    }

    /// Looks whether a write with an unknown outcome has stored `record` under `key`, which no other writer knows. Reads the
    /// database once. Returns `unknown` if the record is not there yet, or the database does not answer.
    pub(super) async fn look_for(
        &self,
        key: &StoredKey,
        record: &Record,
        unknown: Error,
    ) -> Result<Arc<Record>, Error> {
        match self.read(key).await {
            // An earlier try of the same write may have stored something else.
            Ok(Some(found)) if found.record.payload() == record.payload() => Ok(found.record),
            Ok(_) | Err(_) => Err(unknown),
        }
    }

    /// Returns the span of a write of the session under `key`.
    pub(super) fn span(&self, operation: &'static str, key: &StoredKey) -> Span {
        tracing::debug_span!(target: "session_cached_db", "session_write", operation, session = %self.telemetry.log_id(key))
    }

    /// Replaces the session under `key` by the record in `update`, and moves it to another key if `update` has one.
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

    /// Removes the session under `key`. Returns `true` if there was one.
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

    /// Carries out a write whose turn has come, and answers it.
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
            Job::Repair(repair) => self.cache.repair(repair).await,
        }
    }

    async fn update_now(
        self: &Arc<Self>,
        key: &StoredKey,
        update: Update,
        latest: &mut Latest,
    ) -> Result<Saved, Error> {
        let Update { record, expected, expiry, rename } = update;
        let seen = std::mem::take(latest).stamp;
        let operation = if rename.is_some() { WriteOperation::Rename } else { WriteOperation::Save };
        let mut write = FencedWrite::begin(&self.cache, operation, *key, seen).await?;
        let new_key = match rename {
            Some(new) => Some((new, self.cache.lease_new(&new).await)),
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
            return self.end_write(write, None, result, made_at).await;
        });
        let result = result.map(|version| record.with_version(version));
        let saved = self.end_write(write, new_key, result, made_at).await?;
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
        let mut write = FencedWrite::begin(&self.cache, WriteOperation::Touch, *key, seen).await?;
        let now = self.runtime.now();
        let touched = write.statement(pin!(self.db.touch(key, expires_at, idle_since, now))).await;
        // The record that was loaded may not be the present one, so publish nothing.
        let (_, coherence) = write.finish(None).await;
        match touched {
            Ok(true) => {
                self.queues.note_touch(key, now, self.settings.touch_interval);
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
        let mut write = FencedWrite::begin(&self.cache, WriteOperation::Delete, *key, seen).await?;
        let deleted = write.statement(pin!(self.db.delete(key))).await;
        let (_, coherence) = write.finish(None).await;
        if let Ok(true) = deleted {
            self.telemetry.call_hooks(|hooks| match ending {
                Ending::Destroyed => hooks.destroyed(key),
                Ending::Revoked(cause) => hooks.revoked(key, cause),
            });
        }
        deleted.map(|value| Written { value, coherence })
    }

    /// Ends `write`, and the lease of a new key, after a statement with `result`.
    pub(super) async fn end_write(
        self: &Arc<Self>,
        write: FencedWrite<'_, C>,
        new_key: Option<(StoredKey, Option<Stamp>)>,
        result: Result<Record, Error>,
        made_at: Timestamp,
    ) -> Result<Saved, Error> {
        if matches!(result, Err(Error::Conflict)) {
            self.telemetry.counters.conflicts.bump();
        }
        let is_known = result.as_ref().err().is_none_or(|error| error.outcome() == Outcome::NotApplied);
        let record = result.map(Arc::new);
        let old = *write.key();
        let key = new_key.as_ref().map_or(old, |(new, _)| *new);
        let value = record.as_ref().ok().and_then(|record| self.cache.value(&key, record, made_at));
        let (stamp, coherence) = match new_key {
            None => write.finish(value).await,
            Some((new, lease)) => {
                // The old key comes first, because it must not be served any more.
                let (_, coherence) = write.finish(None).await;
                let stamp =
                    if is_known { Box::pin(self.cache.fill_new(&new, lease, value)).await } else { None };
                (stamp, coherence)
            }
        };
        let record = record?;
        if key != old {
            self.telemetry.call_hooks(|hooks| hooks.renewed(&old, &key, &record));
        }
        Ok(Saved { key, loaded: Loaded { record, stamp }, coherence })
    }
}
