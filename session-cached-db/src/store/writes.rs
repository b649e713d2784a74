//! Creating, replacing, touching and ending a session.
//!
//! The public methods queue a [`Job`]; the private ones carry it out when its turn has come.

use std::pin::pin;
use std::sync::Arc;

use session_core::{
    Cache, ExpiryWrite, Outcome, Persistence, Record, RecordWrite, StoredKey, Timestamp, Version,
};

use super::inner::Inner;
use super::job::{Create, Delete, Job, KeyOrigin, Latest, Saved, Touch, Touched, Update, Written};
use super::together::Seat;
use crate::coherence::{FencedWrite, Loaded};
use crate::runtime::Admission;
use crate::telemetry::{Ending, Revocation};
use crate::{CachedDb, Coherence, Error, WriteOperation};

impl<C: Cache, P: Persistence> CachedDb<C, P> {
    /// Adds a session under a key of the caller's choice, and returns it as it was stored.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] when there is a session under the key, expired or not; [`Error::TooLarge`]; or an
    /// [error of every write](Self#errors-of-every-write).
    pub async fn create(&self, key: &StoredKey, record: Record) -> Result<Written<Arc<Record>>, Error> {
        let create = Create { record, origin: KeyOrigin::Chosen };
        self.inner.write(key, Admission::New, |reply| Job::Create(create, reply)).await.map(Into::into)
    }

    /// Replaces the session under `key` by `record`, if it still has the version `expected`. `None` replaces any version.
    ///
    /// The database keeps the session's own `created_at`, and under [`ExpiryWrite::Extend`] the later expiry, while the
    /// cache shows `record` as it is passed here. So make it from the record that was [loaded](Self::load).
    ///
    /// # Errors
    ///
    /// [`Error::SessionGone`], [`Error::Conflict`], [`Error::TooLarge`], or an
    /// [error of every write](Self#errors-of-every-write).
    pub async fn update(
        &self,
        key: &StoredKey,
        record: Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
    ) -> Result<Written<Arc<Record>>, Error> {
        let update = Update { record, expected, expiry, rename: None };
        self.inner.write(key, Admission::New, |reply| Job::Update(update, reply)).await.map(Into::into)
    }

