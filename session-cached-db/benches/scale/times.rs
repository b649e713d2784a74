//! Times of one kind of work, and their quantiles.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

// Its beginning stands in `ratios`, too: the two benchmarks are programs of their own, which judge times in different ways.
/// The times of one kind of work.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Does the work once, and adds its time.
    pub(crate) async fn time<T>(&mut self, work: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let result = work.await;
        self.0.push(start.elapsed());
        result
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Returns the quantile, in microseconds.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        let place = (times.len().saturating_sub(1) as f64 * quantile).round() as usize;
        times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    /// Returns the figure of an operation, without its pages.
    pub(crate) fn json(&self) -> Value {
        json!({ "p50": rounded(self.quantile(0.5)), "p99": rounded(self.quantile(0.99)), "samples": self.0.len() })
    }
}

/// Returns `value` with one decimal.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
