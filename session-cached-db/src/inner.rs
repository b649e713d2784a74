//! What the parts of a store work on.

use std::sync::Arc;

use session_core::{Cache, Codec, CodecError, Persistence, Runtime, StoredKey};

use crate::Error;
use crate::cache_guard::CacheGuard;
use crate::config::Config;
use crate::flight::{Flights, Loaded};
use crate::repair::Repairs;
use crate::stats::Counters;
use crate::tasks::Tasks;

/// What the clones of a store share.
#[derive(Debug)]
pub(crate) struct Inner<C, P> {
    pub(crate) cache: CacheGuard<C>,
    pub(crate) db: P,
    pub(crate) config: Config,
    pub(crate) codec: Arc<dyn Codec>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) flights: Flights,
    pub(crate) repairs: Repairs,
    pub(crate) tasks: Tasks,
    pub(crate) counters: Arc<Counters>,
    /// A key under which nothing is ever stored, to ask whether anybody answers.
    pub(crate) probe_key: StoredKey,
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    pub(crate) fn new(
        cache: C,
        db: P,
        config: Config,
        codec: Arc<dyn Codec>,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        Self {
            cache: CacheGuard::new(
                cache,
                config.cache_timeout,
                config.breaker_threshold,
                Arc::clone(&runtime),
                Arc::clone(&counters),
            ),
            db,
            codec,
            flights: Flights::new(config.flight_capacity),
            repairs: Repairs::new(config.repair_capacity),
            tasks: Tasks::new(Arc::clone(&runtime)),
            counters,
            probe_key: StoredKey::PROBE,
            config,
            runtime,
        }
    }

    /// As [`load`](Self::load); what cannot be decoded is an error.
    pub(crate) async fn load_readable(self: &Arc<Self>, key: &StoredKey) -> Result<Option<Loaded>, Error> {
        let loaded = self.load(key).await.inspect_err(|error| {
            if error.is_of_the_row() {
                tracing::warn!(target: "session_cached_db", event = "row_unreadable", %error,
                    "a stored session cannot be read; its row is left alone");
            }
        })?;
        if let Some(loaded) = &loaded {
            loaded.record.data(key, &*self.codec).map_err(unreadable)?;
        }
        Ok(loaded)
    }
}

pub(crate) fn unreadable(error: CodecError) -> Error {
    tracing::warn!(target: "session_cached_db", event = "payload_unreadable", %error,
        "a stored session cannot be read; its row is left alone");
    Error::Unreadable(Arc::new(error))
}
