//! The attributes of the session cookie, and cookies that are refused.

use session_cached_db::tower::{SameSite, SessionCookie, SessionHandle};
use session_core::Expiry;

use crate::common::{DAY, HOUR, SECOND, World};
use crate::tower::{Answer, ask, cookie_of, layer, log_out, site, visit};

async fn first_answer(cookie: SessionCookie) -> Answer {
    let world = World::with(|builder| builder.idle_timeout(DAY)).await;
    ask(&site(layer(&world).with_cookie(cookie).unwrap(), visit), None).await
}

/// Returns the name and the attributes of a first cookie, without its value.
async fn attributes(cookie: SessionCookie) -> Vec<String> {
    let answer = first_answer(cookie).await;
    let mut parts: Vec<_> = answer.set_cookie().unwrap().into_iter().map(str::to_owned).collect();
    let (name, value) = parts[0].split_once('=').unwrap();
    assert_eq!(value.len(), 32);
    parts[0] = name.to_owned();
    parts
}

#[tokio::test]
async fn default_cookie_is_bound_to_its_host() {
    assert_eq!(
        attributes(SessionCookie::default()).await,
        ["__Host-session", "HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age=86400"]
    );
}

#[tokio::test]
async fn cookie_is_secure_unless_set_otherwise() {
    assert!(attributes(SessionCookie::new("id")).await.contains(&"Secure".to_owned()));
    assert!(!attributes(SessionCookie::new("id").secure(false)).await.contains(&"Secure".to_owned()));
}

#[tokio::test]
async fn plain_http_cookie_loses_attributes_that_demand_tls() {
    for (name, expected) in [
        ("__Host-session", "session"),
        ("__host-session", "session"),
        ("__Secure-id", "id"),
        ("__Http-id", "id"),
        ("__Host-Http-id", "id"),
        ("id", "id"),
    ] {
        let cookie = SessionCookie::new(name).plain_http(true);
        assert_eq!(cookie.name(), expected);
        assert_eq!(
            attributes(cookie).await,
            [expected, "HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=86400"]
        );
        assert_eq!(SessionCookie::new(name).plain_http(false).name(), name);
    }
}

#[tokio::test]
async fn cookie_is_hidden_from_scripts() {
    assert!(attributes(SessionCookie::default().http_only(true)).await.contains(&"HttpOnly".to_owned()));
}

#[tokio::test]
async fn cookie_is_shown_to_scripts_if_http_only_is_off() {
    assert!(!attributes(SessionCookie::default().http_only(false)).await.contains(&"HttpOnly".to_owned()));
}

#[tokio::test]
async fn same_site_attribute_is_the_one_that_was_set() {
    for (same_site, expected) in [
        (SameSite::Strict, "SameSite=Strict"),
        (SameSite::Lax, "SameSite=Lax"),
        (SameSite::None, "SameSite=None"),
    ] {
        let attributes = attributes(SessionCookie::default().same_site(same_site)).await;
        assert!(attributes.contains(&expected.to_owned()), "{attributes:?}");
    }
}

#[tokio::test]
async fn partitioned_cookie_says_so_when_it_is_set_and_removed() {
    let cookie = SessionCookie::default().same_site(SameSite::None).partitioned(true);
    let said = attributes(cookie.clone()).await;
    assert_eq!(
        said,
        ["__Host-session", "HttpOnly", "SameSite=None", "Partitioned", "Secure", "Path=/", "Max-Age=86400"]
    );
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let site = site(layer(&world).with_cookie(cookie).unwrap(), log_out);
    let answer = ask(&site, Some(&cookie_of(&session))).await;
    assert!(answer.removes_the_cookie());
    // Otherwise, a browser would look for it among the cookies that are not partitioned.
    assert!(answer.set_cookie().unwrap().contains(&"Partitioned"));
}

#[tokio::test]
async fn cookie_lives_at_most_as_long_as_browsers_allow() {
    for (days, expected) in [(399, "Max-Age=34473600"), (400, "Max-Age=34560000"), (401, "Max-Age=34560000")]
    {
        let world = World::with(|builder| builder.idle_timeout(days * DAY)).await;
        let answer = ask(&site(layer(&world), visit), None).await;
        assert!(answer.set_cookie().unwrap().contains(&expected), "{days}: {:?}", answer.set_cookie());
    }
    let world = World::with(|builder| builder.idle_timeout(std::time::Duration::MAX)).await;
    let answer = ask(&site(layer(&world), visit), None).await;
    assert!(answer.set_cookie().unwrap().contains(&"Max-Age=34560000"));
}

