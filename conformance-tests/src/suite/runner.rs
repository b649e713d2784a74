//! Making named tests of cases.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Completion, Failed, Trial};

use crate::suite::cache::CacheFixture;
use crate::suite::case::Case;
use crate::suite::notices::NoticeFixture;
use crate::suite::pair::PairFixture;
use crate::suite::persistence::{PersistenceFixture, RotationsFixture, SubjectIndexFixture};
use crate::suite::scan::ScanFixture;
use crate::suite::{cache, notices, pair, persistence, rotations, scan, subject_index};

/// The longest time of a case. A backend that takes longer hangs.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// The tests of one backend, named `layer::backend::case`.
///
/// Pass the result to [`libtest_mimic::run`] in a test with `harness = false`:
///
/// ```
/// use conformance_tests::{Suite, reference::MemoryCache};
///
/// let shared = MemoryCache::default();
/// let trials = Suite::new("memory").cache(move || std::future::ready(shared.clone())).into_trials();
/// assert!(trials.iter().any(|trial| trial.name() == "cache::memory::lost_exchange_changes_nothing"));
/// ```
#[must_use]
pub struct Suite {
    backend: String,
    trials: Vec<Trial>,
}

impl Suite {
    /// Creates a suite without tests, for a backend with this name.
    pub fn new(backend: impl Into<String>) -> Self {
        Self { backend: backend.into(), trials: Vec::new() }
    }

    /// Adds the cases of [`Cache`](session_core::Cache).
    pub fn cache<F: CacheFixture>(self, fixture: F) -> Self {
        self.layer("cache", fixture, cache::cases())
    }

    /// Adds the cases of [`NoticeSource`](session_core::NoticeSource), beyond those of `Cache`.
    pub fn notices<F: NoticeFixture>(self, fixture: F) -> Self {
        self.layer("notices", fixture, notices::cases())
    }

    /// Adds the cases of [`Persistence`](session_core::Persistence).
    pub fn persistence<F: PersistenceFixture>(self, fixture: F) -> Self {
        self.layer("persistence", fixture, persistence::cases())
    }

    /// Adds the cases of [`SubjectIndex`](session_core::SubjectIndex), beyond those of `Persistence`.
    pub fn subject_index<F: SubjectIndexFixture>(self, fixture: F) -> Self {
        self.layer("subject_index", fixture, subject_index::cases())
    }

    /// Adds the cases of [`Scan`](session_core::Scan), beyond those of `Persistence`.
    pub fn scan<F: ScanFixture>(self, fixture: F) -> Self {
        self.layer("scan", fixture, scan::cases())
    }

    /// Adds the cases of [`Rotations`](session_core::Rotations), beyond those of `Persistence`.
    pub fn rotations<F: RotationsFixture>(self, fixture: F) -> Self {
        self.layer("rotations", fixture, rotations::cases())
    }

    /// Adds the cases of a cache and a database together.
    pub fn pair<F: PairFixture>(self, fixture: F) -> Self {
        self.layer("pair", fixture, pair::cases())
    }

    /// Adds the cases of a layer of your own.
    pub fn layer<F: Send + Sync + 'static>(mut self, layer: &str, fixture: F, cases: Vec<Case<F>>) -> Self {
        let fixture = Arc::new(fixture);
        for case in cases {
            let name = format!("{layer}::{}::{}", self.backend, case.name);
            let fixture = Arc::clone(&fixture);
            self.trials.push(Trial::ignorable_test(name, move || run(&case, &fixture)));
        }
        self
    }

    /// Returns the tests, for [`libtest_mimic::run`].
    #[must_use]
    pub fn into_trials(self) -> Vec<Trial> {
        self.trials
    }

    /// Returns the tests as ignored ones, with the reason as their kind, for a backend that is not available.
    #[must_use]
    pub fn into_ignored_trials(self, reason: &str) -> Vec<Trial> {
        self.trials.into_iter().map(|trial| trial.with_ignored_flag(true).with_kind(reason)).collect()
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("backend", &self.backend).field("tests", &self.trials.len()).finish()
    }
}

/// Runs a case on a runtime of its own, so that connections are made where they are used. A case whose
/// fixture lacks a capability that it needs is reported as ignored.
fn run<F>(case: &Case<F>, fixture: &F) -> Result<Completion, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match tokio::time::timeout(CASE_TIMEOUT, case.run(fixture)).await {
            Ok(None) => Ok(Completion::Completed),
            Ok(Some(reason)) => Ok(Completion::ignored_with(reason)),
            Err(_) => Err(Failed::from(format!("no end within {CASE_TIMEOUT:?}: the backend hangs"))),
        }
    })
}
