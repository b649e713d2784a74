//! The progress of a command on a terminal, and the limit of its speed.

use std::fmt::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::args::Pace;
use crate::interrupt::Interrupt;

/// Progress on stderr, if that is a terminal: a bar if the total is known, otherwise a count. It disappears
/// when this is dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    rate: Option<u32>,
    began: Instant,
    done: u64,
}

impl Progress {
    /// Starts showing the progress of `doing`. `total` may be unknown.
    pub(crate) fn new(doing: &'static str, total: Option<u64>, pace: Pace) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = if total.is_some() {
            "{msg} [{wide_bar}] {human_pos} of {human_len}, {rate}, {eta} left"
        } else {
            "{spinner} {msg} {human_pos}, {rate}, {elapsed}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            let rate = |state: &ProgressState, out: &mut dyn Write| {
                // An error only costs the rate its place in the bar.
                let _ = write!(out, "{:.0} per second", state.per_sec());
            };
            bar.set_style(style.progress_chars("=> ").with_key("rate", rate));
        }
        bar.set_message(doing);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, rate: pace.rate, began: Instant::now(), done: 0 }
    }

    /// Adds `more` to the number that is done. Waits if the command is ahead of its rate.
    pub(crate) async fn advance(&mut self, more: u64, interrupt: Option<&Interrupt>) {
        self.bar.inc(more);
        self.done += more;
        let Some(rate) = self.rate else { return };
        let due = Duration::from_micros(self.done.saturating_mul(1_000_000) / u64::from(rate.max(1)));
        let ahead = due.saturating_sub(self.began.elapsed());
        match interrupt {
            Some(interrupt) => interrupt.sleep(ahead).await,
            None => tokio::time::sleep(ahead).await,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
