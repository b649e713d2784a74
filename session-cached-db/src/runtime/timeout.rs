use std::pin::Pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::Runtime;

/// Waits for `future` for at most `limit`. Returns `None` when the time is up.
///
/// The future stays where its caller has pinned it: some are large, and every move would copy them.
pub(crate) async fn within<T>(
    runtime: &dyn Runtime,
    limit: Duration,
    future: Pin<&mut (impl Future<Output = T> + Send)>,
) -> Option<T> {
    match select(future, runtime.sleep(limit)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(((), _)) => None,
    }
}
