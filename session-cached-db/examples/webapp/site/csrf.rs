//! Protection against requests that another site makes a visitor's browser send.
//!
//! Browsers say where a request comes from, in headers that no page can change: `Sec-Fetch-Site`, and
//! `Origin` for every POST. This protects the login form as well, where there is no session yet that could
//! hold a token, and it needs no script.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::pages;

pub(crate) async fn refuse_other_sites(request: Request, next: Next) -> Response {
    if request.method().is_safe() || is_from_here(request.headers()) {
        return next.run(request).await;
    }
    pages::problem(StatusCode::FORBIDDEN, "Another site asked for this, so it was not done.")
}

/// Returns `true` if a page of this site sent the request. A request without these headers is refused: every
/// browser of the last years sends one of them.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin";
    }
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == text(header::HOST)
}
