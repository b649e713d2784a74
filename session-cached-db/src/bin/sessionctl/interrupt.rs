//! Ctrl-C.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::exit::{Exit, Failure};
use crate::output::complain;

/// The state of Ctrl-C.
pub(crate) struct Interrupt {
    /// `true` after the first press.
    pressed: watch::Receiver<bool>,
    /// Kept alive, because the receiver's wait would end if it were dropped.
    _sender: Arc<watch::Sender<bool>>,
}

impl Interrupt {
    /// Starts listening: the first Ctrl-C asks the command to end, and the second one ends the process.
    pub(crate) fn listen() -> Self {
        let (sender, pressed) = watch::channel(false);
        let sender = Arc::new(sender);
        let theirs = Arc::clone(&sender);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            theirs.send_replace(true);
            if tokio::signal::ctrl_c().await.is_ok() {
                complain("stopped at once; the batch in progress was carried out as a whole, or not at all");
                process::exit(Exit::Interrupted as i32);
            }
        });
        Self { pressed, _sender: sender }
    }

    /// Returns `true` if the command is to end.
    pub(crate) fn is_raised(&self) -> bool {
        *self.pressed.borrow()
    }

    async fn raised(&self) {
        // Does not fail: the sender is kept.
        let _ = self.pressed.clone().wait_for(|pressed| *pressed).await;
    }

    /// Runs `work`, and drops it when Ctrl-C is pressed. `work` must leave nothing half done when it is
    /// dropped.
    pub(crate) async fn ends<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.raised() => Err(Failure::Interrupted("interrupted".into())),
        }
    }

    /// Waits for `time`, or until Ctrl-C is pressed.
    pub(crate) async fn sleep(&self, time: Duration) {
        if time.is_zero() {
            // Yield, so that the task that listens for Ctrl-C can run.
            return tokio::task::yield_now().await;
        }
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.raised() => {}
        }
    }
}
