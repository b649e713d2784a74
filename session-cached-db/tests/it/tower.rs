//! The layer's work around a handler.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Request};
use axum::handler::Handler;
use axum::http::{HeaderMap, StatusCode, header, request};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::any;
use session_cached_db::tower::{SessionCookie, SessionFailure, SessionHandle, SessionLayer};
use session_cached_db::{Error, Session};
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::common::{Call, HOUR, Log, SECOND, World, each_database, key_of, map, values_of};
use crate::tower_errors::site_of_reading;

pub const NAME: &str = "__Host-session";

/// Returns the default layer over the world's store.
pub fn layer(world: &World) -> SessionLayer {
    SessionLayer::new(world.store.clone())
}

/// Returns a site with one page, behind the layer.
pub fn site<H: Handler<T, ()>, T: 'static>(layer: SessionLayer, page: H) -> Router {
    Router::new().route("/", any(page)).layer(layer)
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    pub failure: Option<SessionFailure>,
}

/// Sends a request with this `Cookie` header.
pub async fn ask(site: &Router, cookies: Option<&str>) -> Answer {
    ask_with(site, cookies.map(str::as_bytes)).await
}

/// Sends a request with these bytes as its `Cookie` header.
pub async fn ask_with(site: &Router, cookies: Option<&[u8]>) -> Answer {
    send(site, Request::builder().uri("/"), cookies).await
}

/// Sends a request that a script makes in a browser.
pub async fn fetch(site: &Router, cookies: Option<&str>) -> Answer {
    let request = Request::builder().uri("/").header("sec-fetch-mode", "cors");
    send(site, request, cookies.map(str::as_bytes)).await
}

async fn send(site: &Router, mut request: request::Builder, cookies: Option<&[u8]>) -> Answer {
    if let Some(cookies) = cookies {
        request = request.header(header::COOKIE, cookies);
    }
    let response = site.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().into()).unwrap();
    let failure = parts.extensions.get().cloned();
    Answer { status: parts.status, headers: parts.headers, body, failure }
}

/// Returns the `Cookie` header of a client with this session.
pub fn cookie_of(session: &Session) -> String {
    format!("{NAME}={}", key_of(session))
}

impl Answer {
    /// Returns the parts of the only `Set-Cookie` header, if there is one: name and value, then the
    /// attributes.
    pub fn set_cookie(&self) -> Option<Vec<&str>> {
        let lines: Vec<_> = self.headers.get_all(header::SET_COOKIE).iter().collect();
        assert!(lines.len() <= 1, "{lines:?}");
        Some(lines.first()?.to_str().unwrap().split("; ").collect())
    }

    /// Returns the `Cookie` header that the client sends from then on.
    pub fn cookie(&self) -> String {
        let parts = self.set_cookie().expect("a cookie should be set");
        assert!(!parts[0].ends_with('='), "the cookie is removed: {parts:?}");
        parts[0].to_owned()
    }

    pub fn removes_cookie(&self) -> bool {
        self.set_cookie().is_some_and(|parts| parts[0] == format!("{NAME}="))
    }

    pub fn sets_no_cookie(&self) -> bool {
        self.set_cookie().is_none()
    }

    pub fn removes_the_cookie(&self) -> bool {
        self.set_cookie().is_some_and(|parts| parts[0].ends_with('=') && parts.contains(&"Max-Age=0"))
    }

    pub fn varies_by_cookie(&self) -> bool {
        self.headers.get_all(header::VARY).iter().any(|line| line == "Cookie")
    }
}

/// Handles a page that counts visits.
pub async fn visit(session: SessionHandle) -> Result<String, Error> {
    let mut session = session.lock().await?;
    let visits = session.modify("visits", |visits: &mut i32| {
        *visits += 1;
        *visits
    })?;
    Ok(visits.to_string())
}

/// Handles a page that shows the visits.
pub async fn read(session: SessionHandle) -> Result<String, Error> {
    Ok(session.lock().await?.get::<i32>("visits")?.unwrap_or(0).to_string())
}

pub async fn log_out(session: SessionHandle) -> Result<(), Error> {
    session.lock().await?.flush().await?;
    Ok(())
}

#[tokio::test]
async fn client_comes_back_with_its_cookie() {
    each_database(async |world| {
        let site = site(layer(&world), visit);
        let first = ask(&site, None).await;
        assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "1"));
        world.runtime.advance(SECOND);
        let second = ask(&site, Some(&first.cookie())).await;
        assert_eq!(second.body, "2");
        assert!(second.sets_no_cookie(), "the key stays");
        assert!(first.varies_by_cookie() && second.varies_by_cookie());
        world.runtime.advance(HOUR);
        let third = ask(&site, Some(&first.cookie())).await;
        assert_eq!((third.body.as_str(), third.cookie()), ("3", first.cookie()));
    })
    .await;
}

