//! A server of hyper, without a framework, which counts the visits of each browser.
//!
//! ```sh
//! cargo run --example hyper --features moka,sqlite,tower
//! ```

#![allow(
    clippy::disallowed_methods,
    reason = "the library must not spawn tasks of tokio's, an application may"
)]
#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use session_cached_db::tower::{SessionCookie, SessionFailure, SessionHandle, SessionLayer};
use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
    let db = SqlitePersistence::connect("sqlite://sessions.db").await?;
    let store = CachedDb::builder(cache, db).sole_process().build().await?;

    // For development without TLS. With TLS, leave `with_cookie` out.
    let cookie = SessionCookie::default().plain_http(true);
    let sessions = SessionLayer::new(store).with_cookie(cookie)?;
    let service = ServiceBuilder::new().layer(sessions).service_fn(visit);

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // An error is that of one connection, such as a client that has gone.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Handles a request: the session of the client is among its extensions. An error of the session becomes the response that
/// the layer would make of it; as an error of the service, it would end the connection.
async fn visit<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let Some(handle) = request.extensions().get::<SessionHandle>().cloned() else {
        return Ok(answer(StatusCode::INTERNAL_SERVER_ERROR, "there is no SessionLayer around this service"));
    };
    drop(request);
    let visits = async {
        let mut session = handle.lock().await?;
        session.modify("visits", |visits: &mut u32| {
            *visits += 1;
            *visits
        })
    };
    Ok(match visits.await {
        Ok(visits) => answer(StatusCode::OK, format!("visit number {visits}")),
        Err(error) => {
            let failure = SessionFailure(error);
            let mut response = answer(failure.status(), "the session could not be used");
            response.extensions_mut().insert(failure); // the layer logs it
            response
        }
    })
}

fn answer(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
