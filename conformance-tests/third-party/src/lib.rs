//! A cache of a third party: a map that keeps entries encoded, as a cache outside of the process would.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use session_core::bytes::Bytes;
use session_core::{
    Cache, CacheError, CacheProperties, Entry, EnvelopeError, Exchange, Expected, Scope, StoredKey,
};

/// A cache in memory. A clone is another handle to the same cache.
#[derive(Clone, Debug, Default)]
pub struct MapCache {
    slots: Arc<Mutex<HashMap<StoredKey, (Bytes, Instant)>>>,
}

impl MapCache {
    /// Returns the bytes under `key`.
    pub fn raw(&self, key: &StoredKey) -> Option<Bytes> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(key).filter(|(_, until)| Instant::now() < *until).map(|(bytes, _)| bytes.clone())
    }

    /// Puts bytes under `key`, or removes them.
    pub fn set_raw(&self, key: &StoredKey, bytes: Option<Bytes>, ttl: Duration) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match bytes.filter(|_| !ttl.is_zero()) {
            Some(bytes) => slots.insert(*key, (bytes, Instant::now() + ttl)),
            None => slots.remove(key),
        };
    }

    fn read(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        match self.raw(key).map(|bytes| Entry::decode(key, bytes)) {
            None | Some(Err(EnvelopeError::Unreadable)) => Ok(None),
            Some(Ok(entry)) => Ok(Some(entry)),
            Some(Err(_)) => Err(CacheError::WrongKey),
        }
    }
}

impl Cache for MapCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        self.read(key)
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        // One exchange at a time, over all keys: simple, and atomic.
        static EXCHANGE: Mutex<()> = Mutex::new(());
        let _exchange = EXCHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.read(key)?;
        let is_expected = match expected {
            Expected::Vacant => found.is_none(),
            Expected::Stamp(stamp) => found.as_ref().is_some_and(|entry| entry.stamp == stamp),
        };
        if !is_expected {
            return Ok(Exchange::Lost(found));
        }
        self.set_raw(key, new.map(|entry| entry.encode(key)), ttl);
        Ok(Exchange::Stored)
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Process)
    }
}
