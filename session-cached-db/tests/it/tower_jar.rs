//! Two answers that reach a client in either order, with a cookie jar that keeps cookies as browsers do.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::{StatusCode, header};
use cookie_store::CookieStore;
use futures_util::future::BoxFuture;
use session_cached_db::Error;
use session_cached_db::tower::SessionHandle;
use session_core::Expiry;
use tokio::sync::Barrier;
use url::Url;

use crate::common::{HOUR, MINUTE, SECOND, StoreBuilder, World};
use crate::tower::{Answer, ask, fetch, layer, log_out, read, site, visit};

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

/// Sends two requests with the cookie that the client has now, one after the other: the first is one that a script makes.
/// Returns the client's jar after both answers, in both orders, with the answers' texts.
async fn in_both_orders(jar: &CookieStore, one: &Router, other: &Router) -> [(CookieStore, [String; 2]); 2] {
    let cookie = header_of(jar);
    let one = fetch(one, cookie.as_deref()).await;
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
async fn poll_that_counts_does_not_log_the_client_out_within_a_grace() {
    let world = World::with(|builder| builder.rotation_grace(5 * SECOND)).await;
    let jar = visitor(&world).await;
    let (login, poll) = (site(layer(&world), log_in), site(layer(&world), visit));
    for (jar, bodies) in in_both_orders(&jar, &login, &poll).await {
        assert!(bodies.iter().any(|body| body.starts_with("The session was ended")), "{bodies:?}");
        let who = site(layer(&world), async |session: SessionHandle| -> Result<String, Error> {
            Ok(session.lock().await?.subject().unwrap_or_default().to_owned())
        });
        assert_eq!(ask(&who, header_of(&jar).as_deref()).await.body, "user-42");
    }
    // Beside a leftover cookie as well, of which the layer tries each.
    let before = header_of(&jar).unwrap();
    let leftover = "__Host-session=abcdefghijklmnopqrstuvwxyz012345";
    for cookie in [format!("{before}; {leftover}"), format!("{leftover}; {before}")] {
        let answer = ask(&poll, Some(&cookie)).await;
        assert_eq!((answer.status.as_u16(), answer.headers.get(header::SET_COOKIE)), (400, None));
    }
}

async fn who(world: &World, jar: &CookieStore) -> String {
    let who = site(layer(world), async |session: SessionHandle| -> Result<String, Error> {
        Ok(session.lock().await?.subject().unwrap_or_default().to_owned())
    });
    ask(&who, header_of(jar).as_deref()).await.body
}

#[tokio::test]
async fn renewal_that_comes_late_with_the_old_cookie_logs_no_client_out() {
    for with_grace in [false, true] {
        let grace = |builder: StoreBuilder| builder.rotation_grace(5 * SECOND);
        let world = World::with(|builder| if with_grace { grace(builder) } else { builder }).await;
        let jar = visitor(&world).await;
        let login = site(layer(&world), log_in);
        let renewal = site(layer(&world), async |session: SessionHandle| -> Result<(), Error> {
            session.lock().await?.renew_key().await.map(drop)
        });
        for (jar, _) in in_both_orders(&jar, &login, &renewal).await {
            assert_eq!(who(&world, &jar).await, "user-42", "with a grace: {with_grace}");
        }
        // A visitor without a session gets none for it.
        assert!(ask(&renewal, None).await.sets_no_cookie());
    }
}

/// A request that was opened before a login rotates after it.
#[tokio::test]
async fn rotation_of_a_request_from_before_a_login_leaves_the_new_cookie() {
    type Rotate = for<'a> fn(&'a mut session_cached_db::Session) -> BoxFuture<'a, Result<(), Error>>;
    let rotations: [Rotate; 2] = [
        |session| Box::pin(async move { session.renew_key().await.map(drop) }),
        |session| Box::pin(async move { session.cycle_key().await.map(drop) }),
    ];
    for (with_grace, rotate) in [false, true].into_iter().flat_map(|on| rotations.map(|rotate| (on, rotate)))
    {
        let grace = |builder: StoreBuilder| builder.rotation_grace(5 * SECOND);
        let world = World::with(|builder| if with_grace { grace(builder) } else { builder }).await;
        let jar = visitor(&world).await;
        let barrier = Arc::new(Barrier::new(2));
        let waiting = Arc::clone(&barrier);
        let late = site(layer(&world), async move |session: SessionHandle| -> Result<(), Error> {
            let mut session = session.lock().await?;
            waiting.wait().await;
            waiting.wait().await;
            rotate(&mut session).await
        });
        let login = site(layer(&world), log_in);
        let cookie = header_of(&jar);
        let (late, logged_in) = tokio::join!(ask(&late, cookie.as_deref()), async {
            barrier.wait().await;
            let answer = ask(&login, cookie.as_deref()).await;
            barrier.wait().await;
            answer
        });
        assert_eq!(late.status, StatusCode::BAD_REQUEST, "{}", late.body);
        assert!(late.sets_no_cookie());
        for answers in [[&late, &logged_in], [&logged_in, &late]] {
            let mut jar = jar.clone();
            for answer in answers {
                apply(&mut jar, answer);
            }
            assert_eq!(who(&world, &jar).await, "user-42");
        }
    }
}

