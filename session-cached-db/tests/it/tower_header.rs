//! The session key in requests: hostile cookies, other transports, several layers.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::routing::any;
use session_cached_db::tower::{
    PresentedKeys, SessionCookie, SessionHandle, SessionHeader, SessionLayer, Transport,
};
use session_cached_db::{Error, SessionKey};
use tower::ServiceExt as _;

use crate::common::{Log, SECOND, World, key_of};
use crate::tower::{Answer, NAME, ask_with, cookie_of, layer, log_out, read, site, visit};

const X_SESSION: HeaderName = HeaderName::from_static("x-session");

/// Sends a request with these header lines.
async fn ask_lines(site: &Router, path: &str, lines: &[(HeaderName, &[u8])]) -> Answer {
    let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
    for (name, value) in lines {
        request.headers_mut().append(name.clone(), HeaderValue::from_bytes(value).unwrap());
    }
    let response = site.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().into()).unwrap();
    let failure = parts.extensions.get().cloned();
    Answer { status: parts.status, headers: parts.headers, body, failure }
}

#[tokio::test]
async fn hostile_cookie_headers_hide_no_session_and_cost_no_error() {
    let world = World::new().await;
    let session = world.saved([("visits", 7)]).await;
    let site = site(layer(&world), read);
    let ours = cookie_of(&session);
    let key = key_of(&session);
    let cookie = |bytes: &[u8]| (header::COOKIE, bytes.to_vec());
    let long = vec![b'x'; 16 << 10];
    let cases: Vec<Vec<(HeaderName, Vec<u8>)>> = vec![
        vec![cookie(&long), cookie(ours.as_bytes())],
        vec![cookie(&[&long[..], b"; ", ours.as_bytes()].concat())],
        vec![cookie(&[b"a=", &long[..], b";", ours.as_bytes()].concat())],
        // HTTP/2 splits the header into lines.
        vec![cookie(b"a=b"), cookie(b"c=d"), cookie(ours.as_bytes()), cookie(b"e=f")],
        vec![cookie(b"\xff\xfe\x80; \xf0\x28\x8c\x28=\xff"), cookie(ours.as_bytes())],
        vec![cookie(&[b"\xff=\xff;", ours.as_bytes(), b";\xff"].concat())],
        vec![cookie(format!("{NAME}=\"{key}\"").as_bytes())],
        vec![cookie(format!("{NAME} = {key} ").as_bytes())],
        vec![cookie(format!("\t{NAME}={key}\t").as_bytes())],
        vec![cookie(format!("=;;;; ; =; \"; ==; a; {ours}").as_bytes())],
        vec![cookie(format!("{NAME}; {NAME}=; {NAME}=\"; {NAME}=\"\"; {NAME}==; {ours}").as_bytes())],
        vec![cookie(format!("x{NAME}=a; {NAME}x=b; {}=c; {ours}", NAME.to_lowercase()).as_bytes())],
        vec![cookie(
            &[format!("{NAME}=").as_bytes(), b"\xff\xff\xff\xff\xff\xff\xff\xff; ", ours.as_bytes()].concat(),
        )],
        vec![cookie(b""), cookie(ours.as_bytes()), cookie(b"")],
    ];
    for lines in cases {
        let lines: Vec<_> = lines.iter().map(|(name, value)| (name.clone(), &value[..])).collect();
        let answer = ask_lines(&site, "/", &lines).await;
        let shown = String::from_utf8_lossy(lines[0].1);
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "7"), "{shown:.80}");
        assert!(answer.sets_no_cookie(), "{shown:.80}");
    }
}

#[tokio::test]
async fn thousand_cookies_of_our_name_cost_bounded_work_and_few_lines() {
    let world = World::new().await;
    let log = Log::listen();
    let site = site(layer(&world), visit);
    let malformed = format!("{NAME}=short; ").repeat(1_000);
    let unknown: String = (0..1_000).map(|n| format!("{NAME}=abcdefghijklmnopqrstuvwxyz{n:06}; ")).collect();
    for header in [&malformed, &unknown] {
        let before = world.calls();
        let answer = ask_with(&site, Some(header.as_bytes())).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "1"));
        // For each of four keys, the cache, the database, and the end of the lease; and a session is created.
        assert!(world.calls() - before <= 4 * 4 + 4, "{}", world.calls() - before);
    }
    assert_eq!(world.store.stats().rejected_keys, 16, "no more are looked at");
    assert_eq!(log.events("key_rejected").len(), 1, "one line for a request");
}

#[cfg(feature = "private-cookies")]
#[tokio::test]
async fn thousand_forged_private_cookies_are_not_all_decrypted() {
    use session_cached_db::tower::Key;
    let world = World::new().await;
    let keys = [1, 2, 3].map(|seed| Key::from(&[seed; 64]));
    let site = site(layer(&world).with_cookie(SessionCookie::default().private(keys)).unwrap(), visit);
    let forged = format!("{NAME}={}; ", "A".repeat(80)).repeat(1_000);
    let answer = ask_with(&site, Some(forged.as_bytes())).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "1"));
    assert_eq!(world.store.stats().rejected_keys, 16);
}

