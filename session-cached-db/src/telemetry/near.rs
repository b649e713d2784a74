//! Counters, log events and hints from the events of a near cache.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use session_core::{NearEvent, NearObserver, Runtime};

use super::Telemetry;
use super::metrics::{Gauge, Labels};
use crate::watch::Watches;

/// Counts and logs the events of a near cache, and hints at the sessions that they concern.
#[derive(Debug)]
pub(crate) struct NearTelemetry {
    telemetry: Arc<Telemetry>,
    /// Weak, so that a channel does not keep the store alive.
    watches: Weak<Watches>,
    runtime: Arc<dyn Runtime>,
    is_up: Gauge,
    answer_time: Gauge,
    basis_age: Gauge,
    /// `true` once the failure to open a channel was logged.
    is_failure_logged: AtomicBool,
}

impl NearTelemetry {
    pub(crate) fn new(
        telemetry: &Arc<Telemetry>,
        watches: &Arc<Watches>,
        runtime: Arc<dyn Runtime>,
        labels: &Labels,
    ) -> Self {
        Self {
            telemetry: Arc::clone(telemetry),
            watches: Arc::downgrade(watches),
            runtime,
            is_up: Gauge::new(
                "session_near_channel_up",
                "1 while the near cache is told of changes, and 0 otherwise",
                labels,
            ),
            answer_time: Gauge::new(
                "session_near_answer_microseconds",
                "How long the last answer on the near cache's channel took",
                labels,
            ),
            basis_age: Gauge::new(
                "session_near_basis_age_microseconds",
                "How old the basis of the near cache's memory was before the last answer",
                labels,
            ),
            is_failure_logged: AtomicBool::new(false),
        }
    }

    fn hint(&self, hint: impl FnOnce(&Watches)) {
        if let Some(watches) = self.watches.upgrade() {
            hint(&watches);
        }
    }
}

impl NearObserver for NearTelemetry {
    fn note(&self, event: NearEvent<'_>) {
        match event {
            NearEvent::Noticed(key) => {
                self.telemetry.counters.near_notices.bump();
                self.hint(|watches| watches.hint(key));
            }
            NearEvent::Ignored => {
                self.telemetry.counters.near_ignored.bump();
                if let Some(suppressed) =
                    self.telemetry.log_limits.admit("near_report_ignored", self.runtime.now())
                {
                    tracing::warn!(target: "session_cached_db", event = "near_report_ignored", suppressed,
                        "the near cache was told of a change of something that is no session, and has ignored it; find out which \
                         other program uses this channel or key_prefix");
                }
            }
            NearEvent::Forgotten => {
                self.telemetry.counters.near_forgotten.bump();
                self.hint(Watches::hint_all);
            }
            NearEvent::Answered { took, basis_age } => {
                let micros = |time: Duration| usize::try_from(time.as_micros()).unwrap_or(usize::MAX);
                self.answer_time.set(micros(took));
                self.basis_age.set(micros(basis_age));
            }
            NearEvent::Opened => {
                self.is_up.set(1);
                self.is_failure_logged.store(false, Ordering::Relaxed);
                // Changes from before the channel was opened were not reported.
                self.hint(Watches::hint_all);
                tracing::info!(target: "session_cached_db", event = "near_channel_opened",
                    "the near cache receives reports of changes, and answers from memory");
            }
            NearEvent::Lost(error) => {
                self.is_up.set(0);
                tracing::warn!(target: "session_cached_db", event = "near_channel_lost", %error,
                    "the near cache no longer receives reports of changes; loads bypass memory until it does");
            }
            NearEvent::NotOpened(error) if !self.is_failure_logged.swap(true, Ordering::Relaxed) => {
                tracing::warn!(target: "session_cached_db", event = "near_channel_failed", %error,
                    "the near cache cannot receive reports of changes; loads bypass memory, and the connection is tried again");
            }
            NearEvent::Stopped => self.is_up.set(0),
            _ => {}
        }
    }
}
