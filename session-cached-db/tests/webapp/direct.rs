//! Requests without a browser.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use tower::ServiceExt as _;

use crate::server::Server;

const HERE: &[(&str, &str)] = &[("host", "shop.example"), ("origin", "http://shop.example")];

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn set_cookie(&self) -> Option<&str> {
        self.headers.get(header::SET_COOKIE).map(|line| line.to_str().unwrap())
    }

    /// Returns the `Cookie` header that the client sends from then on.
    fn cookie(&self) -> String {
        self.set_cookie().expect("a cookie should be set").split(';').next().unwrap().to_owned()
    }
}

async fn ask(
    site: &Router,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    cookie: Option<&str>,
    form: &str,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, cookie);
    }
    let request = request.body(Body::from(form.to_owned())).unwrap();
    let response = site.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.into()).unwrap() }
}

async fn get(site: &Router, path: &str, cookie: Option<&str>) -> Answer {
    ask(site, Method::GET, path, &[], cookie, "").await
}

/// Posts a form, as a browser does it from a page of this site.
async fn post(site: &Router, path: &str, cookie: Option<&str>, form: &str) -> Answer {
    ask(site, Method::POST, path, HERE, cookie, form).await
}

/// Signs up, and returns the cookie.
async fn sign_up(site: &Router, name: &str) -> String {
    let answer = post(site, "/signup", None, &format!("name={name}&password=correct+horse")).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
    answer.cookie()
}

pub async fn request_from_another_site_is_refused() {
    let Server { router: site, store, .. } = &Server::new().await;
    let cookie = sign_up(site, "ada").await;
    for from in [
        &[("host", "shop.example")][..],
        &[("host", "shop.example"), ("origin", "http://evil.example")],
        &[("host", "shop.example"), ("origin", "null")],
        &[("host", "shop.example"), ("origin", "http://shop.example"), ("sec-fetch-site", "cross-site")],
        &[("host", "shop.example"), ("sec-fetch-site", "same-site")],
        &[("host", "shop.example"), ("sec-fetch-site", "none")],
    ] {
        for path in [
            "/cart/add",
            "/cart/remove",
            "/login",
            "/signup",
            "/logout",
            "/logout-everywhere",
            "/sessions/end",
        ] {
            let form = "product=mug&line=x&label=x&name=ada&password=correct+horse";
            let answer = ask(site, Method::POST, path, from, Some(&cookie), form).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path} {from:?}");
            assert_eq!(answer.set_cookie(), None, "{path} {from:?}");
        }
    }
    assert_eq!(store.list_by_subject("ada").await.unwrap().len(), 1);
    let from_here = [("host", "shop.example"), ("sec-fetch-site", "same-origin")];
    let answer = ask(site, Method::POST, "/cart/add", &from_here, Some(&cookie), "product=mug").await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
}

pub async fn visitor_who_only_looks_gets_no_session() {
    let Server { router: site, store, .. } = &Server::new().await;
    for path in ["/", "/login", "/signup", "/sessions"] {
        let answer = get(site, path, None).await;
        assert_eq!(answer.set_cookie(), None, "{path}");
    }
    assert!(get(site, "/", None).await.body.contains("You have no session"));
    assert_eq!(store.stats(), Default::default(), "looking around must cost no I/O");
    let cookie = post(site, "/cart/add", None, "product=mug").await.cookie();
    assert!(get(site, "/", Some(&cookie)).await.body.contains("visit number"));
}

pub async fn counters_and_the_style_cost_no_session() {
    let Server { router: site, store, .. } = &Server::new().await;
    let cookie = sign_up(site, "ada").await;
    let before = store.stats();
    for path in ["/counters", "/style.css"] {
        let answer = get(site, path, Some(&cookie)).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(!answer.headers.contains_key(header::VARY) && answer.set_cookie().is_none());
    }
    assert_eq!(store.stats(), before);
}

pub async fn wrong_password_and_an_unknown_name_look_the_same() {
    let Server { router: site, .. } = &Server::new().await;
    sign_up(site, "ada").await;
    let wrong = post(site, "/login", None, "name=ada&password=wrong+horse").await;
    let unknown = post(site, "/login", None, "name=bob&password=wrong+horse").await;
    assert_eq!((wrong.status, unknown.status), (StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED));
    assert_eq!(wrong.body.replace("ada", "bob"), unknown.body);
    assert!(wrong.set_cookie().is_none() && unknown.set_cookie().is_none());
    assert!(!wrong.body.contains("wrong horse"));
}

pub async fn login_changes_the_key_and_keeps_the_cart() {
    let Server { router: site, .. } = &Server::new().await;
    sign_up(site, "ada").await;
    let before = post(site, "/cart/add", None, "product=mug").await.cookie();
    let after = post(site, "/login", Some(&before), "name=Ada&password=correct+horse").await.cookie();
    assert_ne!(before, after);
    let page = get(site, "/", Some(&after)).await.body;
    assert!(page.contains("Hello, ada!") && page.contains("Remove"), "{page}");
    assert!(get(site, "/", Some(&before)).await.body.contains("You have no session"));
}