#[tokio::test]
async fn request_without_session_use_costs_no_io_and_keeps_its_response() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    world.forget_calls();
    let answer = ask(&site(layer(&world), async |_: SessionHandle| "news"), Some(&cookie_of(&session))).await;
    assert_eq!(answer.body, "news");
    assert_eq!(world.calls(), 0);
    assert!(answer.set_cookie().is_none() && !answer.varies_by_cookie(), "{:?}", answer.headers);
}

#[tokio::test]
async fn visitor_who_only_reads_gets_no_session() {
    let world = World::new().await;
    let answer = ask(&site(layer(&world), read), None).await;
    assert_eq!(answer.body, "0");
    assert_eq!(world.calls(), 0, "a request without a cookie must cost no I/O");
    assert!(answer.set_cookie().is_none());
    assert!(answer.varies_by_cookie(), "another visitor may have a session");
}

#[tokio::test]
async fn malformed_cookie_costs_no_io_and_opens_no_session() {
    let world = World::new().await;
    let log = Log::listen();
    let site = site(layer(&world), read);
    for value in ["", "short", "../../../etc/passwd", "%00%00%00%00%00%00%00%00", &"a".repeat(65)] {
        let answer = ask(&site, Some(&format!("{NAME}={value}"))).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "0"), "{value}");
        assert!(answer.sets_no_cookie() && answer.varies_by_cookie(), "{value}");
    }
    assert_eq!(world.calls(), 0);
    for _ in 0..1_000 {
        ask(&site, Some(&format!("{NAME}=short"))).await;
    }
    assert_eq!(world.store.stats().rejected_keys, 1_004, "an empty cookie is none");
    let events = log.events("key_rejected");
    assert_eq!(events.len(), 10, "{events:?}");
    assert!(events.iter().all(|event| event.starts_with("WARN") && !event.contains("passwd")), "{events:?}");
    world.runtime.advance(10 * SECOND);
    ask(&site, Some(&format!("{NAME}=short"))).await;
    let events = log.events("key_rejected");
    assert!(events.len() == 11 && events[10].contains("suppressed=994"), "{events:?}");
}

#[tokio::test]
async fn cookie_of_an_unknown_session_is_left_alone_and_never_adopted() {
    let world = World::new().await;
    let unknown = format!("{NAME}=abcdefghijklmnopqrstuvwxyz012345");
    assert!(ask(&site(layer(&world), read), Some(&unknown)).await.sets_no_cookie());
    let answer = ask(&site(layer(&world), visit), Some(&unknown)).await;
    assert_ne!(answer.cookie(), unknown);
}

#[tokio::test]
async fn first_cookie_that_opens_a_session_counts() {
    let world = World::new().await;
    let session = world.saved([("visits", 7)]).await;
    let ended = world.saved([("visits", 1)]).await;
    let site = site(layer(&world), read);
    let (ours, stale) = (cookie_of(&session), cookie_of(&ended));
    world.store.revoke(ended.stored_key().unwrap()).await.unwrap();
    for cookies in [format!("{stale}; {ours}"), format!("{NAME}=garbage; {stale}; {stale}; {ours}; {ours}")] {
        let answer = ask(&site, Some(&cookies)).await;
        assert_eq!(answer.body, "7", "{cookies}");
        assert!(answer.sets_no_cookie());
    }
    // A client cannot make the store look for any number of sessions.
    let many =
        (0..100).map(|n| format!("{NAME}=abcdefghijklmnopqrstuvwxyz{n:06}")).collect::<Vec<_>>().join("; ");
    let before = world.calls();
    assert_eq!(ask(&site, Some(&format!("{many}; {ours}"))).await.body, "0");
    // Of each key, the cache, the database, and the end of the lease.
    assert!(world.calls() - before <= 4 * 4, "{}", world.calls() - before);
}

#[tokio::test]
async fn foreign_text_in_the_cookie_header_does_not_hide_the_session() {
    let world = World::new().await;
    let session = world.saved([("visits", 7)]).await;
    let site = site(layer(&world), read);
    let key = key_of(&session);
    for header in [
        [b"caf\xe9=\xff\xfe; ".as_slice(), format!("{NAME}={key}").as_bytes()].concat(),
        format!("{NAME}=\"{key}\"").into_bytes(),
        format!("{}; {NAME}={key}", "x=y; ".repeat(3_000)).into_bytes(),
    ] {
        let answer = ask_with(&site, Some(&header)).await;
        assert_eq!(answer.body, "7", "{}", String::from_utf8_lossy(&header));
    }
}

