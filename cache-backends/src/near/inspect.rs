//! The report for an operator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use session_core::{Cache, CacheError, DatabaseNotices, NoticeListener, NoticeSource, StoredKey};
use tokio::time::timeout;

use super::source::{DatabaseReports, Source};
use super::{NearCache, NotifiedCache};
use crate::inspect::ChannelInspection;
use crate::{Inspect, Inspection};

/// The number of pings of an inspection.
const PINGS: u32 = 8;

/// The time for one of them: a server that is stopped never answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reports the servers of the shared cache, and how a channel to them does.
#[async_trait]
impl<S: Cache + NoticeSource + Inspect> Inspect for NearCache<S> {
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError> {
        self.inner.shared.inspect().await
    }

    async fn inspect_channel(
        &self,
        _: Option<Arc<dyn DatabaseNotices>>,
    ) -> Option<Result<ChannelInspection, CacheError>> {
        let slowest = slowest_answer(&self.inner.shared).await;
        Some(slowest.map(|slowest| ChannelInspection::new(self.bound, slowest)))
    }
}

async fn slowest_answer<S: Source>(source: &S) -> Result<Duration, CacheError> {
    let channel = source.open(Arc::new(Ignored)).await?;
    let mut slowest = Duration::ZERO;
    for _ in 0..PINGS {
        let begun = Instant::now();
        let answer = timeout(PATIENCE, S::ping(&channel)).await;
        answer.map_err(|_| CacheError::Unknown("the channel does not answer".into()))??;
        slowest = slowest.max(begun.elapsed());
    }
    Ok(slowest)
}

/// A listener with nothing in memory.
#[derive(Debug)]
struct Ignored;

impl NoticeListener for Ignored {
    fn changed(&self, _: &StoredKey) {}

    fn all_changed(&self) {}
}

/// Reports the memory.
#[async_trait]
impl Inspect for NotifiedCache {
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError> {
        self.inner.memory.inspect().await
    }

    async fn inspect_channel(
        &self,
        notices: Option<Arc<dyn DatabaseNotices>>,
    ) -> Option<Result<ChannelInspection, CacheError>> {
        let source = DatabaseReports::default();
        source.attach(notices);
        let slowest = slowest_answer(&source).await;
        Some(slowest.map(|slowest| ChannelInspection::new(self.bound, slowest)))
    }
}
