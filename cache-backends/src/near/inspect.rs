//! The report for an operator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use session_core::{Cache, CacheError, NoticeChannel as _, NoticeListener, NoticeSource, StoredKey};

use super::{NearCache, NotifiedCache};
use crate::inspect::ChannelInspection;
use crate::{Inspect, Inspection};

/// The number of pings of an inspection.
const PINGS: u32 = 8;

/// Reports the servers of the shared cache, and how a channel to them does.
#[async_trait]
impl<S: Cache + NoticeSource + Inspect> Inspect for NearCache<S> {
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError> {
        self.inner.shared.inspect().await
    }

    async fn inspect_channel(&self) -> Option<Result<ChannelInspection, CacheError>> {
        Some(
            slowest_answer(&self.inner.shared)
                .await
                .map(|slowest| ChannelInspection::new(self.bound, slowest)),
        )
    }
}

async fn slowest_answer(source: &impl NoticeSource) -> Result<Duration, CacheError> {
    let channel = source.open_channel(Arc::new(Ignored)).await?;
    let mut slowest = Duration::ZERO;
    for _ in 0..PINGS {
        let begun = Instant::now();
        channel.ping().await?;
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
}