    /// Moves the session under `old` to the key `new`, and writes `record` to it, in one statement. Otherwise behaves like
    /// [`update`](Self::update).
    ///
    /// # Errors
    ///
    /// The errors of [`update`](Self::update), and [`Error::AlreadyExists`] when there is a session under `new`.
    pub async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        record: Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
    ) -> Result<Written<Arc<Record>>, Error> {
        let update = Update { record, expected, expiry, rename: Some(*new) };
        self.inner.write(old, Admission::New, |reply| Job::Update(update, reply)).await.map(Into::into)
    }

    /// Lets the session under `key` live until `expires_at`, if it would end before.
    ///
    /// # Errors
    ///
    /// [`Error::SessionGone`], or an [error of every write](Self#errors-of-every-write).
    pub async fn touch(&self, key: &StoredKey, expires_at: Timestamp) -> Result<Coherence, Error> {
        let touch = Touch { seen: None, expires_at, idle_since: Timestamp::MAX };
        let touched = self.inner.write(key, Admission::New, |reply| Job::Touch(touch, reply)).await?;
        Ok(touched.coherence)
    }

    /// Ends the session under `key`, everywhere and for good. Returns `true` if there was one.
    ///
    /// # Errors
    ///
    /// An [error of every write](Self#errors-of-every-write).
    pub async fn revoke(&self, key: &StoredKey) -> Result<Written<bool>, Error> {
        let delete = Delete { seen: None, ending: Ending::Revoked(Revocation::One), seat: None };
        self.inner.write(key, Admission::New, |reply| Job::Delete(delete, reply)).await
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Carries out a write whose turn has come, and answers it.
    pub(super) async fn carry_out(self: &Arc<Self>, key: &StoredKey, job: Job, latest: &mut Latest) {
        match job {
            Job::Create(create, reply) => {
                let result = self.create_now(key, create, latest).await;
                let _ = reply.send(result);
            }
            Job::Save(save, reply) => {
                let result = self.rename_now(key, &save, latest).await;
                let _ = reply.send(result);
            }
            Job::Update(update, reply) => {
                let result = self.update_now(key, update, latest).await;
                let _ = reply.send(result);
            }
            Job::Touch(touch, reply) => {
                let result = self.touch_now(key, touch, latest).await;
                let _ = reply.send(result);
            }
            Job::Delete(delete, reply) => {
                let result = self.delete_now(key, delete, latest).await;
                let _ = reply.send(result);
            }
            Job::Repair(repair) => self.cache.repair(repair).await,
        }
    }

    async fn create_now(
        self: &Arc<Self>,
        key: &StoredKey,
        create: Create,
        latest: &mut Latest,
    ) -> Result<Saved, Error> {
        let Create { record, origin } = create;
        self.check_size(&record)?;
        mutant!(PublishOverVacancy => return self.create_over_vacancy(*key, record).await);
        let lease = self.cache.lease_new(key).await;
        let made_at = self.runtime.now();
        let inserted = match self.db.insert(key, &record).await {
            Err(error) if origin == KeyOrigin::Random && error.outcome() == Outcome::Unknown => {
                // Boxed because it is rare.
                Box::pin(self.look_for(key, &record, error)).await.map(|found| found.version())
            }
            inserted => inserted,
        };
        match inserted {
            Ok(version) => {
                let record = Arc::new(record.with_version(version));
                let value = self.cache.value(key, &record, made_at);
                let stamp = self.cache.fill_new(key, lease, value).await;
                let loaded = Loaded { record, stamp };
                latest.remember(&loaded);
                self.telemetry.call_hooks(|hooks| hooks.created(key, &loaded.record));
                Ok(Saved { key: *key, loaded, coherence: Coherence::Coherent })
            }
            Err(error) => {
                if error.outcome() == Outcome::NotApplied {
                    self.cache.fill_new(key, lease, None).await;
                }
                Err(error)
            }
        }
    }

    async fn update_now(
        self: &Arc<Self>,
        key: &StoredKey,
        update: Update,
        latest: &mut Latest,
    ) -> Result<Saved, Error> {
        let Update { record, expected, expiry, rename } = update;
        self.check_size(&record)?;
        let seen = std::mem::take(latest).stamp;
        if rename.is_some() {
            self.touches.forget(key);
        }
        let operation = if rename.is_some() { WriteOperation::Rename } else { WriteOperation::Save };
        let mut write = FencedWrite::begin(&self.cache, operation, *key, seen).await?;
        let new_key = match rename {
            Some(new) => Some((new, self.cache.lease_new(&new).await)),
            None => None,
        };
        let made_at = self.runtime.now();
        let request = RecordWrite::new(&record).with_expected(expected).with_expiry(expiry);
        let result = match rename {
            None => write.statement(pin!(self.db.update(key, request, made_at))).await,
            Some(new) => write.statement(pin!(self.db.rename(key, &new, request, made_at))).await,
        };
        mutant!(UpsertingSave => if rename.is_none() && matches!(result, Err(Error::SessionGone)) {
            let result = write.statement(pin!(self.db.insert(key, &record))).await;
            let result = result.map(|version| record.with_version(version));
            return self.end_write(write, None, result, made_at).await;
        });
        let result = result.map(|version| record.with_version(version));
        let saved = self.end_write(write, new_key, result, made_at).await?;
        if rename.is_none() {
            latest.remember(&saved.loaded);
        }
        Ok(saved)
    }

    async fn touch_now(
        self: &Arc<Self>,
        key: &StoredKey,
        touch: Touch,
        latest: &mut Latest,
    ) -> Result<Touched, Error> {
        let Touch { seen, expires_at, idle_since } = touch;
        let is_noted = |record: &Arc<Record>| record.last_seen_at() > idle_since;
        if latest.record.as_ref().is_some_and(is_noted) || self.touches.are_since(key, idle_since) {
            return Ok(Touched::SKIPPED);
        }
        let used_since = if mutant!(TouchNotDue) { Timestamp::MAX } else { idle_since };
        mutant!(TouchPublishes => return self.touch_and_publish(*key, expires_at).await);
        let seen = std::mem::take(&mut latest.stamp).or(seen);
        let mut write = FencedWrite::begin(&self.cache, WriteOperation::Touch, *key, seen).await?;
        let now = self.runtime.now();
        let touched = write.statement(pin!(self.db.touch(key, expires_at, used_since, now))).await;
        // The record that was loaded may not be the present one, so publish nothing.
        let (_, coherence) = write.finish(None).await;
        match touched {
            Ok(true) => {
                self.touches.note(key, now, self.settings.touch_interval);
                latest.record = latest.record.take().map(|record| {
                    let later = record.expires_at().max(expires_at);
                    Arc::new(Record::clone(&record).with_expires_at(later).with_last_seen_at(now))
                });
            }
            // The session was used since, at a time that only the database knows. For a quarter of the interval, count it as
            // used, so that requests which opened it before do not ask one after another.
            Ok(false) => {
                let used_at = idle_since + now.since(idle_since) / 4;
                self.touches.note(key, used_at, self.settings.touch_interval);
            }
            Err(error) => {
                latest.forget();
                return Err(error);
            }
        }
        Ok(Touched { coherence, is_asked: true })
    }

    async fn delete_now(
        self: &Arc<Self>,
        key: &StoredKey,
        delete: Delete,
        latest: &mut Latest,
    ) -> Result<Written<bool>, Error> {
        let Delete { seen, ending, seat } = delete;
        let seen = std::mem::take(latest).stamp.or(seen);
        self.touches.forget(key);
        let mut write = FencedWrite::begin(&self.cache, WriteOperation::Delete, *key, seen).await?;
        let deleted = match seat {
            None => write.statement(pin!(self.db.delete(key))).await,
            // On the heap, because it is rare.
            Some(seat) => Box::pin(self.delete_together(key, seat, &mut write)).await,
        };
        self.watches.hint(key);
        let (_, coherence) = write.finish(None).await;
        if let Ok(true) = deleted {
            self.telemetry.call_hooks(|hooks| match ending {
                Ending::Destroyed => hooks.destroyed(key),
                Ending::Revoked(cause) => hooks.revoked(key, cause),
            });
        }
        deleted.map(|value| Written { value, coherence })
    }

    /// Removes the session under `key` by a statement that removes others, too. Alone if that one was not carried out by a
    /// database that answers: a row that another client has locked keeps no other session from its end.
    async fn delete_together(
        self: &Arc<Self>,
        key: &StoredKey,
        seat: Seat,
        write: &mut FencedWrite<'_, C>,
    ) -> Result<bool, Error> {
        let together = seat.delete(*key, write.latest_sending(), &self.db);
        match write.statement(pin!(together)).await {
            Err(error) if error.outcome() == Outcome::NotApplied && !error.is_unreachable() => {
                write.statement(pin!(self.db.delete(key))).await
            }
            deleted => deleted,
        }
    }
}
