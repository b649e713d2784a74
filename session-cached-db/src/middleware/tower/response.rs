use http::{HeaderValue, Response, StatusCode, header};
use session_core::CodecError;

use crate::Error;

/// The session's error, among the extensions of a response that was made because of it. Look for it in a
/// layer outside of [`SessionLayer`](super::SessionLayer) to answer with a page of your own.
///
/// ```
/// use http::Response;
/// use session_cached_db::{Error, tower::SessionFailure};
///
/// fn was_logged_out_meanwhile<B>(response: &Response<B>) -> bool {
///     let failure = response.extensions().get::<SessionFailure>();
///     matches!(failure, Some(SessionFailure(Error::SessionGone)))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct SessionFailure(pub Error);

const CANNOT_HOLD: &str = "The session cannot hold what this request is to store in it.";

/// Returns the status and the text that a client gets for `error`. The error's own text may hold internals
/// and is not sent.
fn explanation(error: &Error) -> (StatusCode, &'static str) {
    match error {
        Error::SessionGone => (
            StatusCode::BAD_REQUEST,
            "The session was ended before the request was completed, for example by a logout in another window.",
        ),
        Error::Conflict => (
            StatusCode::CONFLICT,
            "The session was changed by another request at the same time. Please try again.",
        ),
        // Another node, with a newer version or another key, may be able to read it.
        Error::Unreadable(_)
        | Error::Database(_)
        | Error::CacheUnavailable
        | Error::Busy
        | Error::Interrupted
        | Error::Closed => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Sessions are not available at the moment. Please try again later.",
        ),
        // The contents of a session come from clients, more often than not.
        Error::TooLarge { .. } | Error::TooManyKeys { .. } => {
            (StatusCode::PAYLOAD_TOO_LARGE, "The session cannot hold that much.")
        }
        Error::TooDeep { .. } | Error::ReservedKey { .. } | Error::InvalidSubject(_) => {
            (StatusCode::BAD_REQUEST, CANNOT_HOLD)
        }
        // A codec that fails whatever the data is, is the server's trouble.
        Error::Unencodable(error) if matches!(**error, CodecError::Unencodable(_)) => {
            (StatusCode::BAD_REQUEST, CANNOT_HOLD)
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "The session could not be used."),
    }
}

impl SessionFailure {
    /// Returns the status of the response that is made of the error.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        explanation(&self.0).0
    }
}

/// Returns the response to a request that failed, with a body that `explain` makes of a text.
pub(super) fn of<Body>(
    failure: SessionFailure,
    explain: impl FnOnce(&'static str) -> Body,
) -> Response<Body> {
    let (status, text) = explanation(&failure.0);
    let mut response = Response::new(explain(text));
    *response.status_mut() = status;
    let text_plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text_plain);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.extensions_mut().insert(failure);
    response
}