#[tokio::test]
async fn session_cookie_is_found_among_several() {
    let world = World::new().await;
    let session = world.saved([("visits", 7)]).await;
    let site = site(layer(&world), read);
    let ours = cookie_of(&session);
    for cookies in
        [format!("a=b; {ours}; c=\"d\""), format!("x{NAME}=other; =; ;;{ours}"), format!("\"; {ours}")]
    {
        assert_eq!(ask(&site, Some(&cookies)).await.body, "7", "{cookies}");
    }
}

#[tokio::test]
async fn all_extractors_of_a_request_share_one_session() {
    let world = World::new().await;
    let page = async |one: SessionHandle, two: SessionHandle| {
        one.lock().await.unwrap().insert("visits", 1).unwrap();
        two.lock().await.unwrap().modify("visits", |visits: &mut i32| *visits += 1).unwrap();
        let (one, two) = (one.clone(), two.clone());
        tokio::join!(
            async { one.lock().await.unwrap().modify("visits", |visits: &mut i32| *visits += 10).unwrap() },
            async { two.lock().await.unwrap().modify("visits", |visits: &mut i32| *visits += 10).unwrap() },
        );
    };
    // A middleware inside of the layer shares the session, too.
    let inside = async |session: SessionHandle, request: Request, next: Next| {
        session.lock().await.unwrap().insert("seen", 1).unwrap();
        next.run(request).await
    };
    let site = Router::new().route("/", any(page)).layer(middleware::from_fn(inside)).layer(layer(&world));
    let answer = ask(&site, None).await;
    let session = world.store.open(answer.cookie().strip_prefix("__Host-session=").unwrap()).await.unwrap();
    assert_eq!(values_of(&session), map([("seen", 1), ("visits", 22)]));
    assert_eq!(world.db.calls.count(Call::Insert), 1);
}

#[tokio::test]
async fn cookie_is_removed_with_its_session() {
    each_database(async |world| {
        let session = world.saved([("visits", 1)]).await;
        let answer = ask(&site(layer(&world), log_out), Some(&cookie_of(&session))).await;
        let expected = ["__Host-session=", "HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age=0"];
        let parts = answer.set_cookie().unwrap();
        assert_eq!(parts[..expected.len()], expected);
        assert!(parts[6].starts_with("Expires="), "{parts:?}");
        assert!(answer.varies_by_cookie());
        assert_eq!(world.in_database(session.stored_key().unwrap()).await, None);
    })
    .await;
}

#[tokio::test]
async fn cookie_is_removed_with_its_domain_and_path() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let cookie = SessionCookie::new("sessionid").domain("example.org").path("/app");
    let site = site(layer(&world).with_cookie(cookie).unwrap(), log_out);
    let answer = ask(&site, Some(&format!("sessionid={}", key_of(&session)))).await;
    assert!(answer.removes_the_cookie());
    let parts = answer.set_cookie().unwrap();
    assert!(parts.contains(&"Path=/app") && parts.contains(&"Domain=example.org"), "{parts:?}");
}

#[tokio::test]
async fn flush_of_an_unsaved_session_sets_no_cookie_but_varies() {
    let world = World::new().await;
    let answer = ask(&site(layer(&world), log_out), None).await;
    assert!(answer.set_cookie().is_none());
    assert!(answer.varies_by_cookie());
    assert_eq!(world.calls(), 0);
}

#[tokio::test]
async fn session_flushed_and_saved_again_gets_a_new_cookie() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let page = async |session: SessionHandle| {
        let mut session = session.lock().await.unwrap();
        session.flush().await.unwrap();
        session.insert("message", 1).unwrap();
    };
    let answer = ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
    assert_ne!(answer.cookie(), cookie_of(&session));
    assert_eq!(world.in_database(session.stored_key().unwrap()).await, None);
}

#[tokio::test]
async fn login_changes_the_key_and_ends_the_old_one() {
    let world = World::new().await;
    let before = ask(&site(layer(&world), visit), None).await.cookie();
    let log_in = async |session: SessionHandle| -> Result<(), Error> {
        let mut session = session.lock().await?;
        session.set_subject("user-42")?;
        session.cycle_key().await.map(drop)
    };
    let after = ask(&site(layer(&world), log_in), Some(&before)).await.cookie();
    assert_ne!(after, before);
    let reading = site_of_reading(&world);
    assert_eq!(ask(&reading, Some(&after)).await.body, "1");
    let planted = ask(&reading, Some(&before)).await;
    assert_eq!(planted.body, "0");
    // The answer to a request with the old cookie may reach the client after the new cookie.
    assert!(planted.sets_no_cookie());
}

