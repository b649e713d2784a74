use std::fmt;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response};
use session_core::{Cache, Persistence};
use tower_layer::Layer;
use tower_service::Service;

use super::body::{AnyBody, ErrorBody, SameBody};
use super::caching::{keep_out_of_shared_caches, vary_by};
use super::cookie::SessionCookie;
use super::handle::SessionHandle;
use super::opened::KeyChange;
use super::response::{self, SessionFailure, note_key_headers};
use super::settings::Settings;
use super::transport::{InvalidTransport, PresentedKeys, Transport};
use crate::CachedDb;

/// A layer that adds a [`SessionHandle`] to every request, and stores the session and sends the client its key after
/// the response is made.
///
/// # Behavior
///
/// - Nothing is loaded before the session is used, that is, before [`SessionHandle::lock`]. A request that
///   does not use it costs no I/O, and its response is not changed.
/// - The key travels in a [cookie](SessionCookie), unless another [`Transport`] is [set](Self::with_transport).
/// - Text that is not a key opens a new session and costs no I/O. A key that a client presents is never
///   adopted.
/// - A modified session is saved after the response is made and before it is sent. It is not saved after a
///   response of 500 or more, nor after one that was made of an [`Error`](crate::Error). Changes that a
///   handler has saved itself stay.
/// - An empty session gets no row and no key.
/// - The key is sent when it is new to the client, when the session's expiry was changed, and otherwise with the first write in
///   each [`touch_interval`](crate::Builder::touch_interval), so a cookie may end that much earlier than its session. Not with
///   every write: an answer that comes after that of a login would bring the old key back. So the answer to a request that a
///   page makes by itself (`Sec-Fetch-Mode` is there, and not `navigate`; browsers do not send it over plain HTTP) prolongs the key
///   only once in a quarter of the session's life. The cookie of a page that is never left may end that much earlier than its
///   session. The cookie's `Max-Age` is the session's
///   [`expiry_age`](crate::Session::expiry_age); that of a session that ends with the browser has none. The cookie is
///   removed only if this request has ended its session: a cookie that opens no session is left alone, because
///   the client may have got another one since, or another node may know the session.
/// - Of several cookies with the name, the first one that opens a session with a subject counts, or else the first one that opens
///   any. An anonymous one does not count beside one whose session cannot be read, or was given to a user a moment ago: its key, sent
///   again, would take the place of theirs. At most four are tried, and at most sixteen looked at; if the store does not answer for
///   one of them, the request fails. A request that ends its session, by [`flush`](crate::Session::flush) or
///   [`log_out`](crate::Session::log_out), or that saves it without its subject, ends those of the other cookies that are tried as
///   well: otherwise one of them could log the client in again.
/// - A session that is there and cannot be read is an error of [`SessionHandle::lock`], which is answered with
///   503; the cookie stays.
/// - `Vary: Cookie` is added whenever the session was used, even if that failed, and `Cache-Control: private` unless the
///   handler has set `Cache-Control`: shared caches must not give one client's page to another. A response that sends or removes
///   a key is `private` in any case: what else the handler has said of shared caches is taken away from its `Cache-Control`.
/// - A session that was used and not modified is [touched](crate::Session::touch), at most once per
///   [`touch_interval`](crate::Builder::touch_interval); see [`touch`](Self::touch).
/// - If the session cannot be saved, the response is replaced by one that says so, with the
///   [`Error`](crate::Error) in a [`SessionFailure`] among its extensions: 400 if the
///   session was ended while the request was handled, or cannot hold what it is to hold (a subject that is too long, a value
///   that is nested too deep, data that the codec refuses), 413 if it would exceed a limit of the store or its codec, 409 for a
///   conflict, 503 when the store is not available, otherwise 500. Of the replaced response, all `Set-Cookie` headers stay, and the key that another
///   layer has sent; see [`SessionFailure::replace`].
/// - The response does not wait for a task that [keeps the session](SessionHandle::lock). Changes that are made after the
///   response, by such a task or by a streamed body, are not saved unless that code saves them itself. A task that has begun to
///   save what was changed before, and does not go on, is waited for as long as the longest write may take; then the
///   response is 503, because the outcome is not known, unless the handler's own is 500 or more.
/// - A body that is streamed comes after the headers: a session that it uses first, or changes, adds no header and sends no
///   key. Lock the session in the handler before, at least to read it, and save there what gets a new key.
/// - A request that is cut off, because the client has gone, by a timeout outside of the layer or by a panic that is caught outside
///   of it, stores nothing more and sends nothing: a key that a handler has changed before is lost to the client. Put layers that
///   catch panics and cut handlers inside of this one. A response of theirs below 500, such as 408, saves what the
///   handler had changed by then: choose 503 or 504. If a timeout cuts a handler that holds a guard, and another task of the request
///   waits for the session at that moment, that task saves what the handler had changed by then.
///
/// # Around other services
///
/// The layer fits around any service of `http` requests. It makes responses of its own only for errors, with a body `From<Bytes>`,
/// as axum's and `http_body_util::Full` are. Around a service with another body, such as one that is compressed, boxed, or
/// tonic's, call [`any_body`](Self::any_body).
///
/// `M` marks the layer's sessions, see [`marker`](Self::marker).
pub struct SessionLayer<M = (), B = SameBody> {
    settings: Arc<Settings>,
    marker: Marker<M, B>,
}

