//! The faulty code of the seeded faults of the store, and the simulator's view of a store's state.

use std::pin::pin;
use std::sync::Arc;

use session_core::{Cache, Expected, Persistence, Record, StoreId, StoredKey, Timestamp};

use super::inner::Inner;
use super::job::{Job, Latest, Save, Saved, Touched};
use super::queue::{Queueable as _, Wait};
use crate::coherence::{FencedWrite, Loaded};
use crate::runtime::Admission;
use crate::simulation::{SharedState, digest_of, digest_record};
use crate::{CachedDb, Coherence, Error, WriteOperation};

impl<C: Cache, P> CachedDb<C, P> {
    /// Returns digests of all that tasks of this store have in common, besides cache and database. No more than
    /// `failures_left` cache calls are going to fail.
    #[must_use]
    pub fn __shared_state(&self, failures_left: u32) -> SharedState {
        let Inner { single_flight, queues, cache, .. } = &*self.inner;
        SharedState {
            attempts: digest_of(single_flight.digest()),
            queues: digest_of(queues.digest()),
            repairs: digest_of(cache.digest(failures_left)),
            repairs_in_full: digest_of(cache.digest(u32::MAX)),
        }
    }

    /// Returns `true` while a breaker is open.
    #[must_use]
    pub fn __breaker_is_open(&self) -> bool {
        self.inner.cache.is_breaker_open()
    }

    /// Returns `true` if `key` waits for a repair, or an unfenced write of it is in flight.
    #[must_use]
    pub fn __awaits_repair(&self, key: &StoredKey) -> bool {
        self.inner.cache.awaits_repair(key)
    }

    /// Returns the number of keys that are being written.
    #[must_use]
    pub fn __queues(&self) -> usize {
        self.inner.queues.len()
    }

    /// Returns the number of keys that are being loaded.
    #[must_use]
    pub fn __flights(&self) -> usize {
        self.inner.single_flight.len()
    }

    /// Returns the identity that is bound into this store's values.
    #[must_use]
    pub fn __store_id(&self) -> StoreId {
        self.inner.cache.store_id()
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    pub(crate) async fn create_over_vacancy(
        self: &Arc<Self>,
        key: StoredKey,
        record: Record,
    ) -> Result<Saved, Error> {
        let made_at = self.runtime.now();
        let version = self.db.insert(&key, &record).await?;
        let record = Arc::new(record.with_version(version));
        let stamp = match self.cache.value(&key, &record, made_at) {
            Some(value) => self.cache.place_value(&key, Expected::Vacant, value).await.ok(),
            None => None,
        };
        Ok(Saved { key, loaded: Loaded { record, stamp }, coherence: Coherence::Coherent })
    }

    pub(crate) async fn touch_and_publish(
        self: &Arc<Self>,
        key: StoredKey,
        expires_at: Timestamp,
    ) -> Result<Touched, Error> {
        let loaded = self.read(&key).await?;
        let mut write = FencedWrite::begin(&self.cache, WriteOperation::Touch, key, None).await?;
        let made_at = self.runtime.now();
        let touched = write.statement(pin!(self.db.touch(&key, expires_at, Timestamp::MAX, made_at))).await;
        let record = loaded.map(|loaded| Record::clone(&loaded.record).with_expires_at(expires_at));
        let value = record.and_then(|record| self.cache.value(&key, &Arc::new(record), made_at));
        let value = if touched.is_ok() { value } else { None };
        let (_, coherence) = write.finish(value).await;
        touched.map(|_| Touched { coherence, is_asked: true })
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Carries out a write beside those of the same key that are under way.
    pub(crate) fn start_unqueued(
        self: &Arc<Self>,
        key: &StoredKey,
        admission: Admission,
        job: Job,
    ) -> Result<Option<Wait>, Error> {
        let (store, key) = (Arc::clone(self), *key);
        let task = async move {
            let mut latest = Latest::default();
            match job {
                Job::Save(save, reply) if save.rename.is_none() => {
                    store.save_all(&key, vec![(save, reply)], &mut latest).await;
                }
                job => store.carry_out(&key, job, &mut latest).await,
            }
        };
        self.tasks.start(admission, Box::pin(task)).map(|()| None)
    }
}

impl Save {
    /// Returns the session as it was loaded, with the version that it has by now.
    pub(super) fn base_as_loaded(&self, present: Option<&Arc<Record>>) -> Arc<Record> {
        let version = present.map_or(self.base.version(), |present| present.version());
        Arc::new(Record::clone(&self.base).with_version(version))
    }
}

impl Latest {
    /// Returns a digest of a turn that begins, and of what is known of the session at its beginning.
    pub(super) fn digest_turn(&self, first: &Job, joining: &[Job]) -> u64 {
        let jobs: Vec<_> = std::iter::once(first).chain(joining).map(Job::digest).collect();
        let record = self.record.as_ref().map(|record| digest_record(record));
        digest_of((jobs, record, self.stamp))
    }
}