#[tokio::test]
async fn response_that_used_the_session_is_kept_out_of_shared_caches() {
    let world = World::new().await;
    let answer = ask(&site(layer(&world), visit), None).await;
    assert_eq!(answer.headers[header::CACHE_CONTROL], "private");
    assert_eq!(ask(&site(layer(&world), read), None).await.headers[header::CACHE_CONTROL], "private");
    let unused = ask(&site(layer(&world), async || "static"), None).await;
    assert!(!unused.headers.contains_key(header::CACHE_CONTROL));
    let chosen = async |session: SessionHandle| -> Result<_, Error> {
        session.lock().await?;
        Ok(([(header::CACHE_CONTROL, "no-store")], "secret"))
    };
    let answer = ask(&site(layer(&world), chosen), None).await;
    assert_eq!(answer.headers.get_all(header::CACHE_CONTROL).iter().collect::<Vec<_>>(), ["no-store"]);
}

#[tokio::test]
async fn removal_of_the_cookie_is_kept_out_of_shared_caches_in_any_case() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let page = async |session: SessionHandle| -> Result<_, Error> {
        session.lock().await?.flush().await?;
        Ok([(header::CACHE_CONTROL, "public, max-age=60")])
    };
    let answer = ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
    assert!(answer.removes_the_cookie());
    assert_eq!(answer.headers[header::CACHE_CONTROL], "private, max-age=60");
}

#[tokio::test]
async fn unused_session_costs_the_layer_no_more_allocations_than_its_handle() {
    use futures_util::FutureExt as _;
    let world = World::new().await;
    let inner =
        service_fn(async |_: Request| Ok::<_, std::convert::Infallible>(Response::new(Body::empty())));
    let session = world.saved([("visits", 1)]).await;
    let request =
        || Request::builder().header(header::COOKIE, cookie_of(&session)).body(Body::empty()).unwrap();
    let mut service = layer(&world).layer(inner);
    let (plain, layered) = (request(), request());
    let bare = allocation_counter::measure(|| {
        let mut inner = inner;
        tower::Service::call(&mut inner, plain).now_or_never().unwrap().unwrap();
    });
    let measured = allocation_counter::measure(|| {
        tower::Service::call(&mut service, layered).now_or_never().unwrap().unwrap();
    });
    // The presented key, the handle and the future; and the request's map of extensions, its table and its entry.
    assert_eq!(measured.count_total - bare.count_total, 6);
}

#[tokio::test]
async fn vary_header_of_a_handler_is_kept() {
    let world = World::new().await;
    for (said, expected) in [
        ("Accept-Encoding", vec!["Accept-Encoding", "Cookie"]),
        ("accept, COOKIE", vec!["accept, COOKIE"]),
        ("*", vec!["*"]),
    ] {
        let page = async move |session: SessionHandle| {
            session.lock().await.unwrap().get::<i32>("visits").unwrap();
            [(header::VARY, said)]
        };
        let answer = ask(&site(layer(&world), page), None).await;
        let lines: Vec<_> = answer.headers.get_all(header::VARY).iter().collect();
        assert_eq!(lines, expected);
    }
}

#[tokio::test]
async fn layer_works_around_any_http_service() {
    let world = World::new().await;
    let service = layer(&world).layer(service_fn(async |request: Request| {
        let handle = request.extensions().get::<SessionHandle>().unwrap();
        let mut session = handle.lock().await?;
        session.insert("visits", 1)?;
        Ok::<_, Error>(Response::new(Body::empty()))
    }));
    let response = service.oneshot(Request::new(Body::empty())).await.unwrap();
    assert!(response.headers().contains_key(header::SET_COOKIE));
}

#[tokio::test]
async fn missing_layer_is_an_error_that_says_so() {
    let site = Router::new().route("/", any(read));
    let answer = ask(&site, None).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let (mut parts, ()) = Request::new(()).into_parts();
    let error = SessionHandle::<()>::from_request_parts(&mut parts, &()).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no SessionLayer around this route; add one with Router::layer");
}

#[tokio::test]
async fn debug_output_shows_no_key() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let page = async |session: SessionHandle| {
        let before = format!("{session:?}");
        let guard = session.lock().await.unwrap();
        format!("{before} {session:?} {guard:?}")
    };
    let answer = ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
    assert!(!answer.body.contains(&key_of(&session)), "{}", answer.body);
    assert!(!format!("{:?}", answer.headers).contains(&key_of(&session)));
}