#[tokio::test]
async fn cookie_lives_as_long_as_its_session() {
    let world = World::with(|builder| builder.idle_timeout(DAY)).await;
    for (expiry, expected) in [
        (None, Some("Max-Age=86400")),
        (Some(Expiry::After(HOUR)), Some("Max-Age=3600")),
        (Some(Expiry::After(SECOND / 2)), Some("Max-Age=1")),
        (Some(Expiry::fixed(HOUR, crate::common::START)), Some("Max-Age=3600")),
        (Some(Expiry::BrowserSession), None),
    ] {
        let page = async move |session: SessionHandle| {
            let mut session = session.lock().await.unwrap();
            session.insert("visits", 1).unwrap();
            session.set_expiry(expiry);
        };
        let answer = ask(&site(layer(&world), page), None).await;
        let parts = answer.set_cookie().unwrap();
        let max_age = parts.iter().copied().find(|part| part.starts_with("Max-Age"));
        assert_eq!(max_age, expected);
        assert!(!parts.iter().any(|part| part.starts_with("Expires")), "{parts:?}");
    }
}

#[tokio::test]
async fn cookie_that_browsers_would_refuse_is_refused() {
    let world = World::new().await;
    for (cookie, why) in [
        (SessionCookie::new(""), "the cookie's name"),
        (SessionCookie::new("a b"), "the cookie's name"),
        (SessionCookie::new("a=b"), "the cookie's name"),
        (SessionCookie::new("a;b"), "the cookie's name"),
        (SessionCookie::new("séance"), "the cookie's name"),
        (SessionCookie::new("__Host-").plain_http(true), "the cookie's name"),
        (SessionCookie::new("id").path("app"), "the cookie's path"),
        (SessionCookie::new("id").path("/a; Domain=evil.example"), "the cookie's path"),
        (SessionCookie::new("id").path("/a\r\nSet-Cookie: x"), "the cookie's path"),
        (SessionCookie::new("id").domain(""), "the cookie's domain"),
        (SessionCookie::new("id").domain("a;b"), "the cookie's domain"),
        (SessionCookie::new("__Secure-id").secure(false), "__Secure-"),
        (SessionCookie::new("__Host-id").secure(false), "__Host-"),
        (SessionCookie::new("__host-id").secure(false), "__Host-"),
        (SessionCookie::new("__Host-id").domain("example.org"), "__Host-"),
        (SessionCookie::new("__Host-id").path("/app"), "__Host-"),
        (SessionCookie::new("id").same_site(SameSite::None).secure(false), "same_site"),
        (SessionCookie::new("id").same_site(SameSite::None).plain_http(true), "same_site"),
        (SessionCookie::new("id").partitioned(true).secure(false), "partitioned"),
        (SessionCookie::new("__Http-id").secure(false), "__Http-"),
        (SessionCookie::new("__http-id").http_only(false), "__Http-"),
        (SessionCookie::new("__Host-Http-id").http_only(false), "__Host-Http-"),
        (SessionCookie::new("__HOST-http-id").path("/app"), "__Host-"),
        (SessionCookie::new("__Host-Http-id").domain("example.org"), "__Host-"),
        (SessionCookie::new("__Host-__Secure-id").plain_http(true), "__Secure-"),
        (SessionCookie::new("id").domain("example.org:443"), "the cookie's domain"),
        (SessionCookie::new("id").domain("."), "the cookie's domain"),
        (SessionCookie::new("id").domain("münchen.example"), "the cookie's domain"),
        (SessionCookie::new("id").domain("d".repeat(1025)), "the cookie's domain"),
        (SessionCookie::new("id").domain("example.org."), "the cookie's domain"),
        (SessionCookie::new("id").domain("..example.org"), "the cookie's domain"),
        (SessionCookie::new("id").domain("a..b"), "the cookie's domain"),
        (SessionCookie::new("id").domain(".example..org"), "the cookie's domain"),
        (SessionCookie::new("id").domain(format!("{}.org", "d".repeat(64))), "the cookie's domain"),
        (SessionCookie::new("id").domain("abcdefg.".repeat(32) + "org"), "the cookie's domain"),
        (SessionCookie::new("id").path(format!("/{}", "p".repeat(1024))), "the cookie's path"),
        // With a key of 64 characters, the longest one.
        (SessionCookie::new("n".repeat(4096 - 64 + 1)), "4096 bytes"),
    ] {
        let debug = format!("{cookie:?}");
        let error = layer(&world).with_cookie(cookie).unwrap_err().to_string();
        assert!(error.contains(why), "{debug}: {error}");
    }
    for cookie in [
        SessionCookie::new("__Secure-id").domain("example.org").path("/app"),
        SessionCookie::new("__Host-id").domain("localhost").plain_http(true),
        SessionCookie::new("sessionid"),
        SessionCookie::new("__Http-id").domain("example.org").path("/app"),
        SessionCookie::new("__Host-Http-id"),
        SessionCookie::new("__host-http-id").plain_http(true).http_only(false).path("/app"),
        SessionCookie::new("n".repeat(4096 - 64)).path(format!("/{}", "p".repeat(1023))),
        SessionCookie::new("id").domain(format!(".{}.org", "d".repeat(63))),
        SessionCookie::new("id").domain("abcdefg.".repeat(31) + "local"),
        // Hosts of internal networks, which browsers open and whose cookies they keep.
        SessionCookie::new("id").domain("my_app.internal"),
        SessionCookie::new("id").domain(".example.org").partitioned(true).same_site(SameSite::None),
    ] {
        layer(&world).with_cookie(cookie).unwrap();
    }
}

