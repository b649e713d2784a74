//! The reports of a store: hooks for the application, counters and metrics, and the ids under which sessions are logged.

mod counters;
mod hooks;
mod log_key;
mod log_limit;
pub(crate) mod metrics;
mod near;

use std::sync::Arc;

use session_core::StoredKey;

pub(crate) use self::counters::Counters;
pub use self::counters::Stats;
pub(crate) use self::hooks::Ending;
pub use self::hooks::{Hooks, PresentedKey, Revocation};
pub(crate) use self::log_key::{LogId, LogKey};
use self::log_limit::LogLimits;
pub(crate) use self::near::NearTelemetry;

/// The means by which a store reports.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) counters: Counters,
    pub(crate) log_limits: LogLimits,
    hooks: Option<Arc<dyn Hooks>>,
    log_key: LogKey,
}

impl Telemetry {
    pub(crate) fn new(counters: Counters, hooks: Option<Arc<dyn Hooks>>, log_key: LogKey) -> Self {
        Self { counters, log_limits: LogLimits::default(), hooks, log_key }
    }

    /// Calls the application's hooks, if there are any.
    #[inline]
    pub(crate) fn call_hooks(&self, call: impl FnOnce(&dyn Hooks)) {
        if let Some(hooks) = &self.hooks {
            call(&**hooks);
        }
    }

    /// Returns the id under which `key` is logged.
    pub(crate) const fn log_id<'a>(&'a self, key: &'a StoredKey) -> LogId<'a> {
        self.log_key.log_id(key)
    }
}
