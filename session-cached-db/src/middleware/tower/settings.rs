use std::sync::Arc;

use super::response::SessionFailure;
use super::transport::{PresentedKeys, Transport};
use crate::session::SessionBackend;
use crate::{Error, Session};

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) store: Arc<dyn SessionBackend>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) is_touching: bool,
}

impl Settings {
    /// Counts the rejected keys of a request, and warns of them: a node that lacks the right key must show.
    pub(super) fn note_rejected(&self, presented: &PresentedKeys) {
        let rejected = presented.rejected();
        if rejected == 0 {
            return;
        }
        let telemetry = self.store.telemetry();
        telemetry.counters.rejected_keys.add(rejected.into());
        if let Some(suppressed) = telemetry.log_limits.admit("key_rejected", self.store.now()) {
            tracing::warn!(target: "session_cached_db", event = "key_rejected", rejected, suppressed,
                "session keys in a request are malformed or were not made with the keys of this node; they open no session");
        }
    }

    /// Logs the error that made a response, unless another request of the client is the cause.
    pub(super) fn note_failure(&self, failure: &SessionFailure) {
        let SessionFailure(error) = failure;
        let limits = &self.store.telemetry().log_limits;
        if matches!(error, Error::SessionGone | Error::Conflict) {
            return;
        }
        if !failure.status().is_server_error() {
            if let Some(suppressed) = limits.admit("request_refused", self.store.now()) {
                tracing::warn!(target: "session_cached_db", event = "request_refused", %error, suppressed,
                    "a request was refused, because the session cannot hold what the request is to store in it");
            }
            return;
        }
        if let Some(suppressed) = limits.admit("request_failed", self.store.now()) {
            tracing::error!(target: "session_cached_db", event = "request_failed", %error, suppressed,
                "a request failed because of its session");
        }
    }

    /// Records that the session is in use. An error is logged and fails no request, because nothing that the client asked for
    /// depends on this.
    pub(super) async fn note_use(&self, session: &mut Session) {
        let error = match session.touch().await {
            Ok(_) | Err(Error::SessionGone) => return,
            Err(error) => error,
        };
        let limits = &self.store.telemetry().log_limits;
        if let Some(suppressed) = limits.admit("touch_failed", self.store.now()) {
            tracing::warn!(target: "session_cached_db", event = "touch_failed", %error, suppressed,
                "the use of a session could not be recorded; it may end earlier than it should");
        }
    }

    /// Tells the log that a task outlives its request with the session locked.
    pub(super) fn note_kept(&self) {
        let limits = &self.store.telemetry().log_limits;
        if let Some(suppressed) = limits.admit("task_keeps_session", self.store.now()) {
            tracing::warn!(target: "session_cached_db", event = "task_keeps_session", suppressed,
                "a task keeps the session of a request that was answered; what it changes is lost unless it saves that itself");
        }
    }
}
