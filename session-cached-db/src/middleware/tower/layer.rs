use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use session_core::{Cache, Persistence};
use tower_layer::Layer;
use tower_service::Service;

use super::cookie::{InvalidCookie, SessionCookie};
use super::handle::SessionHandle;
use super::response::{self, SessionFailure};
use super::settings::Settings;
use crate::CachedDb;

/// A layer that adds a [`SessionHandle`] to every request, and stores the session and sets the cookie after
/// the response is made.
///
/// # Behavior
///
/// - Nothing is loaded before the session is used, that is, before [`SessionHandle::lock`]. A request that
///   does not use it costs no I/O, and its response is not changed.
/// - A cookie that is not a key opens a new session and costs no I/O. A key that a client presents is never
///   adopted.
/// - A modified session is saved after the response is made and before it is sent. It is not saved after a
///   response of 500 or more, nor after one that was made of an [`Error`](crate::Error). Changes that a
///   handler has saved itself stay.
/// - An empty session gets no row and no cookie.
/// - The cookie is sent when the session was written. Its `Max-Age` is the session's
///   [`expiry_age`](crate::Session::expiry_age); a session that ends with the browser has none. The cookie is
///   removed only if this request has ended its session: a cookie that opens no session is left alone, because
///   the client may have got another one since, or another node may know the session.
/// - Of several cookies with the name, the first one that opens a session counts. At most four are tried.
/// - A session that is there and cannot be read is an error of [`SessionHandle::lock`], which is answered with
///   503; the cookie stays.
/// - `Vary: Cookie` is added whenever the session was used, even if that failed, and `Cache-Control: private` unless the
///   handler has set `Cache-Control`: shared caches must not give one client's page, or cookie, to another.
/// - A session that was used and not modified is [touched](crate::Session::touch), at most once per
///   [`touch_interval`](crate::Builder::touch_interval); see [`touch`](Self::touch).
/// - If the session cannot be saved, the response is replaced by one that says so, with the
///   [`Error`](crate::Error) in a [`SessionFailure`](super::SessionFailure) among its extensions: 400 if the
///   session was ended while the request was handled, 409 for a conflict, 503 when the store is not
///   available, otherwise 500.
///
/// Changes that are made later, by a task that outlives the handler or by a streamed body, are not saved
/// unless that code saves them itself.
///
/// The body of responses must be `From<Bytes>`, as axum's and `http_body_util::Full<Bytes>` are.
#[derive(Clone, Debug)]
pub struct SessionLayer {
    settings: Arc<Settings>,
}

impl SessionLayer {
    /// Returns a layer over `store`, with the [default cookie](SessionCookie).
    #[must_use]
    pub fn new<C: Cache, P: Persistence>(store: CachedDb<C, P>) -> Self {
        let store = store.inner;
        Self { settings: Arc::new(Settings { store, cookie: SessionCookie::default(), is_touching: true }) }
    }

    /// Sets the cookie. Defaults to [`SessionCookie::default`].
    ///
    /// # Errors
    ///
    /// [`InvalidCookie`] when browsers would refuse the cookie.
    pub fn with_cookie(mut self, cookie: SessionCookie) -> Result<Self, InvalidCookie> {
        cookie.check()?;
        Arc::make_mut(&mut self.settings).cookie = cookie;
        Ok(self)
    }

    /// Sets whether using a session without changing it prolongs its life. Defaults to `true`. With `false`,
    /// a sliding expiry counts from the last save, as in Django.
    #[must_use]
    pub fn touch(mut self, is_touching: bool) -> Self {
        Arc::make_mut(&mut self.settings).is_touching = is_touching;
        self
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService { inner, settings: Arc::clone(&self.settings) }
    }
}

/// The service that [`SessionLayer`] wraps around another one.
#[derive(Clone)]
pub struct SessionService<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S, RequestBody, ResponseBody> Service<Request<RequestBody>> for SessionService<S>
where
    S: Service<Request<RequestBody>, Response = Response<ResponseBody>>,
    S::Future: Send + 'static,
    ResponseBody: From<Bytes> + Send + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<RequestBody>) -> Self::Future {
        let presented = self.settings.cookie.read(request.headers());
        let handle = SessionHandle::new(Arc::clone(&self.settings), presented);
        request.extensions_mut().insert(handle.clone());
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            if !handle.is_used() {
                return Ok(response);
            }
            let has_failed = response.extensions().get::<SessionFailure>().is_some();
            let finished = handle.finish(!has_failed && !response.status().is_server_error()).await;
            if let Some(error) = finished.failure {
                response = response::of(error);
            }
            if let Some(cookie) = finished.cookie {
                response.headers_mut().append(header::SET_COOKIE, cookie);
            }
            vary_by_cookie(response.headers_mut());
            keep_out_of_shared_caches(response.headers_mut());
            Ok(response)
        })
    }
}

/// Adds `Vary: Cookie`, so that no HTTP cache serves one client's page, or cookie, to another client.
fn vary_by_cookie(headers: &mut HeaderMap) {
    let lines = headers.get_all(header::VARY).iter().filter_map(|line| line.to_str().ok());
    let mut names = lines.flat_map(|line| line.split(',')).map(str::trim);
    if !names.any(|name| name == "*" || name.eq_ignore_ascii_case("cookie")) {
        headers.append(header::VARY, HeaderValue::from_static("Cookie"));
    }
}

/// Marks the response as meant for one client, unless the handler has decided that. `Vary: Cookie` does not do it alone: all
/// clients that come without a cookie send the same one, and would share the first one's cookie.
fn keep_out_of_shared_caches(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}

impl<S: fmt::Debug> fmt::Debug for SessionService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionService")
            .field("inner", &self.inner)
            .field("settings", &self.settings)
            .finish()
    }
}
