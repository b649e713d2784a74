//! Waiting for a connection, in order of arrival.

use std::sync::Arc;
use std::time::Duration;

use session_core::PersistenceError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A queue that admits callers in order of arrival.
pub(crate) struct FairQueue {
    semaphore: Arc<Semaphore>,
    /// The number of callers that are admitted at a time.
    count: u16,
    /// The maximum time that a caller waits to be admitted.
    timeout: Duration,
}

impl FairQueue {
    pub(crate) fn new(count: u16, timeout: Duration) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(count.into())), count, timeout }
    }

    pub(crate) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns how many callers are admitted at this moment.
    pub(crate) fn admitted(&self) -> u32 {
        u32::from(self.count)
            .saturating_sub(u32::try_from(self.semaphore.available_permits()).unwrap_or(u32::MAX))
    }

    /// Waits to be admitted. The place is free again when the permit is dropped.
    pub(crate) async fn admit(&self) -> Result<OwnedSemaphorePermit, PersistenceError> {
        // Only a call that has to wait pays for a timer.
        if let Ok(permit) = Arc::clone(&self.semaphore).try_acquire_owned() {
            return Ok(permit);
        }
        match timeout(self.timeout, Arc::clone(&self.semaphore).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(PersistenceError::Unavailable(Box::new(NoConnection::Closed))),
            Err(_) => Err(PersistenceError::Busy(Box::new(NoConnection::Busy))),
        }
    }

    /// Waits until every permit is back, then admits no one any more.
    pub(crate) async fn close(&self) {
        // Fails only when the queue has been closed before.
        if let Ok(_all) = self.semaphore.acquire_many(self.count.into()).await {
            self.semaphore.close();
        }
    }
}

/// An error in getting a connection. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoConnection {
    #[error("the statements before this one did not end in time")]
    Busy,
    #[error("the server did not answer in time")]
    Silent,
    #[error(
        "none of the pooler's connections to the server became free in time; give the pooler more, or this store fewer"
    )]
    PoolerIsBusy,
    #[error("the database handle was closed")]
    Closed,
}
