use std::slice;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use session_core::SessionKey;

use super::transport::{PresentedKeys, Transport};

/// The session key in a header, for mobile applications and other programs that keep no cookies.
///
/// A response carries the key in a header when it is new to the client, and now and then when the session was written. It carries
/// the same header without a value when the request has ended its session. The client keeps the key in a safe place and presents
/// it until it gets another one. It need not know when the session ends: that is up to the store.
///
/// Browsers send no such header by themselves, so a request that another site makes has no session. A script must be able to
/// read the key to send it; where scripts of others can get in, keep to the cookie.
///
/// ```
/// use http::HeaderName;
/// use session_cached_db::tower::SessionHeader;
///
/// // `X-Session: KEY`, in requests and in responses.
/// let own_header = SessionHeader::new(HeaderName::from_static("x-session"));
/// // `Authorization: Bearer KEY` in requests, `X-Session: KEY` in responses.
/// let bearer = SessionHeader::bearer(HeaderName::from_static("x-session"));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct SessionHeader {
    request: [HeaderName; 1],
    response: HeaderName,
    /// The scheme that comes before the key in requests.
    scheme: Option<&'static [u8]>,
}

impl SessionHeader {
    /// Returns a transport in the header `name`, in requests and in responses.
    pub fn new(name: HeaderName) -> Self {
        Self { request: [name.clone()], response: name, scheme: None }
    }

    /// Returns a transport in the header `Authorization` of requests, with the scheme `Bearer`, and in the header `response` of
    /// responses. Other schemes are left to other programs.
    pub const fn bearer(response: HeaderName) -> Self {
        Self { request: [header::AUTHORIZATION], response, scheme: Some(b"bearer") }
    }

    /// Returns the key in a value, or `None` if it has another scheme.
    fn strip_scheme<'a>(&self, value: &'a [u8]) -> Option<&'a [u8]> {
        let Some(scheme) = self.scheme else { return Some(value) };
        let (start, rest) = value.split_at_checked(scheme.len())?;
        (start.eq_ignore_ascii_case(scheme) && rest.starts_with(b" ")).then_some(rest)
    }

    fn value(key: &SessionKey) -> Option<HeaderValue> {
        // Does not fail: a key has only characters of headers.
        let mut value = HeaderValue::from_str(key.expose()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Transport for SessionHeader {
    fn request_headers(&self) -> &[HeaderName] {
        &self.request
    }

    fn response_headers(&self) -> &[HeaderName] {
        slice::from_ref(&self.response)
    }

    fn read(&self, request: &HeaderMap, keys: &mut PresentedKeys) {
        let [name] = &self.request;
        for value in request.get_all(name) {
            if let Some(key) = self.strip_scheme(value.as_bytes()) {
                keys.offer(key.trim_ascii());
            }
        }
    }

    fn write(&self, response: &mut HeaderMap, key: &SessionKey, _: Option<Duration>) {
        if let Some(value) = Self::value(key) {
            response.insert(&self.response, value);
        }
    }

    fn remove(&self, response: &mut HeaderMap) {
        response.insert(&self.response, HeaderValue::from_static(""));
    }
}
