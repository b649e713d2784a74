//! Detached tasks, and the means to wait for them.

use std::sync::Arc;

use futures_util::FutureExt as _;
use session_core::Runtime;
use tokio::sync::{oneshot, watch};

use crate::Error;

/// Counts the tasks in flight, so that [`Tasks::drain`] can wait for them; once closed, starts no more.
#[derive(Debug)]
pub(crate) struct Tasks {
    runtime: Arc<dyn Runtime>,
    state: Arc<watch::Sender<State>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    running: usize,
    closed: bool,
}

impl Tasks {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { runtime, state: Arc::new(watch::Sender::new(State::default())) }
    }

    /// Runs `task` to its end, whether or not anybody waits for it. Dropping the returned future abandons nothing.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let started = self.start(async move {
            // Whoever waited may have left; the task is done all the same.
            let _ = reply.send(task.await);
        });
        async move {
            started?;
            answer.await.unwrap_or(Err(Error::Interrupted))
        }
    }

    /// Starts `task` without anybody waiting for it.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let mut closed = false;
        self.state.send_if_modified(|state| {
            closed = state.closed;
            state.running += usize::from(!closed);
            !closed
        });
        if closed {
            return Err(Error::Closed);
        }
        // Counts down also when the task panics, or when the runtime drops it.
        let running = Running(Arc::clone(&self.state));
        self.runtime.spawn(task.map(move |()| drop(running)).boxed());
        Ok(())
    }

    /// Starts no more tasks.
    pub(crate) fn close(&self) {
        self.state.send_modify(|state| state.closed = true);
    }

    /// Waits until no task is running.
    pub(crate) async fn drain(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.state.subscribe().wait_for(|state| state.running == 0).await;
    }

    /// Resolves when the tasks are closed.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut state = self.state.subscribe();
        async move {
            let _ = state.wait_for(|state| state.closed).await;
        }
    }
}

struct Running(Arc<watch::Sender<State>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.running -= 1);
    }
}