type Marker<M, B> = PhantomData<fn() -> (M, B)>;

impl SessionLayer {
    /// Returns a layer over `store`, with the [default cookie](SessionCookie).
    #[must_use]
    pub fn new<C: Cache, P: Persistence>(store: CachedDb<C, P>) -> Self {
        let transport = Arc::new(SessionCookie::default());
        let settings = Settings { store: store.inner, transport, is_touching: true };
        Self { settings: Arc::new(settings), marker: PhantomData }
    }
}

impl<M, B> SessionLayer<M, B> {
    /// Sets the cookie. Defaults to [`SessionCookie::default`].
    ///
    /// # Errors
    ///
    /// [`InvalidTransport`] when browsers would refuse the cookie.
    pub fn with_cookie(self, cookie: SessionCookie) -> Result<Self, InvalidTransport> {
        self.with_transport(cookie)
    }

    /// Sets the way in which the key travels. Defaults to a cookie.
    ///
    /// # Errors
    ///
    /// [`InvalidTransport`] when clients would not take what the transport sends.
    pub fn with_transport(mut self, transport: impl Transport) -> Result<Self, InvalidTransport> {
        transport.check()?;
        Arc::make_mut(&mut self.settings).transport = Arc::new(transport);
        Ok(self)
    }

    /// Sets whether using a session without changing it prolongs its life. Defaults to `true`. With `false`,
    /// a sliding expiry counts from the last save, as in Django.
    #[must_use]
    pub fn touch(mut self, is_touching: bool) -> Self {
        Arc::make_mut(&mut self.settings).is_touching = is_touching;
        self
    }

    /// Marks the layer's sessions with a type, for an application with several layers: a handler gets the session of each by
    /// [`SessionHandle<N>`]. Defaults to `()`. Give each layer a cookie of its own. They may share a store.
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "moka", feature = "sqlite"))]
    /// # mod example {
    /// use axum::{Router, routing::get};
    /// use session_cached_db::tower::{InvalidTransport, SessionCookie, SessionHandle, SessionLayer};
    /// use session_cached_db::{CachedDb, Error, MokaCache, SqlitePersistence};
    ///
    /// enum Admin {}
    ///
    /// type Store = CachedDb<MokaCache, SqlitePersistence>;
    ///
    /// # pub
    /// fn app(store: Store, admin_store: Store) -> Result<Router, InvalidTransport> {
    ///     let admin_cookie = SessionCookie::new("__Secure-admin").path("/admin");
    ///     Ok(Router::new()
    ///         .route("/admin/audit", get(audit))
    ///         .layer(SessionLayer::new(admin_store).marker::<Admin>().with_cookie(admin_cookie)?)
    ///         .layer(SessionLayer::new(store)))
    /// }
    ///
    /// async fn audit(visitor: SessionHandle, admin: SessionHandle<Admin>) -> Result<String, Error> {
    ///     let (visitor, admin) = (visitor.lock().await?, admin.lock().await?);
    ///     Ok(format!("{:?} works as {:?}", visitor.subject(), admin.subject()))
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn marker<N>(self) -> SessionLayer<N, B> {
        SessionLayer { settings: self.settings, marker: PhantomData }
    }

    /// Wraps the bodies of responses into a [`SessionBody`](super::SessionBody), so that the layer fits around services with
    /// any body. Without this, the body stays what it is, and must be `From<Bytes>`.
    #[must_use]
    pub fn any_body(self) -> SessionLayer<M, AnyBody> {
        SessionLayer { settings: self.settings, marker: PhantomData }
    }
}

