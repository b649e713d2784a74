//! The site's routes and handlers. The HTML of its pages is in `pages`.

mod accounts;
mod csrf;
mod device;
mod pages;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Form, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use session_cached_db::session_core::{DynCache, DynDatabase, Expiry, Runtime as _, Timestamp};
use session_cached_db::tower::{
    InvalidTransport, SessionCookie, SessionFailure, SessionHandle, SessionLayer,
};
use session_cached_db::{CachedDb, Error, Session, TokioRuntime};

pub(crate) use self::accounts::Accounts;
use self::accounts::{AccountsError, SignUp};
use self::pages::{CartLine, Home, OwnSession, Visitor};

pub(crate) type Store = CachedDb<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

/// Lifetime of a session with "remember me".
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Maximum number of lines in a cart, so that a visitor cannot fill the database.
const LARGEST_CART: usize = 50;

/// The keys of the session's values. The user's name is the session's subject.
mod keys {
    pub(super) const VISITS: &str = "visits";
    pub(super) const DEVICE: &str = "device";
    /// The label by which a form names one of a user's sessions. It opens no session.
    pub(super) const LABEL: &str = "label";
    /// The prefix of a line of the cart, before its random name. Each line has a key of its own, so that
    /// lines that are added at the same time are all kept: sessions are merged key by key.
    pub(super) const CART: &str = "cart/";
}

/// The state of the handlers.
#[derive(Clone)]
pub(crate) struct Site {
    store: Store,
    accounts: Accounts,
}

/// Returns the whole site.
pub(crate) fn router(
    store: Store,
    accounts: Accounts,
    cookie: SessionCookie,
) -> Result<Router, InvalidTransport> {
    complete(pages_with_sessions(), store, accounts, cookie)
}

pub(crate) fn pages_with_sessions() -> Router<Site> {
    Router::new()
        .route("/", get(home))
        .route("/cart/add", post(add_to_cart))
        .route("/cart/remove", post(remove_from_cart))
        .route("/signup", get(async || pages::sign_up(None)).post(sign_up))
        .route("/login", get(async || pages::log_in(None)).post(log_in))
        .route("/logout", post(log_out))
        .route("/logout-everywhere", post(log_out_everywhere))
        .route("/sessions", get(own_sessions))
        .route("/sessions/end", post(end_session))
}

/// Adds the session layer to `pages`, and the other layers and pages of the site.
pub(crate) fn complete(
    pages: Router<Site>,
    store: Store,
    accounts: Accounts,
    cookie: SessionCookie,
) -> Result<Router, InvalidTransport> {
    Ok(pages
        .layer(SessionLayer::new(store.clone()).with_cookie(cookie)?)
        // These use no session, so they stay outside of the session layer.
        .route("/counters", get(counters))
        .route("/style.css", get(style))
        .layer(middleware::from_fn(csrf::refuse_other_sites))
        .layer(middleware::map_response(explain_failures))
        .layer(middleware::map_response(add_security_headers))
        .with_state(Site { store, accounts }))
}

/// An error of the server.
enum Failure {
    Session(Error),
    Accounts(AccountsError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Session(error)
    }
}

impl From<AccountsError> for Failure {
    fn from(error: AccountsError) -> Self {
        Self::Accounts(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Session(error) => error.into_response(),
            Self::Accounts(error) => {
                eprintln!("{error}");
                pages::problem(StatusCode::INTERNAL_SERVER_ERROR, "Something went wrong. Please try again.")
            }
        }
    }
}

type Answer = Result<Response, Failure>;

fn go_to(path: &str) -> Response {
    Redirect::to(path).into_response()
}

async fn home(session: SessionHandle) -> Answer {
    let mut session = session.lock().await?;
    // Count only visits of visitors with a session: looking around needs none.
    if session.key().is_some() {
        // Two visits at the same time may count as one, because both change the same key.
        session.modify(keys::VISITS, |visits: &mut u32| *visits = visits.saturating_add(1))?;
    }
    let home = Home {
        visitor: visitor(&session),
        visits: session.get(keys::VISITS)?,
        cart: cart(&session)?,
        is_cart_full: cart(&session)?.len() >= LARGEST_CART,
    };
    Ok(pages::home(&home))
}

