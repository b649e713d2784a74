//! The layer between other layers, and around services that are not axum's.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use axum::routing::any;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use session_cached_db::tower::{SessionFailure, SessionHandle, SessionHeader, SessionLayer};
use session_cached_db::{CachedDb, Error, MokaCache, SqlitePersistence};
use tower::{Layer as _, Service, ServiceBuilder, ServiceExt as _, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

use crate::common::{Fault, World};
use crate::tower::{layer, visit};

/// Sends a first request and a second one with the cookie of the first. Returns the texts of both.
async fn two_visits<S, B>(service: S) -> [String; 2]
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let first = service.clone().oneshot(request(None)).await.unwrap();
    let cookie = first.headers()[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    let second = service.oneshot(request(Some(&cookie))).await.unwrap();
    [text(first).await, text(second).await]
}

fn request(cookie: Option<&str>) -> Request<Body> {
    let mut request = Request::builder().uri("/").header(header::ACCEPT_ENCODING, "identity");
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, cookie);
    }
    request.body(Body::empty()).unwrap()
}

async fn text<B: http_body::Body<Data = Bytes>>(response: Response<B>) -> String
where
    B::Error: std::fmt::Debug,
{
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

const MINUTE: Duration = Duration::from_secs(60);

fn timeout() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, MINUTE)
}

fn page() -> Router {
    Router::new().route("/", any(visit))
}

#[tokio::test]
async fn layer_composes_with_the_usual_layers_outside_of_it() {
    let world = World::new().await;
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(RequestBodyLimitLayer::new(1024))
        .layer(timeout())
        .layer(CompressionLayer::new())
        .layer(layer(&world));
    assert_eq!(two_visits(layers.service(page())).await, ["1", "2"]);
}

#[tokio::test]
async fn layer_composes_with_the_usual_layers_inside_of_it() {
    let world = World::new().await;
    let layers = ServiceBuilder::new()
        .layer(layer(&world).any_body())
        .layer(CompressionLayer::new())
        .layer(RequestBodyLimitLayer::new(1024))
        .layer(TraceLayer::new_for_http())
        .layer(timeout());
    assert_eq!(two_visits(layers.service(page())).await, ["1", "2"]);
}

#[tokio::test]
async fn layer_composes_in_the_middle_of_other_layers() {
    let world = World::new().await;
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(timeout())
        .layer(layer(&world).any_body())
        .layer(CompressionLayer::new());
    assert_eq!(two_visits(layers.service(page())).await, ["1", "2"]);
}

#[tokio::test]
async fn axum_router_takes_the_layer_with_any_body_between_others() {
    let world = World::new().await;
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(layer(&world).any_body())
        .layer(CompressionLayer::new());
    assert_eq!(two_visits(page().layer(layers)).await, ["1", "2"]);
    let one_by_one = page().layer(CompressionLayer::new()).layer(layer(&world)).layer(timeout());
    assert_eq!(two_visits(one_by_one).await, ["1", "2"]);
}

#[tokio::test]
async fn compressed_page_is_complete_and_its_session_saved() {
    let world = World::new().await;
    let long = async |session: SessionHandle| -> Result<String, Error> {
        session.lock().await?.insert("visits", 1)?;
        Ok("x".repeat(10_000))
    };
    let page = || Router::new().route("/", any(long));
    let inside = layer(&world).any_body().layer(CompressionLayer::new().layer(page()));
    let outside = CompressionLayer::new().layer(layer(&world).layer(page()));
    let compressed = || {
        let request = Request::builder().uri("/").header(header::ACCEPT_ENCODING, "gzip");
        request.body(Body::empty()).unwrap()
    };
    let inside = inside.oneshot(compressed()).await.unwrap();
    let outside = outside.oneshot(compressed()).await.unwrap();
    let seen = [seen(inside).await, seen(outside).await];
    for (headers, body) in seen {
        assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
        assert!(headers.contains_key(header::SET_COOKIE) && !headers.contains_key(header::CONTENT_LENGTH));
        assert!(body.starts_with(&[0x1f, 0x8b]) && body.len() < 1_000, "{}", body.len());
        let vary: Vec<_> = headers.get_all(header::VARY).iter().map(|line| line.to_str().unwrap()).collect();
        let vary = vary.join(", ").to_lowercase();
        assert!(vary.contains("accept-encoding") && vary.contains("cookie"), "{vary}");
    }
}

async fn seen<B: http_body::Body<Data = Bytes>>(response: Response<B>) -> (HeaderMap, Vec<u8>)
where
    B::Error: std::fmt::Debug,
{
    let (parts, body) = response.into_parts();
    (parts.headers, body.collect().await.unwrap().to_bytes().into())
}

