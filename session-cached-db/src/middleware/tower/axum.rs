use std::sync::atomic::{AtomicU64, Ordering};

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::{SessionFailure, SessionHandle, response};
use crate::Error;

/// Extracts the session of the request. Extracting it loads nothing; [`SessionHandle::lock`] does.
impl<S: Sync, M: 'static> FromRequestParts<S> for SessionHandle<M> {
    type Rejection = MissingSessionLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get().cloned().ok_or(MissingSessionLayer)
    }
}

/// The router has no [`SessionLayer`](super::SessionLayer) with the marker of the handle, so there is no session to extract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no SessionLayer around this route; add one with Router::layer")]
pub struct MissingSessionLayer;

impl IntoResponse for MissingSessionLayer {
    fn into_response(self) -> Response {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // The first one, the second, the fourth and so on: no store is at hand, whose clock could bound the lines.
        let count = COUNT.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count.is_power_of_two() {
            tracing::error!(target: "session_cached_db", event = "no_session_layer", count, "{self}");
        }
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

/// Lets handlers use `?`. The response is the one that [`SessionLayer`](super::SessionLayer) makes of the
/// same error, with a [`SessionFailure`] among its extensions. It reveals no internals to clients; the layer logs them.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        response::of(SessionFailure(self), |text| text.into())
    }
}
