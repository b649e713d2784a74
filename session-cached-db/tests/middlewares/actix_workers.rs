//! Servers of actix, whose workers have a thread and a runtime each, over one store.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use actix_session::storage::SessionStore;
use actix_session::{Session, SessionMiddleware};
use actix_web::cookie::{Cookie, CookieJar, Key};
use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};
use futures_util::future::join_all;
use session_core::SessionKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::world::{Store, World};

/// The patience of a test that waits for something that takes a moment.
const PATIENCE: Duration = Duration::from_secs(30);

fn key() -> Key {
    Key::from(&[7; 64])
}

/// Returns a `Cookie` header with this session key.
fn cookie(key_text: &str) -> String {
    let mut jar = CookieJar::new();
    jar.private_mut(&key()).add(Cookie::new("id", key_text.to_owned()));
    jar.get("id").unwrap().stripped().to_string()
}

/// A server with one worker.
struct Server {
    address: SocketAddr,
    handle: ServerHandle,
    /// Ends when the worker's thread, and so its runtime, has ended.
    worker_ended: oneshot::Receiver<()>,
    /// Ends the block of the worker's thread.
    unblock: mpsc::Sender<()>,
    is_blocked: Arc<Notify>,
}

/// The block of a worker's thread: a notice that it has begun, and what ends it.
struct Block {
    has_begun: Arc<Notify>,
    end: Mutex<mpsc::Receiver<()>>,
}

thread_local! {
    /// Dropped at the end of the thread.
    static END: RefCell<Option<oneshot::Sender<()>>> = const { RefCell::new(None) };
}

impl Server {
    fn start(store: &Store) -> Self {
        let (end, worker_ended) = oneshot::channel();
        let (unblock, blocked) = mpsc::channel();
        let end = Arc::new(Mutex::new(Some(end)));
        let is_blocked = Arc::<Notify>::default();
        let data = web::Data::new(Block { has_begun: Arc::clone(&is_blocked), end: Mutex::new(blocked) });
        let store = store.clone();
        let app = move || {
            END.set(end.lock().unwrap().take());
            App::new()
                .app_data(data.clone())
                .wrap(SessionMiddleware::new(store.clone(), key()))
                .route("/visit", web::get().to(visit))
                .route("/read", web::get().to(async |session: Session| format!("{}", visits(&session))))
                .route("/block", web::get().to(block))
        };
        let server = HttpServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Self { address, handle, worker_ended, unblock, is_blocked }
    }

    /// Returns the body of a page, if its status is 200.
    async fn get(&self, path: &str, cookie: &str) -> Result<String, String> {
        let asking = async {
            let mut stream = TcpStream::connect(self.address).await?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = timeout(PATIENCE, asking).await.map_err(|_| format!("no answer to {path}"))?;
        let answer = answer.map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(answer) }
    }

    /// Loads sessions that no cache has, at once, so that the worker needs several connections.
    async fn load_many(&self) {
        let cookies: Vec<_> = (0..8).map(|_| cookie(SessionKey::generate().unwrap().expose())).collect();
        for body in join_all(cookies.iter().map(|cookie| self.get("/read", cookie))).await {
            assert_eq!(body.as_deref(), Ok("0"));
        }
    }

    /// Stops the server, and waits for the end of its worker's thread.
    async fn stop(self) {
        self.handle.stop(true).await;
        // An error says that the sender was dropped, with the thread.
        let _ = timeout(PATIENCE, self.worker_ended).await.expect("the worker ends");
    }
}

fn visits(session: &Session) -> u32 {
    session.get("visits").unwrap().unwrap_or(0)
}

async fn visit(session: Session) -> String {
    let visits = visits(&session) + 1;
    session.insert("visits", visits).unwrap();
    visits.to_string()
}

/// Blocks the worker's thread.
async fn block(block: web::Data<Block>) -> &'static str {
    block.has_begun.notify_one();
    let _ = block.end.lock().unwrap().recv_timeout(4 * PATIENCE);
    "blocked"
}

/// Returns the cookie of a session that was saved by the other node, so that this one has not used its
/// connections yet.
async fn saved(world: &World) -> String {
    let state = [("visits".to_owned(), "1".to_owned())].into_iter().collect();
    let key = SessionStore::save(&world.nodes[0], state, &time::Duration::hours(1)).await.unwrap();
    cookie(key.as_ref())
}

pub async fn connections_outlive_the_worker_that_opened_them(world: &World) {
    let (cookie, store) = (saved(world).await, &world.nodes[1]);
    let (one, other) = (Server::start(store), Server::start(store));
    one.load_many().await;
    assert_eq!(one.get("/visit", &cookie).await.as_deref(), Ok("2"));
    one.stop().await;

    for visits in 3..6 {
        assert_eq!(other.get("/visit", &cookie).await, Ok(visits.to_string()));
        other.load_many().await;
    }
    assert_eq!(store.stats().cache_errors, 0);
    other.stop().await;
}

pub async fn worker_that_blocks_its_thread_holds_up_no_other(world: &World) {
    let (cookie, store) = (saved(world).await, &world.nodes[1]);
    let (one, other) = (Server::start(store), Server::start(store));
    one.load_many().await;
    let blocking = async { assert_eq!(one.get("/block", "").await.as_deref(), Ok("blocked")) };
    let meanwhile = async {
        one.is_blocked.notified().await;
        for visits in 2..5 {
            assert_eq!(other.get("/visit", &cookie).await, Ok(visits.to_string()));
            other.load_many().await;
        }
        one.unblock.send(()).unwrap();
    };
    tokio::join!(blocking, meanwhile);
    assert_eq!(store.stats().cache_errors, 0);
    one.stop().await;
    other.stop().await;
}