fn visitor(session: &Session) -> Visitor {
    Visitor { name: session.subject().map(str::to_owned) }
}

fn cart(session: &Session) -> Result<Vec<CartLine>, Error> {
    let lines = session.keys().filter_map(|key| Some((key, key.strip_prefix(keys::CART)?)));
    let mut cart = Vec::new();
    for (key, line) in lines {
        let product: Option<String> = session.get(key)?;
        if let Some(product) = product.as_deref().and_then(pages::product) {
            cart.push(CartLine { line: line.to_owned(), product });
        }
    }
    cart.sort_by_key(|line| line.product.name);
    Ok(cart)
}

#[derive(Deserialize)]
struct AddToCart {
    product: String,
}

async fn add_to_cart(session: SessionHandle, Form(form): Form<AddToCart>) -> Answer {
    let Some(product) = pages::product(&form.product) else {
        return Ok(pages::problem(StatusCode::BAD_REQUEST, "There is no such product in this shop."));
    };
    let mut session = session.lock().await?;
    if cart(&session)?.len() >= LARGEST_CART {
        return Ok(pages::problem(
            StatusCode::CONFLICT,
            "The cart is full. Please take something out first.",
        ));
    }
    let line = format!("{}{}", keys::CART, random_name()?);
    session.insert(&line, product.id)?;
    Ok(go_to("/#cart"))
}

#[derive(Deserialize)]
struct RemoveFromCart {
    line: String,
}

async fn remove_from_cart(session: SessionHandle, Form(form): Form<RemoveFromCart>) -> Answer {
    let mut session = session.lock().await?;
    session.remove(&format!("{}{}", keys::CART, form.line));
    Ok(go_to("/#cart"))
}

#[derive(Deserialize)]
struct Credentials {
    name: String,
    password: String,
    /// Present if the box is checked.
    remember: Option<String>,
}

async fn sign_up(
    State(site): State<Site>,
    session: SessionHandle,
    headers: HeaderMap,
    Form(form): Form<Credentials>,
) -> Answer {
    match site.accounts.sign_up(&form.name, &form.password).await? {
        SignUp::Done(name) => {
            let mut session = session.lock().await?;
            begin(&mut session, &name, &headers, form.remember.is_some()).await?;
            Ok(go_to("/"))
        }
        SignUp::Refused(why) => Ok(pages::sign_up(Some((&form.name, why))).into_response()),
    }
}

async fn log_in(
    State(site): State<Site>,
    session: SessionHandle,
    headers: HeaderMap,
    Form(form): Form<Credentials>,
) -> Answer {
    match site.accounts.log_in(&form.name, &form.password).await? {
        Some(name) => {
            let mut session = session.lock().await?;
            begin(&mut session, &name, &headers, form.remember.is_some()).await?;
            Ok(go_to("/"))
        }
        None => Ok(pages::log_in(Some(&form.name)).into_response()),
    }
}

/// Logs the user `name` in to a session. The session keeps the cart of the visitor before the login.
async fn begin(session: &mut Session, name: &str, headers: &HeaderMap, remember: bool) -> Result<(), Error> {
    if session.subject().is_some_and(|subject| subject != name) {
        session.log_out().await?; // no value of one user is handed to another
    }
    session.insert(keys::DEVICE, device::of(headers))?;
    session.insert(keys::LABEL, random_name()?)?;
    session.set_expiry(if remember { Expiry::After(REMEMBERED) } else { Expiry::BrowserSession });
    // Under a new key: one that an attacker has planted or seen before the login is worth nothing afterwards.
    session.log_in(name).await?;
    Ok(())
}

async fn log_out(session: SessionHandle) -> Answer {
    session.lock().await?.log_out().await?;
    Ok(go_to("/"))
}

