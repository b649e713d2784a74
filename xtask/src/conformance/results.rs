//! The results of the tests.

use std::time::Duration;

use serde_json::Value;

use crate::Result;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    /// `cache`, `persistence`, `subject_index`, `pair` …
    pub(crate) layer: String,
    /// `redis`, or `redis+postgres`.
    pub(crate) backend: String,
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// The message of the test.
    Failed(String),
    Ignored,
}

/// An event of a test target, in the JSON of libtest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The number of tests that follow.
    Begun(u64),
    Ended(Case),
}

impl Event {
    /// Parses a line. Returns `None` if it holds no event of interest.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let event: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| event.get(name)?.as_str();
        if text("type")? == "suite" && text("event")? == "started" {
            return event.get("test_count")?.as_u64().map(Self::Begun);
        }
        let outcome = match (text("type")?, text("event")?) {
            ("test", "ok") => Outcome::Passed,
            ("test", "ignored") => Outcome::Ignored,
            ("test", "failed") => Outcome::Failed(text("stdout").unwrap_or_default().trim().to_owned()),
            _ => return None,
        };
        let mut parts = text("name")?.splitn(3, "::").map(str::to_owned);
        let (layer, backend, name) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self::Ended(Case { layer, backend, name, outcome }))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) cases: Vec<Case>,
    pub(crate) took: Duration,
}

/// Numbers of tests by outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
}

impl Count {
    pub(crate) fn of<'a>(cases: impl IntoIterator<Item = &'a Case>) -> Self {
        let mut count = Self::default();
        for case in cases {
            match case.outcome {
                Outcome::Passed => count.passed += 1,
                Outcome::Failed(_) => count.failed += 1,
                Outcome::Ignored => count.ignored += 1,
            }
        }
        count
    }

    pub(crate) fn sum(self) -> usize {
        self.passed + self.failed + self.ignored
    }
}

impl Results {
    /// Returns the backends of a layer, each with its cases, in the order of the run.
    pub(crate) fn backends(&self, layer: &str) -> Vec<(&str, Vec<&Case>)> {
        let mut backends: Vec<(&str, Vec<&Case>)> = Vec::new();
        for case in self.cases.iter().filter(|case| case.layer == layer) {
            match backends.iter_mut().find(|(backend, _)| *backend == case.backend) {
                Some((_, cases)) => cases.push(case),
                None => backends.push((&case.backend, vec![case])),
            }
        }
        backends
    }

    /// Returns the cases of a pair. Empty if it was not tested.
    pub(crate) fn pair(&self, cache: &str, database: &str) -> Vec<&Case> {
        let pair = format!("{cache}+{database}");
        self.cases.iter().filter(|case| case.layer == "pair" && case.backend == pair).collect()
    }

    /// Returns the layers, with pairs first: the matrix is about them.
    pub(crate) fn layers(&self) -> Vec<&str> {
        let mut layers: Vec<&str> = Vec::new();
        for case in &self.cases {
            if !layers.contains(&case.layer.as_str()) {
                layers.push(&case.layer);
            }
        }
        layers.sort_by_key(|layer| *layer != "pair");
        layers
    }

    /// Returns the caches and the databases of the pairs.
    pub(crate) fn sides(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut caches, mut databases) = (Vec::new(), Vec::new());
        for (pair, _) in self.backends("pair") {
            let Some((cache, database)) = pair.rsplit_once('+') else { continue };
            for (side, name) in [(&mut caches, cache), (&mut databases, database)] {
                if !side.contains(&name) {
                    side.push(name);
                }
            }
        }
        (caches, databases)
    }

    pub(crate) fn failures(&self) -> impl Iterator<Item = (&Case, &str)> {
        self.cases.iter().filter_map(|case| match &case.outcome {
            Outcome::Failed(message) => Some((case, message.as_str())),
            _ => None,
        })
    }

    /// Returns an error if a test failed, or if none ran, which shows nothing.
    pub(crate) fn verdict(&self) -> Result {
        let Count { passed, failed, ignored } = Count::of(&self.cases);
        match (passed, failed) {
            (_, 1..) => Err(format!("{failed} of {} tests failed", self.cases.len()).into()),
            (0, 0) => Err(format!(
                "no test ran ({ignored} were ignored), which shows nothing; is a container engine there? \
                 `cargo xtask test --provision` sets one up"
            )
            .into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_run_are_parsed() {
        let begun = r#"{ "type": "suite", "event": "started", "test_count": 7 }"#;
        assert_eq!(Event::parse(begun), Some(Event::Begun(7)));
        let failed = r#"{ "type": "test", "name": "pair::redis+mysql::a::b", "event": "failed", "stdout": "Error: \"no\"\n" }"#;
        let case = Case {
            layer: "pair".into(),
            backend: "redis+mysql".into(),
            name: "a::b".into(),
            outcome: Outcome::Failed("Error: \"no\"".into()),
        };
        assert_eq!(Event::parse(failed), Some(Event::Ended(case)));
        for line in ["", "running 3 tests", r#"{ "type": "test", "event": "started", "name": "a::b::c" }"#] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
    }

    #[test]
    fn run_without_tests_is_an_error() {
        let error = Results::default().verdict().unwrap_err().to_string();
        assert!(error.contains("no test ran"), "{error}");
    }
}