#[cfg(any(feature = "private-cookies", feature = "signed-cookies"))]
mod sealed {
    use axum::http::StatusCode;
    use session_cached_db::tower::Key;

    use super::*;
    use crate::common::{Call, Log, key_of};

    fn key(seed: u8) -> Key {
        Key::from(&[seed; 64])
    }

    #[cfg(feature = "signed-cookies")]
    #[tokio::test]
    async fn signed_cookie_is_accepted_and_a_forged_one_costs_no_io() {
        check(SessionCookie::signed).await;
    }

    #[cfg(feature = "private-cookies")]
    #[tokio::test]
    async fn private_cookie_is_accepted_and_a_forged_one_costs_no_io() {
        check(SessionCookie::private).await;
    }

    #[cfg(feature = "private-cookies")]
    #[tokio::test]
    async fn private_cookie_hides_the_key() {
        let world = World::new().await;
        let cookie = SessionCookie::default().private([key(1)]);
        let page = async |session: SessionHandle| {
            let mut session = session.lock().await.unwrap();
            session.create().await.unwrap();
            key_of(&session)
        };
        let answer = ask(&site(layer(&world).with_cookie(cookie).unwrap(), page), None).await;
        assert_eq!(answer.body.len(), 32);
        assert!(!answer.cookie().contains(&answer.body));
    }

    async fn check(seal: fn(SessionCookie, Vec<Key>) -> SessionCookie) {
        let world = World::new().await;
        let log = Log::listen();
        let site_with = |keys: Vec<Key>| {
            let cookie = seal(SessionCookie::default(), keys);
            assert!(!format!("{cookie:?}").contains("01"), "no key in Debug");
            site(layer(&world).with_cookie(cookie).unwrap(), visit)
        };
        let old = site_with(vec![key(1)]);
        let cookie = ask(&old, None).await.cookie();
        assert_eq!(ask(&old, Some(&cookie)).await.body, "2");

        let rotated = site_with(vec![key(2), key(1)]);
        let answer = ask(&rotated, Some(&cookie)).await;
        assert_eq!(answer.body, "3", "the previous key is still accepted");

        let plain = world.saved([("visits", 7)]).await;
        world.forget_calls();
        let mut tampered = cookie.clone();
        tampered.replace_range(tampered.len() - 1.., if cookie.ends_with('a') { "b" } else { "a" });
        let unsealed = format!("__Host-session={}", key_of(&plain));
        let other = site_with(vec![key(3)]);
        for (site, cookie) in [(&old, &tampered), (&old, &unsealed), (&other, &cookie)] {
            let answer = ask(site, Some(cookie)).await;
            assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "1"));
            assert_eq!(world.db.calls.count(Call::Load), 0);
        }
        assert_eq!(log.events("key_rejected").len(), 3);
    }

    #[tokio::test]
    async fn signed_or_private_cookie_without_a_key_is_refused() {
        let world = World::new().await;
        let mut cookies = Vec::new();
        #[cfg(feature = "signed-cookies")]
        cookies.push(SessionCookie::default().signed([]));
        #[cfg(feature = "private-cookies")]
        cookies.push(SessionCookie::default().private([]));
        for cookie in cookies {
            let error = layer(&world).with_cookie(cookie).unwrap_err();
            assert!(error.to_string().contains("at least one key"), "{error}");
        }
    }
}
