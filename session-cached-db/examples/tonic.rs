//! A gRPC service on tonic's own server, which counts the calls of each client, and a client that calls it.
//!
//! The key travels in the metadata `x-session`. The service is written by hand, so that the example needs no `.proto` file: the
//! code that `tonic-prost-build` generates goes into the same places.
//!
//! ```sh
//! cargo run --example tonic --features moka,sqlite,tower
//! ```

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _};
use http::uri::PathAndQuery;
use http::{HeaderName, Request, Response};
use session_cached_db::tower::{SessionHandle, SessionHeader, SessionLayer};
use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
use tokio::net::TcpListener;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tower::Service;

type BoxError = Box<dyn Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
    let db = SqlitePersistence::connect("sqlite::memory:").await?;
    let store = CachedDb::builder(cache, db).sole_process().build().await?;
    let sessions = SessionLayer::new(store.clone())
        .any_body() // tonic's bodies are its own
        .with_transport(SessionHeader::new(HeaderName::from_static("x-session")))?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let server = Server::builder().layer(sessions).add_service(Counter);
    tokio::select! {
        served = server.serve_with_incoming(TcpIncoming::from(listener)) => served?,
        called = call_three_times(address) => called?,
    }
    store.close().await;
    Ok(())
}

async fn call_three_times(address: String) -> Result<(), BoxError> {
    let channel = Endpoint::from_shared(address)?.connect().await?;
    let mut key = None;
    for _ in 0..3 {
        let (text, new_key) = count(channel.clone(), key.as_deref()).await?;
        println!("{text}");
        key = new_key.or(key);
    }
    Ok(())
}

/// Handles a call: the session of the client is among the extensions of the request.
async fn visit(request: tonic::Request<String>) -> Result<tonic::Response<String>, Status> {
    let handle = request.extensions().get::<SessionHandle>().cloned();
    let handle = handle.ok_or_else(|| Status::internal("there is no SessionLayer around this service"))?;
    let visits = async {
        let mut session = handle.lock().await?;
        session.modify("visits", |visits: &mut u32| {
            *visits += 1;
            *visits
        })
    };
    match visits.await {
        Ok(visits) => Ok(tonic::Response::new(format!("{} number {visits}", request.get_ref()))),
        Err(_) => Err(Status::unavailable("sessions are not available; try again later")),
    }
}

/// Calls the service with a session key. Returns the answer, and the key that came with it.
async fn count(channel: Channel, key: Option<&str>) -> Result<(String, Option<String>), BoxError> {
    let mut request = tonic::Request::new("visit".to_owned());
    if let Some(key) = key {
        request.metadata_mut().insert("x-session", key.parse()?);
    }
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/example.Counter/Count");
    let response = client.unary(request, path, TextCodec).await?;
    let key = response.metadata().get("x-session").and_then(|key| key.to_str().ok()).map(str::to_owned);
    Ok((response.into_inner(), key))
}

// From here on, this stands for generated code.

#[derive(Clone)]
struct Counter;

impl NamedService for Counter {
    const NAME: &'static str = "example.Counter";
}

impl Service<Request<Body>> for Counter {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move { Ok(Grpc::new(TextCodec).unary(Visit, request).await) })
    }
}

struct Visit;

impl UnaryService<String> for Visit {
    type Response = String;
    type Future = BoxFuture<Result<tonic::Response<String>, Status>>;

    fn call(&mut self, request: tonic::Request<String>) -> Self::Future {
        Box::pin(visit(request))
    }
}

/// Messages that are plain text.
#[derive(Clone, Copy)]
struct TextCodec;

impl Codec for TextCodec {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for TextCodec {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for TextCodec {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let text = String::from_utf8(bytes.into()).map_err(|_| Status::invalid_argument("not text"))?;
        Ok(Some(text))
    }
}
