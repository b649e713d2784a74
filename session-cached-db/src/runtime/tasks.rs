//! Tasks that outlive their callers, and the means to wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use session_core::{BoxFuture, Runtime};
use tokio::sync::{Notify, oneshot, watch};

use crate::Error;

/// The detached tasks of a store. Counts those in flight, so that [`Tasks::drain`] can wait for them. Once closed, starts no
/// new ones.
#[derive(Debug)]
pub(crate) struct Tasks {
    runtime: Arc<dyn Runtime>,
    running: Arc<Running>,
    closed: watch::Sender<bool>,
}

/// The reason for a task, which decides whether it may be started while the store is being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// A new operation, which is refused.
    New,
    /// Part of an operation that is under way, for which [`Tasks::drain`] waits. It is admitted.
    Continuation,
}

#[derive(Debug, Default)]
struct Running {
    count: AtomicUsize,
    none_left: Notify,
}

impl Tasks {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { runtime, running: Arc::default(), closed: watch::Sender::new(false) }
    }

    /// Runs `task` to its end, and returns its result. The task goes on if the returned future is dropped.
    pub(crate) fn run<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send + 'static>(
        &self,
        task: F,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, F> {
        let (reply, answer) = oneshot::channel();
        // Boxed before other futures take it in, because they would copy it: it has room for statements.
        let task = task.boxed();
        let task = async move {
            mutant!(CallerOwnsRevocation => {
                let mut reply = reply;
                let result = Self::unless_left(task, &mut reply).await;
                return drop(reply.send(result));
            });
            // The caller may have dropped its future.
            let _ = reply.send(task.await);
        };
        let started = self.start(Admission::New, task.boxed());
        async move {
            started?;
            answer.await.unwrap_or(Err(Error::Interrupted))
        }
    }

    /// Starts `task`, whose result no one waits for.
    pub(crate) fn start(&self, admission: Admission, task: BoxFuture<()>) -> Result<(), Error> {
        // Count before checking for the close, so that `drain` after `close` misses no task that has started.
        let counted = Counted::new(&self.running);
        if admission == Admission::New {
            self.check_open()?;
        }
        // Counts down also when the task panics, or when the runtime drops it.
        self.runtime.spawn(task.map(move |()| drop(counted)).boxed());
        Ok(())
    }

    /// Fails once the tasks are closed.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if *self.closed.borrow() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Refuses new tasks from now on.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits until no task is running.
    pub(crate) async fn drain(&self) {
        loop {
            let mut none_left = std::pin::pin!(self.running.none_left.notified());
            // Register before checking, so that the notice of the last task is not missed.
            none_left.as_mut().enable();
            if self.running.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            none_left.await;
        }
    }

    /// Resolves when the tasks are closed.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.subscribe();
        async move {
            // An error means that the store is gone, which closes the tasks as well.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }
}

struct Counted(Arc<Running>);

impl Counted {
    fn new(running: &Arc<Running>) -> Self {
        running.count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(running))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}
