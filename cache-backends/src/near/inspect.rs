//! The report for an operator.

use async_trait::async_trait;
use session_core::{Cache, CacheError, NoticeSource};

use super::NearCache;
use crate::{Inspect, Inspection};

/// Reports the servers of the shared cache.
#[async_trait]
impl<S: Cache + NoticeSource + Inspect> Inspect for NearCache<S> {
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError> {
        self.inner.shared.inspect().await
    }
}
