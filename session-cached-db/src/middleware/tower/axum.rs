use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::{SessionHandle, response};
use crate::Error;

/// Extracts the session of the request. Extracting it loads nothing; [`SessionHandle::lock`] does.
impl<S: Sync> FromRequestParts<S> for SessionHandle {
    type Rejection = MissingSessionLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get().cloned().ok_or(MissingSessionLayer)
    }
}

/// The router has no [`SessionLayer`](super::SessionLayer), so there is no session to extract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no SessionLayer around this route; add one with Router::layer")]
pub struct MissingSessionLayer;

impl IntoResponse for MissingSessionLayer {
    fn into_response(self) -> Response {
        tracing::error!(target: "session_cached_db", event = "no_session_layer", "{self}");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

/// Lets handlers use `?`. The response is the one that [`SessionLayer`](super::SessionLayer) makes of the
/// same error, with a [`SessionFailure`](super::SessionFailure) among its extensions. It reveals no internals
/// to clients.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        response::of(self)
    }
}