#[tokio::test]
async fn presented_stored_keys_are_counted_and_logged_at_a_bounded_rate() {
    let world = World::new().await;
    let log = Log::listen();
    let session = world.saved([("visits", 7)]).await;
    let site = site(layer(&world), read);
    let stolen = format!("{NAME}={}", session.stored_key().unwrap().as_str());
    for _ in 0..100 {
        assert_eq!(ask_with(&site, Some(stolen.as_bytes())).await.body, "0");
    }
    let stats = world.store.stats();
    assert_eq!((stats.stored_keys_presented, stats.unknown_keys), (100, 100));
    assert_eq!(log.events("stored_key_presented").len(), 10);
    world.runtime.advance(10 * SECOND);
    ask_with(&site, Some(stolen.as_bytes())).await;
    let events = log.events("stored_key_presented");
    assert!(events.len() == 11 && events[10].contains("suppressed=90"), "{events:?}");
}

#[tokio::test]
async fn errors_that_a_client_can_repeat_are_logged_at_a_bounded_rate() {
    let world = World::new().await;
    let log = Log::listen();
    let session = world.saved([("visits", 1)]).await;
    let key = *session.stored_key().unwrap();
    let record = world.store.load(&key).await.unwrap().unwrap();
    let broken = session_core::Record::clone(&record).with_payload(b"\x01{".as_slice().into());
    world.store.update(&key, broken, None, session_core::ExpiryWrite::Extend).await.unwrap();
    let site = site(layer(&world), read);
    for _ in 0..100 {
        let answer = ask_with(&site, Some(cookie_of(&session).as_bytes())).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    for event in ["request_failed", "payload_unreadable"] {
        assert_eq!(log.events(event).len(), 10, "{event}");
    }
    assert!(log.lines().len() < 60, "{}", log.lines().len());
}

/// A client that keeps the key of the header `X-Session`.
async fn header_client(site: &Router, request: impl Fn(&str) -> (HeaderName, String)) {
    let first = ask_lines(site, "/visit", &[]).await;
    let key = first.headers[X_SESSION].to_str().unwrap().to_owned();
    assert_eq!((first.body.as_str(), key.len()), ("1", 32));
    assert!(first.headers[X_SESSION].is_sensitive());
    assert!(first.sets_no_cookie());
    assert_eq!(first.headers[header::CACHE_CONTROL], "private");
    let (name, value) = request(&key);
    assert!(
        first.headers.get_all(header::VARY).iter().any(|line| line == name.as_str()),
        "{:?}",
        first.headers
    );
    let second = ask_lines(site, "/read", &[(name.clone(), value.as_bytes())]).await;
    assert_eq!(second.body, "1");
    assert!(!second.headers.contains_key(X_SESSION));
    let last = ask_lines(site, "/logout", &[(name.clone(), value.as_bytes())]).await;
    assert_eq!(last.headers[X_SESSION], "");
    assert_eq!(ask_lines(site, "/read", &[(name, value.as_bytes())]).await.body, "0");
}

fn site_with(world: &World, transport: impl Transport) -> Router {
    Router::new()
        .route("/visit", any(visit))
        .route("/read", any(read))
        .route("/logout", any(log_out))
        .layer(layer(world).with_transport(transport).unwrap())
}

#[tokio::test]
async fn session_travels_in_a_header_of_its_own() {
    let world = World::new().await;
    let site = site_with(&world, SessionHeader::new(X_SESSION));
    header_client(&site, |key| (X_SESSION, key.to_owned())).await;
}

#[tokio::test]
async fn session_travels_as_a_bearer_token() {
    let world = World::new().await;
    let site = site_with(&world, SessionHeader::bearer(X_SESSION));
    header_client(&site, |key| (header::AUTHORIZATION, format!("Bearer {key}"))).await;
    header_client(&site, |key| (header::AUTHORIZATION, format!("bEARER   {key} "))).await;
}

#[tokio::test]
async fn hostile_session_headers_open_no_session_and_cost_no_error() {
    let world = World::new().await;
    let session = world.saved([("visits", 7)]).await;
    let key = key_of(&session);
    let cookies = cookie_of(&session);
    let bearer = site_with(&world, SessionHeader::bearer(X_SESSION));
    let long = format!("Bearer {}", "x".repeat(16 << 10));
    let foreign: [&[u8]; 9] = [
        b"Basic dXNlcjpwYXNz",
        b"Bearer",
        b"Bearer ",
        b"Bearer \xff\xfe",
        b"",
        long.as_bytes(),
        format!("Bearer{key}").leak().as_bytes(),
        format!("Bearer {key}, Bearer {key}").leak().as_bytes(),
        key.as_bytes(),
    ];
    for value in foreign {
        let answer = ask_lines(&bearer, "/read", &[(header::AUTHORIZATION, value)]).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "0"), "{value:.20?}");
        // Beside it, ours is found.
        let ours = format!("Bearer {key}");
        let lines = [(header::AUTHORIZATION, value), (header::AUTHORIZATION, ours.as_bytes())];
        assert_eq!(ask_lines(&bearer, "/read", &lines).await.body, "7", "{value:.20?}");
    }
    // A cookie is no header: a site that uses headers only cannot be made to act by another site's form.
    assert_eq!(ask_lines(&bearer, "/read", &[(header::COOKIE, cookies.as_bytes())]).await.body, "0");
}