#[tokio::test]
async fn late_answer_from_before_a_login_does_not_bring_the_old_cookie_back() {
    let chooses_an_expiry = async |session: SessionHandle| -> Result<String, Error> {
        let mut session = session.lock().await?;
        session.set_expiry(Expiry::After(HOUR * 24));
        let visits = session.modify("visits", |visits: &mut u32| {
            *visits += 1;
            *visits
        })?;
        Ok(visits.to_string())
    };
    for later in [SECOND, HOUR] {
        for is_choosing in [false, true] {
            let world = World::new().await;
            let (counting, login) = match is_choosing {
                false => (site(layer(&world), visit), site(layer(&world), log_in)),
                true => (site(layer(&world), chooses_an_expiry), site(layer(&world), log_in)),
            };
            let mut jar = visitor(&world).await;
            // The first choice of an expiry is told, and the others are not.
            let second = fetch(&counting, header_of(&jar).as_deref()).await;
            apply(&mut jar, &second);
            world.runtime.advance(later);
            for (jar, bodies) in in_both_orders(&jar, &counting, &login).await {
                assert!(bodies.contains(&"3".to_owned()), "{bodies:?}");
                assert_eq!(who(&world, &jar).await, "user-42", "{later:?} later");
            }
        }
    }
}

#[tokio::test]
async fn logout_that_ended_nothing_leaves_the_cookie_of_a_login_since() {
    let world = World::new().await;
    let jar = visitor(&world).await;
    let barrier = Arc::new(Barrier::new(2));
    let waiting = Arc::clone(&barrier);
    // The second click on a button.
    let late = site(layer(&world), async move |session: SessionHandle| -> Result<(), Error> {
        let mut session = session.lock().await?;
        waiting.wait().await;
        waiting.wait().await;
        session.flush().await?;
        Ok(())
    });
    let (logout, login) = (site(layer(&world), log_out), site(layer(&world), log_in));
    let cookie = header_of(&jar);
    let (late, mut jar) = tokio::join!(ask(&late, cookie.as_deref()), async {
        barrier.wait().await;
        let mut jar = jar.clone();
        apply(&mut jar, &ask(&logout, cookie.as_deref()).await);
        assert_eq!(header_of(&jar), None);
        apply(&mut jar, &ask(&login, None).await);
        barrier.wait().await;
        jar
    });
    assert_eq!(who(&world, &jar).await, "user-42");
    assert!(late.sets_no_cookie());
    apply(&mut jar, &late);
    assert_eq!(who(&world, &jar).await, "user-42");
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
async fn late_answer_whose_touch_was_skipped_brings_no_old_cookie_back() {
    let world = World::new().await;
    let jar = visitor(&world).await;
    world.runtime.advance(HOUR);
    let barrier = Arc::new(Barrier::new(2));
    let waiting = Arc::clone(&barrier);
    let slow = site(layer(&world), async move |session: SessionHandle| -> Result<String, Error> {
        let visits: u32 = session.lock().await?.get("visits")?.unwrap_or(0);
        waiting.wait().await;
        waiting.wait().await;
        Ok(visits.to_string())
    });
    let (quick, login) = (site(layer(&world), read), site(layer(&world), log_in));
    let cookie = header_of(&jar);
    let (late, (touched, logged_in)) = tokio::join!(ask(&slow, cookie.as_deref()), async {
        barrier.wait().await;
        // It has recorded the use of the session, so the slow request need not.
        let touched = ask(&quick, cookie.as_deref()).await;
        let logged_in = ask(&login, cookie.as_deref()).await;
        barrier.wait().await;
        (touched, logged_in)
    });
    assert_eq!((late.body.as_str(), touched.sets_no_cookie()), ("1", false));
    let mut jar = jar.clone();
    for answer in [&touched, &logged_in, &late] {
        apply(&mut jar, answer);
    }
    assert_eq!(header_of(&jar), Some(logged_in.cookie()));
}

#[tokio::test]
async fn late_key_change_puts_no_key_in_the_place_of_a_logins() {
    let world = World::with(|builder| builder.rotation_grace(5 * SECOND)).await;
    let jar = visitor(&world).await;
    let cookie = header_of(&jar);
    let logged_in = ask(&site(layer(&world), log_in), cookie.as_deref()).await;
    let change = async |session: SessionHandle| -> Result<(), Error> {
        let mut session = session.lock().await?;
        session.insert("of_age", true)?;
        session.cycle_key().await.map(drop)
    };
    let late = ask(&site(layer(&world), change), cookie.as_deref()).await;
    assert_eq!((late.status, late.sets_no_cookie()), (StatusCode::BAD_REQUEST, true));
    assert!(!logged_in.sets_no_cookie());
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

fn with_grace(builder: StoreBuilder) -> StoreBuilder {
    builder.rotation_grace(30 * SECOND)
}

async fn renew(session: SessionHandle) -> Result<(), Error> {
    session.lock().await?.renew_key().await.map(drop)
}

#[tokio::test]
async fn lost_answer_of_a_renewal_is_made_up_for_by_the_next() {
    let world = World::with(with_grace).await;
    let mut jar = visitor(&world).await;
    let old = header_of(&jar);
    let lost = ask(&site(layer(&world), renew), old.as_deref()).await;
    let next = ask(&site(layer(&world), read), old.as_deref()).await;
    assert_eq!((next.body.as_str(), next.cookie()), ("1", lost.cookie()));
    let parts = next.set_cookie().unwrap();
    assert!(
        parts.contains(&"HttpOnly") && parts.iter().any(|part| part.starts_with("Max-Age=")),
        "{parts:?}"
    );
    assert!(next.headers[header::CACHE_CONTROL].to_str().unwrap().contains("private"));
    apply(&mut jar, &next);
    let again = ask(&site(layer(&world), read), header_of(&jar).as_deref()).await;
    assert!(again.body == "1" && again.sets_no_cookie());
    // After the grace, the old cookie is one like any other that opens nothing.
    world.runtime.advance(MINUTE);
    let late = ask(&site(layer(&world), read), old.as_deref()).await;
    assert!(late.body == "0" && late.sets_no_cookie());
}

#[tokio::test]
async fn poll_beside_a_renewal_leaves_the_new_cookie_in_either_order() {
    let world = World::with(with_grace).await;
    let jar = visitor(&world).await;
    let (renewal, poll) = (site(layer(&world), renew), site(layer(&world), read));
    for (jar, _) in in_both_orders(&jar, &renewal, &poll).await {
        assert_eq!(ask(&poll, header_of(&jar).as_deref()).await.body, "1");
    }
}

/// Posts a form that is under way while `rotation` rotates the key of the same client. Returns both answers.
async fn overlapped<H: Handler<T, ()>, T: 'static>(
    world: &World,
    jar: &CookieStore,
    rotation: H,
) -> [Answer; 2] {
    let barrier = Arc::new(Barrier::new(2));
    let waiting = Arc::clone(&barrier);
    let form = site(layer(world), async move |session: SessionHandle| -> Result<(), Error> {
        session.lock().await?.insert("form", 7)?;
        waiting.wait().await;
        waiting.wait().await;
        Ok(())
    });
    let (rotation, cookie) = (site(layer(world), rotation), header_of(jar));
    let (posted, rotated) = tokio::join!(ask(&form, cookie.as_deref()), async {
        barrier.wait().await;
        let answer = ask(&rotation, cookie.as_deref()).await;
        barrier.wait().await;
        answer
    });
    [posted, rotated]
}

async fn show_form(session: SessionHandle) -> Result<String, Error> {
    let session = session.lock().await?;
    Ok(format!("{:?} of {:?}", session.get::<i32>("form")?, session.subject()))
}

#[tokio::test]
async fn form_that_overlaps_a_rotation_is_stored_and_the_new_cookie_stays() {
    let world = World::with(with_grace).await;
    for is_login in [true, false] {
        let jar = visitor(&world).await;
        let [posted, rotated] = match is_login {
            true => overlapped(&world, &jar, log_in).await,
            false => overlapped(&world, &jar, renew).await,
        };
        assert_eq!(posted.status, 200);
        // The key of a login is for the client of its answer alone.
        assert_eq!(posted.sets_no_cookie(), is_login);
        for answers in [[&posted, &rotated], [&rotated, &posted]] {
            let mut jar = jar.clone();
            for answer in answers {
                apply(&mut jar, answer);
            }
            assert_eq!(header_of(&jar), Some(rotated.cookie()));
            let shown = ask(&site(layer(&world), show_form), header_of(&jar).as_deref()).await.body;
            let subject = if is_login { "Some(\"user-42\")" } else { "None" };
            assert_eq!(shown, format!("Some(7) of {subject}"));
        }
    }
}

#[tokio::test]
async fn form_that_overlaps_a_login_is_refused_without_a_grace() {
    let world = World::new().await;
    let jar = visitor(&world).await;
    let [posted, _] = overlapped(&world, &jar, log_in).await;
    assert!(posted.status == 400 && posted.sets_no_cookie());
}

#[tokio::test]
async fn planted_cookie_is_not_led_to_the_session_of_a_login() {
    let world = World::with(with_grace).await;
    let planted = visitor(&world).await;
    let login = ask(&site(layer(&world), log_in), header_of(&planted).as_deref()).await;
    for page in [site(layer(&world), show_form), site(layer(&world), log_out)] {
        let attack = ask(&page, header_of(&planted).as_deref()).await;
        assert!(attack.sets_no_cookie() && !attack.body.contains("user-42"), "{}", attack.body);
    }
    // Nor does it get another session.
    let attack = ask(&site(layer(&world), renew), header_of(&planted).as_deref()).await;
    assert!(attack.status == 400 && attack.sets_no_cookie());
    let other = format!("{}; {}", header_of(&planted).unwrap(), login.cookie());
    let shown = ask(&site(layer(&world), show_form), Some(&other)).await;
    assert_eq!(shown.body, "None of Some(\"user-42\")", "the session lives, and its cookie counts");
}

#[tokio::test]
async fn logout_that_ends_nothing_leaves_the_cookie_of_a_login() {
    let world = World::with(with_grace).await;
    let jar = visitor(&world).await;
    let end = async |session: SessionHandle| -> Result<(), Error> { session.end().await.map(drop) };
    let (login, logout) = (site(layer(&world), log_in), site(layer(&world), end));
    let old = header_of(&jar);
    let logged_in = ask(&login, old.as_deref()).await;
    let late = ask(&logout, old.as_deref()).await;
    assert!(late.sets_no_cookie(), "the client may have the cookie of the login by now");
    assert_eq!(
        ask(&site(layer(&world), show_form), Some(&logged_in.cookie())).await.body,
        "None of Some(\"user-42\")"
    );
}

#[tokio::test]
async fn logout_with_the_old_cookie_ends_a_renewed_session() {
    let world = World::with(with_grace).await;
    let jar = visitor(&world).await;
    let renewed = ask(&site(layer(&world), renew), header_of(&jar).as_deref()).await;
    let logout = ask(&site(layer(&world), log_out), header_of(&jar).as_deref()).await;
    assert!(logout.removes_the_cookie());
    assert_eq!(ask(&site(layer(&world), read), Some(&renewed.cookie())).await.body, "0");
}