pub async fn second_user_gets_nothing_of_the_first() {
    let Server { router: site, store, .. } = &Server::new().await;
    let cookie = sign_up(site, "ada").await;
    post(site, "/cart/add", Some(&cookie), "product=mug").await;
    let answer = post(site, "/signup", Some(&cookie), "name=bob&password=correct+horse").await;
    let page = get(site, "/", Some(&answer.cookie())).await.body;
    assert!(page.contains("Hello, bob!") && page.contains("There is nothing in it."), "{page}");
    assert_eq!(store.list_by_subject("ada").await.unwrap().len(), 0);
}

pub async fn user_name_can_be_taken_once() {
    let Server { router: site, .. } = &Server::new().await;
    sign_up(site, "ada").await;
    for (form, why) in [
        ("name=+ADA+&password=another+horse", "taken"),
        ("name=&password=correct+horse", "A name has"),
        ("name=%3Cb%3E&password=correct+horse", "A name has"),
        ("name=bob&password=short", "A password has"),
    ] {
        let answer = post(site, "/signup", None, form).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{form}");
        assert!(answer.body.contains(why) && answer.set_cookie().is_none(), "{form}");
    }
}

pub async fn remember_me_decides_how_long_the_cookie_lives() {
    let Server { router: site, .. } = &Server::new().await;
    let form = "name=ada&password=correct+horse";
    let answer = post(site, "/signup", None, form).await;
    assert!(!answer.set_cookie().unwrap().contains("Max-Age"), "{:?}", answer.set_cookie());
    let answer = post(site, "/login", None, &format!("{form}&remember=yes")).await;
    assert!(answer.set_cookie().unwrap().contains("Max-Age=2592000"), "{:?}", answer.set_cookie());
}

pub async fn user_cannot_end_sessions_of_others() {
    let Server { router: site, store, .. } = &Server::new().await;
    let (ada, bob) = (sign_up(site, "ada").await, sign_up(site, "bob").await);
    let session = store.open(ada.split_once('=').unwrap().1).await.unwrap();
    let label: String = session.get("label").unwrap().unwrap();
    let form = format!("label={label}");
    post(site, "/sessions/end", Some(&bob), &form).await;
    post(site, "/sessions/end", None, &form).await;
    assert!(session.exists().await.unwrap());
    let answer = post(site, "/sessions/end", Some(&ada), &form).await;
    assert!(!session.exists().await.unwrap());
    assert!(answer.set_cookie().unwrap().contains("Max-Age=0"));
}

pub async fn cart_has_a_largest_size() {
    let Server { router: site, .. } = &Server::new().await;
    let cookie = post(site, "/cart/add", None, "product=mug").await.cookie();
    for _ in 1..50 {
        assert_eq!(post(site, "/cart/add", Some(&cookie), "product=mug").await.status, StatusCode::SEE_OTHER);
    }
    assert_eq!(post(site, "/cart/add", Some(&cookie), "product=mug").await.status, StatusCode::CONFLICT);
    assert!(get(site, "/", Some(&cookie)).await.body.contains("<span id=\"items\">50</span>"));
    let unknown = post(site, "/cart/add", Some(&cookie), "product=unicorn").await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);
}

pub async fn user_input_is_shown_as_text() {
    let Server { router: site, .. } = &Server::new().await;
    let form = "name=%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E&password=correct+horse";
    for path in ["/login", "/signup"] {
        let answer = post(site, path, None, form).await;
        assert!(!answer.body.contains("<script"), "{}", answer.body);
        assert!(answer.body.contains("&lt;script&gt;"), "{}", answer.body);
        let policy = answer.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("script-src"), "{policy}");
    }
}

pub async fn logout_during_a_request_is_explained() {
    let server = Server::new().await;
    let site = &server.router;
    let cookie = sign_up(site, "ada").await;
    server.let_meet(2);
    let late = post(site, "/cart/add", Some(&cookie), "product=mug");
    let log_out = async {
        // This request comes last, when the other one has read its session.
        let session = server.store.open(cookie.split_once('=').unwrap().1).await.unwrap();
        let key = *session.stored_key().unwrap();
        server.store.revoke(&key).await.unwrap();
    };
    let late = async {
        let meet = post(site, "/cart/add", None, "product=mug");
        tokio::join!(late, async {
            tokio::task::yield_now().await;
            log_out.await;
            meet.await
        })
        .0
    };
    let late = late.await;
    assert_eq!(late.status, StatusCode::BAD_REQUEST);
    assert!(late.body.contains("You were logged out in another window"), "{}", late.body);
}