/// A transport of the application's own, with two headers and a prefix.
#[derive(Debug)]
struct Own([HeaderName; 2]);

impl Transport for Own {
    fn request_headers(&self) -> &[HeaderName] {
        &self.0
    }
    fn response_headers(&self) -> &[HeaderName] {
        static X_OWN: [HeaderName; 1] = [HeaderName::from_static("x-own")];
        &X_OWN
    }
    fn read(&self, request: &HeaderMap, keys: &mut PresentedKeys) {
        for value in self.0.iter().filter_map(|name| request.get(name)) {
            keys.offer(value.as_bytes().strip_prefix(b"app:").unwrap_or_default());
        }
    }
    fn write(&self, response: &mut HeaderMap, key: &SessionKey, max_age: Option<Duration>) {
        let value = format!("{};{}", key.expose(), max_age.unwrap().as_secs());
        response.insert("x-own", value.parse().unwrap());
    }
    fn remove(&self, response: &mut HeaderMap) {
        response.insert("x-own", HeaderValue::from_static("gone"));
    }
}

#[tokio::test]
async fn transport_of_the_application_is_used_and_named_in_vary() {
    let world = World::with(|builder| builder.idle_timeout(60 * SECOND)).await;
    let names = [X_SESSION, HeaderName::from_static("x-other")];
    let site = site_with(&world, Own(names.clone()));
    let first = ask_lines(&site, "/visit", &[]).await;
    let (key, age) = first.headers["x-own"].to_str().unwrap().split_once(';').unwrap();
    assert_eq!(age, "60");
    let vary: Vec<_> = first.headers.get_all(header::VARY).iter().collect();
    assert_eq!(vary, ["x-session", "x-other"]);
    let value = format!("app:{key}");
    assert_eq!(ask_lines(&site, "/read", &[(names[1].clone(), value.as_bytes())]).await.body, "1");
    let last = ask_lines(&site, "/logout", &[(names[0].clone(), value.as_bytes())]).await;
    assert_eq!(last.headers["x-own"], "gone");
}

enum Admin {}

#[tokio::test]
async fn two_layers_have_sessions_of_their_own_in_one_handler() {
    let (world, admin_world) = (World::new().await, World::new().await);
    let admin_layer = SessionLayer::new(admin_world.store.clone())
        .marker::<Admin>()
        .with_cookie(SessionCookie::new("__Secure-admin").path("/admin"))
        .unwrap();
    let both = async |visitor: SessionHandle, admin: SessionHandle<Admin>| -> Result<String, Error> {
        let (mut visitor, mut admin) = (visitor.lock().await?, admin.lock().await?);
        visitor.insert("visits", 1)?;
        let visits = admin.get::<i32>("visits")?.unwrap_or(10);
        admin.insert("visits", visits + 1)?;
        Ok(admin.get_raw("visits").unwrap().to_owned())
    };
    let site = Router::new()
        .route("/admin", any(both))
        .layer(admin_layer)
        .route("/", any(async |_: SessionHandle<Admin>| "unreachable"))
        .layer(layer(&world));
    let first = ask_lines(&site, "/admin", &[]).await;
    assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "11"));
    let set: Vec<_> =
        first.headers.get_all(header::SET_COOKIE).iter().map(|line| line.to_str().unwrap()).collect();
    assert!(set[0].starts_with("__Secure-admin=") && set[0].contains("Path=/admin"), "{set:?}");
    assert!(set[1].starts_with("__Host-session=") && set.len() == 2, "{set:?}");
    assert_eq!(first.headers.get_all(header::VARY).iter().count(), 1);
    let cookies = set.iter().map(|line| line.split(';').next().unwrap()).collect::<Vec<_>>().join("; ");
    admin_world.runtime.advance(SECOND);
    let second = ask_lines(&site, "/admin", &[(header::COOKIE, cookies.as_bytes())]).await;
    assert_eq!(second.body, "12");
    let [visitors, admins] =
        [&world, &admin_world].map(|world| world.db.calls.count(crate::common::Call::Insert));
    assert_eq!((visitors, admins), (1, 1));
    // Without the layer of that marker, the handle is an error that says so, not another layer's session.
    assert_eq!(ask_lines(&site, "/", &[]).await.status, StatusCode::INTERNAL_SERVER_ERROR);
}
