use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use session_core::Runtime;

/// Waits for `future` for at most `limit`, and polls it inside of `runtime`. Returns `None` when the time is up.
///
/// Every call of a backend that may have to wait goes through here, so its connections belong to `runtime`: the runtime of a
/// caller may end before the store does, or block its thread, as a worker of actix-web may.
///
/// The future stays where its caller has pinned it: some are large, and every move would copy them.
pub(crate) async fn within<T>(
    runtime: &dyn Runtime,
    limit: Duration,
    future: Pin<&mut (impl Future<Output = T> + Send)>,
) -> Option<T> {
    let (mut future, mut timer) = (future, runtime.sleep(limit));
    poll_fn(|context| {
        let mut polled = Poll::Pending;
        runtime.enter(&mut || polled = future.as_mut().poll(context));
        match polled {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => timer.as_mut().poll(context).map(|()| None),
        }
    })
    .await
}
