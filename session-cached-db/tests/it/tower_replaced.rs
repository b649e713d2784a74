//! Responses that are replaced because a session could not be stored: what their client has to learn all the same.

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware;
use axum::response::{AppendHeaders, IntoResponse as _, Response};
use axum::routing::any;
use session_cached_db::tower::{SessionCookie, SessionFailure, SessionHandle, SessionHeader, Transport};
use session_cached_db::{ConflictPolicy, Error};

use crate::common::{Fault, World, key_of};
use crate::tower::{Answer, ask, cookie_of, layer};

enum Admin {}

const ADMIN: &str = "__Secure-admin";
const X_ADMIN: HeaderName = HeaderName::from_static("x-admin");

/// A fault that keeps the layer from storing the visitor's session.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Ended,
    Conflict,
    Outage,
}

const CAUSES: [(Cause, u16); 3] = [(Cause::Ended, 400), (Cause::Conflict, 409), (Cause::Outage, 503)];

/// Returns the answer to a login of an administrator, after which the visitor's session cannot be stored.
async fn failed(world: &World, cause: Cause, admin: impl Transport, has_own_page: bool) -> Answer {
    let session = world.saved([("visits", 1)]).await;
    let (store, db, key) = (world.store.clone(), world.db.calls.clone(), session.key().unwrap().clone());
    let page = async move |visitor: SessionHandle, admin: SessionHandle<Admin>| -> Result<_, Error> {
        visitor.lock().await?.insert("visits", 2)?;
        admin.lock().await?.log_in("root").await?;
        match cause {
            Cause::Ended => assert!(store.end(&key).await?.value),
            Cause::Conflict => {
                let mut other = store.open(key.expose()).await?;
                other.insert("visits", 3)?;
                other.save().await?;
            }
            Cause::Outage => db.fail_all(Fault::Unreachable),
        }
        let headers = [(header::SET_COOKIE, "theme=dark"), (header::SET_COOKIE, "lang=eo")];
        Ok((AppendHeaders(headers), [(header::ETAG, "\"stored\"")], "stored"))
    };
    let inner = layer(world).marker::<Admin>().with_transport(admin).unwrap();
    let site = Router::new().route("/", any(page)).layer(inner).layer(layer(world));
    // The application's own page in the place of the layer's text.
    let site = if has_own_page { site.layer(middleware::map_response(with_own_page)) } else { site };
    ask(&site, Some(&cookie_of(&session))).await
}

async fn with_own_page(response: Response) -> Response {
    match response.extensions().get() {
        Some(SessionFailure(_)) => SessionFailure::replace(response, "an own page".into_response()),
        None => response,
    }
}

async fn with_reject() -> World {
    World::with(|builder| builder.conflict_policy(ConflictPolicy::Reject)).await
}

async fn assert_admin(world: &World, key: &str) {
    world.db.calls.heal();
    assert_eq!(world.store.open(key).await.unwrap().subject(), Some("root"));
}

#[tokio::test]
async fn failed_save_of_one_layer_keeps_the_new_cookie_of_another() {
    for (cause, status) in CAUSES {
        let world = with_reject().await;
        let answer = failed(&world, cause, SessionCookie::new(ADMIN), false).await;
        assert_eq!(answer.status.as_u16(), status, "{cause:?}");
        assert!(answer.failure.is_some());
        let set: Vec<_> =
            answer.headers.get_all(header::SET_COOKIE).iter().map(|line| line.to_str().unwrap()).collect();
        // The cookies of the handler, too: what they go with has happened, as far as the layer can know.
        assert_eq!(set[..2], ["theme=dark", "lang=eo"], "{cause:?}");
        let [_, _, admin] = set[..] else { panic!("{cause:?}: {set:?}") };
        let key = admin.split(';').next().unwrap().strip_prefix("__Secure-admin=").unwrap();
        assert_admin(&world, key).await;
        // What is said of the page that is gone, is gone.
        assert!(!answer.headers.contains_key(header::ETAG) && answer.body != "stored");
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    }
}

#[tokio::test]
async fn failed_save_of_one_layer_keeps_the_new_key_in_a_header_of_another() {
    for (cause, status) in CAUSES {
        let world = with_reject().await;
        let answer = failed(&world, cause, SessionHeader::new(X_ADMIN), false).await;
        assert_eq!(answer.status.as_u16(), status, "{cause:?}");
        assert_admin(&world, answer.headers[&X_ADMIN].to_str().unwrap()).await;
        let vary: Vec<_> = answer.headers.get_all(header::VARY).iter().collect();
        assert_eq!(vary, ["x-admin", "Cookie"], "{cause:?}");
    }
}

#[tokio::test]
async fn own_page_brings_the_keys_of_the_response_that_it_replaces() {
    let world = with_reject().await;
    let cookie = failed(&world, Cause::Ended, SessionCookie::new(ADMIN), true).await;
    assert_eq!((cookie.status, cookie.body.as_str()), (StatusCode::OK, "an own page"));
    assert_eq!(cookie.headers.get_all(header::SET_COOKIE).iter().count(), 3);
    assert!(cookie.failure.is_some() && cookie.varies_by_cookie());
    assert_eq!(cookie.headers[header::CACHE_CONTROL], "private");
    let in_header = failed(&world, Cause::Ended, SessionHeader::new(X_ADMIN), true).await;
    assert_admin(&world, in_header.headers[&X_ADMIN].to_str().unwrap()).await;
}

#[tokio::test]
async fn error_of_the_inner_layer_is_one_of_the_request_for_the_outer_one() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let admin = world.saved([("visits", 1)]).await;
    let (store, key) = (world.store.clone(), admin.key().unwrap().clone());
    let page = async move |visitor: SessionHandle, admin: SessionHandle<Admin>| -> Result<_, Error> {
        visitor.lock().await?.insert("visits", 2)?;
        admin.lock().await?.insert("visits", 2)?;
        store.end(&key).await.map(drop)
    };
    let inner = layer(&world).marker::<Admin>().with_cookie(SessionCookie::new(ADMIN)).unwrap();
    let site = Router::new().route("/", any(page)).layer(inner).layer(layer(&world));
    let both = format!("{}; {ADMIN}={}", cookie_of(&session), key_of(&admin));
    let answer = ask(&site, Some(&both)).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(matches!(answer.failure, Some(SessionFailure(Error::SessionGone))));
    assert_eq!(world.reopen(&session).await.get::<i32>("visits").unwrap(), Some(1));
}
