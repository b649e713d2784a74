//! The faulty code of the seeded faults of tasks.

use std::pin::pin;

use futures_util::future::{Either, select};
use session_core::BoxFuture;
use tokio::sync::oneshot;

use super::Tasks;
use crate::Error;

impl Tasks {
    /// Returns the result of `task`, unless the caller that waits for it leaves before.
    pub(super) async fn unless_left<T>(
        task: BoxFuture<Result<T, Error>>,
        reply: &mut oneshot::Sender<Result<T, Error>>,
    ) -> Result<T, Error> {
        match select(task, pin!(reply.closed())).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(Error::Interrupted),
        }
    }
}
