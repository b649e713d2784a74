use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

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
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "The session could not be used."),
    }
}

/// Returns the response to a request that failed with `error`.
pub(super) fn of<Body: From<Bytes>>(error: Error) -> Response<Body> {
    let (status, text) = explanation(&error);
    if status.is_server_error() {
        tracing::error!(target: "session_cached_db", event = "request_failed", %error,
            "a request failed because of its session");
    }
    let mut response = Response::new(Body::from(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let text_plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text_plain);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.extensions_mut().insert(SessionFailure(error));
    response
}
