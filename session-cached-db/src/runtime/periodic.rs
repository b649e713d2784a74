use std::pin::pin;

use futures_util::future::select;

/// Runs `task` until it ends, or until `end` does.
pub(crate) async fn run_until(end: impl Future<Output = ()> + Send, task: impl Future<Output = ()> + Send) {
    select(pin!(end), pin!(task)).await;
}
