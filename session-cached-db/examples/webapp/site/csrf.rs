//! No other site can make a visitor's browser do something here.
//!
//! Browsers say in headers that no page can change where a request comes from: `Sec-Fetch-Site`, and `Origin` for every
//! POST. That protects the login form as well, where there is no session yet that could hold a token, and needs no script.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::pages;

pub(crate) async fn refuse_other_sites(request: Request, next: Next) -> Response {
    if request.method().is_safe() || is_from_here(request.headers()) {
        return next.run(request).await;
    }
    pages::problem(StatusCode::FORBIDDEN, "This was asked for by another site, so it was not done.")
}

/// Not so without a sign: every browser of the last years gives one.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin";
    }
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == text(header::HOST)
}