impl<S, M, B> Layer<S> for SessionLayer<M, B> {
    type Service = SessionService<S, M, B>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService { inner, settings: Arc::clone(&self.settings), marker: PhantomData }
    }
}

/// The service that [`SessionLayer`] wraps around another one.
pub struct SessionService<S, M = (), B = SameBody> {
    inner: S,
    settings: Arc<Settings>,
    marker: Marker<M, B>,
}

impl<S, M, B, RequestBody, ResponseBody> Service<Request<RequestBody>> for SessionService<S, M, B>
where
    S: Service<Request<RequestBody>, Response = Response<ResponseBody>>,
    S::Future: Send + 'static,
    M: 'static,
    B: ErrorBody<ResponseBody>,
    ResponseBody: Send + 'static,
{
    type Response = Response<B::Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<RequestBody>) -> Self::Future {
        let settings = Arc::clone(&self.settings);
        let mut presented = PresentedKeys::default();
        settings.transport.read(request.headers(), &mut presented);
        settings.note_rejected(&presented);
        let handle = SessionHandle::<M>::new(settings, presented, is_background(request.headers()));
        request.extensions_mut().insert(handle.clone());
        let response = self.inner.call(request);
        let request = OpenRequest(handle);
        Box::pin(async move {
            let response = pin!(response.fuse());
            // Dropped before the response: a task that waits for a guard of the handler must not save what is half done.
            let request = request;
            let OpenRequest(handle) = &request;
            handle.begin();
            let response = response.await?;
            Ok(finish::<M, B, _>(handle, response).await)
        })
    }
}

/// Returns `true` if a browser says that a page makes the request by itself, such as a script or an image.
fn is_background(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-mode").is_some_and(|mode| mode != "navigate")
}

/// A request until its response is made, or it is cut off: by a client that has gone, a timeout or a panic.
struct OpenRequest<M>(SessionHandle<M>);

impl<M> Drop for OpenRequest<M> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Stores the session, and completes the response.
async fn finish<M, B: ErrorBody<ResponseBody>, ResponseBody>(
    handle: &SessionHandle<M>,
    response: Response<ResponseBody>,
) -> Response<B::Body> {
    let settings = handle.settings();
    let failure = response.extensions().get::<SessionFailure>();
    let is_to_be_stored = failure.is_none() && !response.status().is_server_error();
    if let Some(failure) = failure {
        settings.note_failure(failure);
    }
    if !handle.is_used() {
        return response.map(B::keep);
    }
    let finished = handle.finish(is_to_be_stored).await;
    let mut response = match finished.failure {
        None => response.map(B::keep),
        Some(error) => {
            let failure = SessionFailure(error);
            settings.note_failure(&failure);
            SessionFailure::replace(response, response::of(failure, B::explain))
        }
    };
    let changes_key = finished.key_change.is_some();
    if changes_key {
        note_key_headers(response.extensions_mut(), settings.transport.response_headers());
    }
    let headers = response.headers_mut();
    match finished.key_change {
        Some(KeyChange::Written { key, max_age }) => settings.transport.write(headers, &key, max_age),
        Some(KeyChange::Ended) => settings.transport.remove(headers),
        None => {}
    }
    vary_by(headers, settings.transport.request_headers());
    keep_out_of_shared_caches(headers, changes_key);
    response
}

impl<M, B> Clone for SessionLayer<M, B> {
    fn clone(&self) -> Self {
        Self { settings: Arc::clone(&self.settings), marker: PhantomData }
    }
}

impl<M, B> fmt::Debug for SessionLayer<M, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer").field("settings", &self.settings).finish()
    }
}

impl<S: Clone, M, B> Clone for SessionService<S, M, B> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), settings: Arc::clone(&self.settings), marker: PhantomData }
    }
}

impl<S: fmt::Debug, M, B> fmt::Debug for SessionService<S, M, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionService")
            .field("inner", &self.inner)
            .field("settings", &self.settings)
            .finish()
    }
}
