//! Stages: named pieces of work that are timed against a budget. A stage over its budget is shown, not
//! failed.

use std::time::{Duration, Instant};

use crate::Result;

pub(crate) struct Stages {
    title: &'static str,
    done: Vec<Stage>,
}

struct Stage {
    name: &'static str,
    outcome: Outcome,
}

enum Outcome {
    Ran { budget: Duration, took: Duration, failed: bool },
    Skipped { reason: &'static str },
}

impl Stages {
    pub(crate) fn new(title: &'static str) -> Self {
        Self { title, done: Vec::new() }
    }

    /// Runs one stage. A failure is shown at once, kept for [`Stages::finish`], and returned to a caller that
    /// cannot go on after it.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        budget: Duration,
        work: impl FnOnce() -> Result,
    ) -> Result {
        eprintln!("\n== {}: {name}", self.title);
        let start = Instant::now();
        let result = work();
        if let Err(error) = &result {
            eprintln!("error: {error}");
        }
        let outcome = Outcome::Ran { budget, took: start.elapsed(), failed: result.is_err() };
        self.record(Stage { name, outcome });
        result
    }

    /// Reports a stage that cannot run here, now and in [`Stages::finish`].
    pub(crate) fn skip(&mut self, name: &'static str, reason: &'static str) {
        eprintln!();
        self.record(Stage { name, outcome: Outcome::Skipped { reason } });
    }

    fn record(&mut self, stage: Stage) {
        eprintln!("== {}: {}", self.title, stage.line());
        self.done.push(stage);
    }

    /// Prints the time of every stage, and fails if one failed.
    pub(crate) fn finish(self) -> Result {
        eprintln!("\n{}", self.title);
        for stage in &self.done {
            eprintln!("  {}", stage.line());
        }
        let failed: Vec<_> =
            self.done.iter().filter(|stage| stage.has_failed()).map(|stage| stage.name).collect();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(format!("{} failed: {}", self.title, failed.join(", ")).into())
        }
    }
}

impl Stage {
    fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Ran { failed: true, .. })
    }

    fn line(&self) -> String {
        let name = self.name;
        match &self.outcome {
            Outcome::Skipped { reason } => format!("{name:<12} SKIPPED, {reason}"),
            Outcome::Ran { budget, took, failed } => {
                let verdict = if *failed { "FAILED" } else { "ok" };
                let over = if took > budget { ", OVER BUDGET" } else { "" };
                format!(
                    "{name:<12} {verdict:<6} {:>7.1} s of {} s{over}",
                    took.as_secs_f64(),
                    budget.as_secs()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_over_its_budget_is_shown_and_does_not_fail() {
        let over = Stage {
            name: "docs",
            outcome: Outcome::Ran {
                budget: Duration::from_secs(1),
                took: Duration::from_millis(1500),
                failed: false,
            },
        };
        assert_eq!(over.line(), "docs         ok         1.5 s of 1 s, OVER BUDGET");
        let mut stages = Stages::new("test");
        stages.run("slow", Duration::ZERO, || Ok(())).unwrap();
        stages.finish().unwrap();
    }

    #[test]
    fn a_failed_stage_fails_the_whole_after_the_others_ran() {
        let mut stages = Stages::new("test");
        assert!(stages.run("bad", Duration::from_secs(9), || Err("no".into())).is_err());
        stages.run("good", Duration::from_secs(9), || Ok(())).unwrap();
        assert_eq!(stages.finish().unwrap_err().to_string(), "test failed: bad");
    }

    #[test]
    fn a_skipped_stage_is_named_and_does_not_fail() {
        let mut stages = Stages::new("test");
        stages.skip("deny", "not installed");
        assert_eq!(stages.done[0].line(), "deny         SKIPPED, not installed");
        stages.finish().unwrap();
    }
}
