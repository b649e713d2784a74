//! Figures, and helpers to measure two kinds of work in turn. Shared with `../vs-tower-sessions`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Number of tasks that run at the same time, where it is not one.
pub(crate) const IN_FLIGHT: usize = 64;

/// The aim of a figure.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "either program uses some")]
pub(crate) enum Aim {
    AtMost(f64),
    AtLeast(f64),
    /// The figure is only reported.
    None,
}

struct Figure {
    name: String,
    what: &'static str,
    aim: Aim,
    rounds: Vec<f64>,
}

/// All figures. Each is printed to stderr as soon as it is added.
#[derive(Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Adds a figure, whose value is the median of its rounds.
    pub(crate) fn add(&mut self, name: impl Into<String>, aim: Aim, what: &'static str, rounds: Vec<f64>) {
        let figure = Figure { name: name.into(), what, aim, rounds };
        eprintln!("{}", figure.line());
        self.figures.push(figure);
    }

    /// Prints that figures cannot be measured here. They are left out.
    pub(crate) fn skip(&self, names: &str, reason: &str) {
        eprintln!("{names}: NOT MEASURED, {reason}");
    }

    /// Returns the JSON document that `cargo xtask bench` reads.
    pub(crate) fn json(&self) -> Value {
        self.figures.iter().map(Figure::json).collect()
    }
}

impl Figure {
    fn line(&self) -> String {
        let aim = match self.aim {
            Aim::AtMost(aim) => format!("<= {aim}"),
            Aim::AtLeast(aim) => format!(">= {aim}"),
            Aim::None => String::new(),
        };
        format!("{:<32} {:>8.2} {aim:>8}  {}", self.name, median(&self.rounds), self.what)
    }

    fn json(&self) -> Value {
        let (at_most, at_least) = match self.aim {
            Aim::AtMost(aim) => (Some(aim), None),
            Aim::AtLeast(aim) => (None, Some(aim)),
            Aim::None => (None, None),
        };
        json!({
            "name": self.name, "value": median(&self.rounds), "what": self.what,
            "at_most": at_most, "at_least": at_least, "rounds": self.rounds,
        })
    }
}

/// The times of one kind of work that takes turns with others.
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

    pub(crate) fn median(&self) -> f64 {
        let seconds: Vec<_> = self.0.iter().map(Duration::as_secs_f64).collect();
        median(&seconds)
    }
}

/// Returns the time that the work takes, in seconds.
pub(crate) async fn timed(work: impl Future<Output = ()>) -> f64 {
    let start = Instant::now();
    work.await;
    start.elapsed().as_secs_f64()
}

/// Returns the time that [`IN_FLIGHT`] tasks take to handle all items between them, in seconds.
pub(crate) async fn crowd<T: Clone, F>(items: &[T], task: impl Fn(Vec<T>) -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let tasks: Vec<_> =
        items.chunks(items.len().div_ceil(IN_FLIGHT)).map(|share| task(share.to_vec())).collect();
    timed(async {
        let running: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
        for task in running {
            task.await.unwrap();
        }
    })
    .await
}

/// Returns the median. For an even number of values, it is the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}