async fn log_out_everywhere(State(site): State<Site>, session: SessionHandle) -> Answer {
    let mut session = session.lock().await?;
    if let Some(name) = session.subject() {
        site.store.revoke_subject(name).await?;
    }
    session.flush().await?;
    Ok(go_to("/"))
}

async fn own_sessions(State(site): State<Site>, session: SessionHandle) -> Answer {
    let session = session.lock().await?;
    let Some(name) = session.subject() else { return Ok(go_to("/login")) };
    let now = now();
    let mut own = Vec::new();
    for listed in site.store.list_by_subject(name).await? {
        let (Some(times), Some(data)) = (listed.times, site.store.data(&listed.key).await?) else { continue };
        let text = |name| serde_json::from_str::<String>(data.get(name)?).ok();
        own.push(OwnSession {
            label: text(keys::LABEL).unwrap_or_default(),
            device: text(keys::DEVICE).unwrap_or_default(),
            is_this_one: session.stored_key() == Some(&listed.key),
            begun: now.since(times.created_at),
            last_used: now.since(times.last_seen_at),
        });
    }
    own.sort_by_key(|session| session.last_used);
    Ok(pages::own_sessions(&visitor(&session), &own))
}

#[derive(Deserialize)]
struct EndSession {
    label: String,
}

async fn end_session(
    State(site): State<Site>,
    session: SessionHandle,
    Form(form): Form<EndSession>,
) -> Answer {
    let mut session = session.lock().await?;
    let Some(name) = session.subject().map(str::to_owned) else { return Ok(go_to("/login")) };
    // Look only among the user's own sessions, because the form can name any label.
    for listed in site.store.list_by_subject(&name).await? {
        let Some(data) = site.store.data(&listed.key).await? else { continue };
        let label = data.get(keys::LABEL).and_then(|json| serde_json::from_str(json).ok());
        if label == Some(form.label.as_str()) {
            if session.stored_key() == Some(&listed.key) {
                // By the session itself, which then has the browser forget the key.
                session.flush().await?;
                return Ok(go_to("/"));
            }
            site.store.revoke(&listed.key).await?;
        }
    }
    if !session.exists().await? {
        session.flush().await?;
        return Ok(go_to("/"));
    }
    Ok(go_to("/sessions"))
}

/// Shows the counters, in a frame that reloads itself, which needs no script.
async fn counters(State(site): State<Site>) -> Response {
    let refresh = (HeaderName::from_static("refresh"), HeaderValue::from_static("2"));
    ([refresh], pages::counters_alone(&site.store.stats())).into_response()
}

async fn style() -> impl IntoResponse {
    let kept = HeaderValue::from_static("max-age=300");
    let css = HeaderValue::from_static("text/css; charset=utf-8");
    ([(header::CONTENT_TYPE, css), (header::CACHE_CONTROL, kept)], include_str!("style.css"))
}

/// Replaces the plain text with which the session layer answers errors by a page.
async fn explain_failures(response: Response) -> Response {
    let text = match response.extensions().get::<SessionFailure>() {
        None => return response,
        Some(SessionFailure(Error::SessionGone)) => {
            "You were logged out in another window or on another device. Your last change was not saved."
        }
        Some(_) => "Your session cannot be reached at the moment. Please try again.",
    };
    let page = pages::problem(response.status(), text);
    SessionFailure::replace(response, page)
}

async fn add_security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    // Allow no script at all, not even the site's own.
    let policy = "default-src 'none'; style-src 'self'; img-src data:; frame-src 'self'; form-action 'self'; base-uri 'none'; \
                  frame-ancestors 'self'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // After a logout, the back button must not show a page from before.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn random_name() -> Result<String, Error> {
    // As hard to guess as a key, without being one.
    Ok(session_cached_db::SessionKey::generate()?.expose().chars().take(16).collect())
}

fn now() -> Timestamp {
    TokioRuntime::current().map_or(Timestamp::from_secs(0), |runtime| runtime.now())
}
