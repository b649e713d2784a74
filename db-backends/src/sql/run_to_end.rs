//! Work that runs to its end even when the caller drops its future.
//!
//! A connection in the middle of a statement cannot be used: its next answer belongs to that statement.
//! Closing it for every dropped future would cost a login each time, just when the server is slow. So a task
//! takes over the rest of the statement. It has a grace period to finish it and return the connection.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

/// The time that a statement gets to finish after its future was dropped, before its connection is given up.
/// Part of every backend's bound on abandoned statements.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// The time that opening a connection, or waiting for one, gets to finish after its future was dropped.
/// Longer than [`GRACE`], because no statement runs on it, and because the next caller needs one as well.
pub(crate) const GRACE_TO_CONNECT: Duration = Duration::from_secs(5);

/// Runs `work`. If the returned future is dropped, a task runs the rest of it, for at most `grace`. The task runs on the
/// runtime on which `work` was begun, which is that of a store: the caller's runtime may end.
///
/// Without a runtime to spawn that task on, `work` is dropped as well.
pub(crate) fn run_to_end<F>(grace: Duration, work: F) -> RunToEnd<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    RunToEnd { work: Some(Box::pin(work)), grace, runtime: None }
}

pub(crate) struct RunToEnd<F: Future<Output: Send> + Send + 'static> {
    work: Option<Pin<Box<F>>>,
    grace: Duration,
    /// The runtime of the first poll that did not finish the work.
    runtime: Option<Handle>,
}

impl<F: Future<Output: Send> + Send + 'static> Future for RunToEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        } else if self.runtime.is_none() {
            self.runtime = Handle::try_current().ok();
        }
        polled
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for RunToEnd<F> {
    fn drop(&mut self) {
        if let Some(rest) = self.work.take()
            && let Some(runtime) = self.runtime.take()
        {
            let grace = self.grace;
            runtime.spawn(async move {
                // No one waits for the result. When the time is up, dropping the rest gives up the
                // connection.
                let _ = timeout(grace, rest).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Polls `work` once, and drops it.
    async fn start_and_leave(work: impl Future<Output: Send> + Send + 'static, grace: Duration) {
        let mut work = run_to_end(grace, work);
        std::future::poll_fn(|context| {
            assert!(Pin::new(&mut work).poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn work_goes_on_when_its_caller_goes() {
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let (done, is_done) = oneshot::channel();
        let work = async move {
            may_go_on.await.unwrap();
            done.send(()).unwrap();
        };
        start_and_leave(work, Duration::from_secs(60)).await;
        go_on.send(()).unwrap();
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn work_is_dropped_when_the_grace_is_over() {
        let (held, is_dropped) = oneshot::channel::<()>();
        let work = async move {
            let _held = held;
            std::future::pending::<()>().await;
        };
        start_and_leave(work, Duration::from_millis(10)).await;
        assert!(is_dropped.await.is_err(), "it was dropped, not done");
    }

    #[test]
    fn work_is_dropped_with_its_caller_outside_of_a_runtime() {
        let (held, mut is_dropped) = oneshot::channel::<()>();
        let mut work = run_to_end(GRACE, async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut work).poll(&mut context).is_pending());
        drop(work);
        assert!(matches!(is_dropped.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }
}
