//! The end of a write: what becomes of the cache entry, and what a write with an unknown outcome has stored.

use std::sync::Arc;

use session_core::{Cache, Outcome, Persistence, Record, Stamp, StoredKey, Timestamp};

use super::inner::Inner;
use super::job::Saved;
use crate::Error;
use crate::coherence::{FencedWrite, Loaded};

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Finds out whether a write with an unknown outcome has stored `record` under `key`, which no other writer knows. Reads
    /// the database once. Returns `unknown` if the record is not there yet, or the database does not answer.
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
        if key != old {
            self.watches.hint(&old);
        }
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
        self.watches.note_expiry(&key, record.expires_at());
        if key != old {
            self.telemetry.call_hooks(|hooks| hooks.renewed(&old, &key, &record));
        }
        Ok(Saved { key, loaded: Loaded { record, stamp }, coherence })
    }
}