/// A service of hyper's kind, without a framework.
async fn count<B: Send>(request: Request<B>) -> Result<Response<BoxBody<Bytes, Infallible>>, Error> {
    let handle = request.extensions().get::<SessionHandle>().unwrap().clone();
    let mut session = handle.lock().await?;
    let visits = session.get::<i32>("visits")?.unwrap_or(0) + 1;
    session.insert("visits", visits)?;
    Ok(Response::new(Full::from(visits.to_string()).boxed()))
}

#[tokio::test]
async fn boxed_and_empty_bodies_need_no_bytes() {
    let world = World::new().await;
    let service = layer(&world).any_body().layer(service_fn(count::<Body>));
    assert_eq!(two_visits(service).await, ["1", "2"]);
    let empty = layer(&world).any_body().layer(service_fn(async |request: Request<Body>| {
        let handle = request.extensions().get::<SessionHandle>().unwrap().clone();
        handle.lock().await?.insert("visits", 1)?;
        Ok::<_, Error>(Response::new(Empty::<Bytes>::new()))
    }));
    let response = empty.oneshot(request(None)).await.unwrap();
    assert!(response.headers().contains_key(header::SET_COOKIE));
}

#[tokio::test]
async fn error_of_the_session_is_answered_whatever_the_body() {
    let world = World::new().await;
    let service = layer(&world).any_body().layer(service_fn(async |request: Request<Body>| {
        let handle = request.extensions().get::<SessionHandle>().unwrap().clone();
        handle.lock().await.unwrap().insert("visits", 1).unwrap();
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    world.db.calls.fail_all(Fault::Unreachable);
    let response = service.oneshot(request(None)).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.extensions().get::<SessionFailure>().is_some());
    let expected = "Sessions are not available at the moment. Please try again later.";
    assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(expected.len() as u64));
    assert_eq!(text(response).await, expected);
}

#[tokio::test]
async fn hyper_serves_the_layer_without_a_framework() {
    let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    let store = CachedDb::builder(MokaCache::builder().build(), db).build().await.unwrap();
    let service = ServiceBuilder::new().layer(SessionLayer::new(store).any_body()).service_fn(count::<_>);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(service);
        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
    });
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let get = |cookie: Option<String>| {
        let mut request = Request::builder().uri(format!("http://{address}/"));
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        client.request(request.body(Full::default()).unwrap())
    };
    let first = get(None).await.unwrap();
    let cookie = first.headers()[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(text(first).await, "1");
    assert_eq!(text(get(Some(cookie)).await.unwrap()).await, "2");
    server.abort();
}

/// A service of tonic's kind: its requests and responses have tonic's body.
async fn greet(request: Request<tonic::body::Body>) -> Result<Response<tonic::body::Body>, Infallible> {
    let handle = request.extensions().get::<SessionHandle>().unwrap().clone();
    let visits = async {
        let mut session = handle.lock().await?;
        session.modify("visits", |visits: &mut i32| {
            *visits += 1;
            *visits
        })
    };
    match visits.await {
        Ok(visits) => {
            let mut response =
                Response::new(tonic::body::Body::new(Full::new(Bytes::from(visits.to_string()))));
            response.headers_mut().insert(header::CONTENT_TYPE, "application/grpc".parse().unwrap());
            Ok(response)
        }
        Err(error) => Ok(tonic::Status::unavailable(error.to_string()).into_http()),
    }
}

#[tokio::test]
async fn layer_goes_around_a_service_of_tonic() {
    let world = World::new().await;
    let x_session = header::HeaderName::from_static("x-session");
    let service = ServiceBuilder::new()
        .layer(TraceLayer::new_for_grpc())
        .layer(layer(&world).any_body().with_transport(SessionHeader::new(x_session.clone())).unwrap())
        .service_fn(greet);
    let call = |key: Option<&str>| {
        let mut request = Request::builder().uri("/greeter/greet");
        if let Some(key) = key {
            request = request.header(&x_session, key);
        }
        service.clone().oneshot(request.body(tonic::body::Body::empty()).unwrap())
    };
    let first = call(None).await.unwrap();
    let key = first.headers()[&x_session].to_str().unwrap().to_owned();
    assert_eq!(first.headers()[header::CONTENT_TYPE], "application/grpc");
    assert_eq!(text(first).await, "1");
    assert_eq!(text(call(Some(&key)).await.unwrap()).await, "2");
}
