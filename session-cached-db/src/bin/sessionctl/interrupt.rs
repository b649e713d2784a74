//! Ctrl-C.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::exit::{Exit, Failure};
use crate::output::complain;

/// Whether somebody has pressed Ctrl-C.
pub(crate) struct Interrupt {
    /// How often.
    pressed: watch::Receiver<bool>,
    /// Kept alive, so that waiting never ends for another reason.
    _sender: Arc<watch::Sender<bool>>,
}

impl Interrupt {
    /// From now on, the first Ctrl-C asks the command to end, and the second one ends the process.
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
                complain(
                    "stopped at once; the batch that was on its way was carried out as a whole, or not at all",
                );
                process::exit(Exit::Interrupted as i32);
            }
        });
        Self { pressed, _sender: sender }
    }

    /// Whether the command is to end.
    pub(crate) fn is_raised(&self) -> bool {
        *self.pressed.borrow()
    }

    async fn raised(&self) {
        // It never fails: the sender is kept.
        let _ = self.pressed.clone().wait_for(|pressed| *pressed).await;
    }

    /// Gives up `work`, which changes nothing by halves, when it is raised.
    pub(crate) async fn ends<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.raised() => Err(Failure::Interrupted("interrupted".into())),
        }
    }

    /// Waits, unless it is raised.
    pub(crate) async fn sleep(&self, time: Duration) {
        if time.is_zero() {
            // So that whoever listens has a turn.
            return tokio::task::yield_now().await;
        }
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.raised() => {}
        }
    }
}
