//! The progress of the tests.

use indicatif::{ProgressBar, ProgressStyle};

use super::results::{Case, Outcome};

/// Number of tests between two lines where there is no terminal.
const EVERY: u64 = 100;

/// A bar on a terminal, and lines elsewhere. Both show failures at once.
pub(crate) struct Progress {
    bar: ProgressBar,
    expected: u64,
    ended: u64,
    failed: u64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { bar: ProgressBar::no_length(), expected: 0, ended: 0, failed: 0 }
    }

    pub(crate) fn expect(&mut self, count: u64) {
        self.expected = count;
        self.bar.set_length(count);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} {wide_msg}") {
            self.bar.set_style(style);
        }
    }

    pub(crate) fn report(&mut self, case: &Case) {
        self.ended += 1;
        let name = format!("{}::{}::{}", case.layer, case.backend, case.name);
        if let Outcome::Failed(message) = &case.outcome {
            self.failed += 1;
            self.print(&format!("FAILED {name}\n    {}", message.replace('\n', "\n    ")));
        }
        self.bar.set_message(name);
        self.bar.inc(1);
        if self.bar.is_hidden() && self.ended.is_multiple_of(EVERY) {
            self.print(&format!("{} of {}, {} failed", self.ended, self.expected, self.failed));
        }
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn print(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}
