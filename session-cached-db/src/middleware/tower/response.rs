use http::{Extensions, HeaderName, HeaderValue, Response, StatusCode, header};
use session_core::CodecError;

use super::caching::keep_out_of_shared_caches;
use crate::Error;

/// The session's error, among the extensions of a response that was made because of it. Look for it in a
/// layer outside of [`SessionLayer`](super::SessionLayer) to answer with a page of your own.
///
/// ```
/// use http::Response;
/// use session_cached_db::{Error, tower::SessionFailure};
///
/// fn with_own_page(response: Response<String>) -> Response<String> {
///     match response.extensions().get() {
///         Some(SessionFailure(Error::SessionGone)) => {
///             let page = Response::new("You were logged out in another window.".to_owned());
///             // Not the page alone: another layer may have sent a key that the client gets only once.
///             SessionFailure::replace(response, page)
///         }
///         _ => response,
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct SessionFailure(pub Error);

/// The headers in which layers have sent keys, or removed them. Among the extensions of their response.
#[derive(Clone, Debug, Default)]
struct KeyHeaders(Vec<HeaderName>);

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
        // A number that JSON does not have, for instance, which a client may send as text.
        Error::Serialize { .. }
        | Error::TooDeep { .. }
        | Error::ReservedKey { .. }
        | Error::InvalidSubject(_) => (StatusCode::BAD_REQUEST, CANNOT_HOLD),
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

    /// Returns `page` as the response in the place of `response`, with what the client has to learn whatever page it gets.
    ///
    /// # Behavior
    ///
    /// - All `Set-Cookie` headers are kept, and the other headers in which a [`Transport`](super::Transport) has sent a key: the
    ///   session of another layer may have got a key that no other response brings. The cookies of a handler are kept, too. What
    ///   they go with may be done already, and they cannot be told from those of other layers.
    /// - `Vary` is kept, once for each value. The page is `Cache-Control: private` if it says nothing else, and in any case if it
    ///   brings a cookie or a key.
    /// - The failure itself is kept, among the extensions.
    /// - All else of `response` is dropped, because it may say something of the body, or that the request succeeded. The
    ///   request has failed, so a session layer outside of this one stores nothing either.
    #[must_use]
    pub fn replace<A, B>(response: Response<A>, mut page: Response<B>) -> Response<B> {
        let (mut old, _) = response.into_parts();
        let KeyHeaders(names) = old.extensions.remove().unwrap_or_default();
        let kept = [header::SET_COOKIE, header::VARY];
        for name in kept.iter().chain(names.iter().filter(|name| !kept.contains(name))) {
            for value in old.headers.get_all(name) {
                let is_there =
                    name == header::VARY && page.headers().get_all(name).iter().any(|there| there == value);
                if !is_there {
                    page.headers_mut().append(name, value.clone());
                }
            }
        }
        let brings_key = !names.is_empty() || page.headers().contains_key(header::SET_COOKIE);
        keep_out_of_shared_caches(page.headers_mut(), brings_key);
        note_key_headers(page.extensions_mut(), &names);
        if let Some(failure) = old.extensions.remove::<Self>() {
            page.extensions_mut().get_or_insert_with(|| failure);
        }
        page
    }
}

/// Notes the headers in which a layer has sent a key or removed one.
pub(super) fn note_key_headers(extensions: &mut Extensions, names: &[HeaderName]) {
    let KeyHeaders(noted) = extensions.get_or_insert_default();
    for name in names {
        if !noted.contains(name) {
            noted.push(name.clone());
        }
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
