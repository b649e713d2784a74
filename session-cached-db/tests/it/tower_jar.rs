//! Two answers that reach a client in either order, with a cookie jar that keeps cookies as browsers do.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use cookie_store::CookieStore;
use session_cached_db::Error;
use session_cached_db::tower::SessionHandle;
use tokio::sync::Barrier;
use url::Url;

use crate::common::World;
use crate::tower::{Answer, ask, layer, log_out, read, site, visit};

fn url() -> Url {
    Url::parse("https://shop.example/").unwrap()
}

/// Takes over the cookies of an answer.
fn apply(jar: &mut CookieStore, answer: &Answer) {
    for line in answer.headers.get_all(header::SET_COOKIE) {
        jar.parse(line.to_str().unwrap(), &url()).unwrap();
    }
}

/// Returns the header `Cookie` of the client's next request.
fn header_of(jar: &CookieStore) -> Option<String> {
    let pairs: Vec<_> =
        jar.get_request_values(&url()).map(|(name, value)| format!("{name}={value}")).collect();
    (!pairs.is_empty()).then(|| pairs.join("; "))
}

async fn log_in(session: SessionHandle) -> Result<(), Error> {
    let mut session = session.lock().await?;
    session.set_subject("user-42")?;
    session.cycle_key().await.map(drop)
}

/// Sends two requests with the cookie that the client has now, one after the other. Returns the client's jar after both
/// answers, in both orders, with the answers' texts.
async fn in_both_orders(jar: &CookieStore, one: &Router, other: &Router) -> [(CookieStore, [String; 2]); 2] {
    let cookie = header_of(jar);
    let one = ask(one, cookie.as_deref()).await;
    let other = ask(other, cookie.as_deref()).await;
    [[&one, &other], [&other, &one]].map(|answers| {
        let mut jar = jar.clone();
        for answer in answers {
            apply(&mut jar, answer);
        }
        (jar, answers.map(|answer| answer.body.clone()))
    })
}

async fn visitor(world: &World) -> CookieStore {
    let mut jar = CookieStore::default();
    apply(&mut jar, &ask(&site(layer(world), visit), None).await);
    assert!(header_of(&jar).unwrap().starts_with("__Host-session="));
    jar
}

#[tokio::test]
async fn poll_with_the_old_cookie_does_not_log_the_client_out() {
    let world = World::new().await;
    let jar = visitor(&world).await;
    let (login, poll) = (site(layer(&world), log_in), site(layer(&world), read));
    for (jar, bodies) in in_both_orders(&jar, &login, &poll).await {
        assert!(bodies.contains(&"0".to_owned()), "the poll came too late for the old cookie: {bodies:?}");
        let who = site(layer(&world), async |session: SessionHandle| -> Result<String, Error> {
            Ok(session.lock().await?.subject().unwrap_or_default().to_owned())
        });
        assert_eq!(ask(&who, header_of(&jar).as_deref()).await.body, "user-42");
    }
}

#[tokio::test]
async fn poll_that_overlaps_a_login_does_not_log_the_client_out() {
    let world = World::new().await;
    let jar = visitor(&world).await;
    let barrier = Arc::new(Barrier::new(2));
    let waiting = Arc::clone(&barrier);
    let poll = site(layer(&world), async move |session: SessionHandle| -> Result<String, Error> {
        let session = session.lock().await?;
        // The poll has read the session before the login, and answers after it.
        waiting.wait().await;
        waiting.wait().await;
        Ok(session.len().to_string())
    });
    let login = site(layer(&world), log_in);
    let cookie = header_of(&jar);
    let (polled, logged_in) = tokio::join!(ask(&poll, cookie.as_deref()), async {
        barrier.wait().await;
        let answer = ask(&login, cookie.as_deref()).await;
        barrier.wait().await;
        answer
    });
    assert_eq!(polled.body, "1");
    for answers in [[&polled, &logged_in], [&logged_in, &polled]] {
        let mut jar = jar.clone();
        for answer in answers {
            apply(&mut jar, answer);
        }
        assert_eq!(header_of(&jar), Some(logged_in.cookie()));
    }
}

#[tokio::test]
async fn poll_after_a_logout_brings_no_cookie_back() {
    let world = World::new().await;
    let jar = visitor(&world).await;
    let (logout, poll) = (site(layer(&world), log_out), site(layer(&world), read));
    for (jar, _) in in_both_orders(&jar, &logout, &poll).await {
        assert_eq!(header_of(&jar), None);
    }
}

#[tokio::test]
async fn login_after_a_logout_wins_in_the_order_of_the_answers() {
    let world = World::new().await;
    let mut jar = visitor(&world).await;
    let (logout, login) = (site(layer(&world), log_out), site(layer(&world), log_in));
    for site in [&logout, &login] {
        let cookie = header_of(&jar);
        apply(&mut jar, &ask(site, cookie.as_deref()).await);
    }
    let reading = site(layer(&world), async |session: SessionHandle| -> Result<String, Error> {
        Ok(session.lock().await?.subject().unwrap_or_default().to_owned())
    });
    assert_eq!(ask(&reading, header_of(&jar).as_deref()).await.body, "user-42");
}
