//! A network that can break, between a test and its server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The directions that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Both directions pass. A change of the number cuts the connections made before.
    Open(u32),
    /// Requests pass, answers do not.
    Deaf,
    /// Nothing passes on the connections that were made before, without any sign. On new ones all does.
    Forgetful,
}

pub struct Proxy {
    pub address: String,
    state: Arc<watch::Sender<State>>,
    accepted: Arc<AtomicU32>,
}

impl Proxy {
    pub async fn to(server: String) -> Self {
        Self::on("127.0.0.1:0", server).await
    }

    /// Listens on this address.
    pub async fn on(address: &str, server: String) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(watch::Sender::new(State::Open(0)));
        let states = Arc::clone(&state);
        let accepted = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(pass(client, server, states.subscribe()));
            }
        });
        Self { address, state, accepted }
    }

    /// Returns the number of connections made up to now.
    pub fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Cuts all connections. New ones can be made.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            *state = match *state {
                State::Open(n) => State::Open(n + 1),
                State::Deaf | State::Forgetful => State::Open(1_000),
            }
        });
    }

    /// Forgets the connections made up to now, until [`cut`](Self::cut).
    pub fn forget(&self) {
        self.state.send_replace(State::Forgetful);
    }

    /// Holds back all answers until [`cut`](Self::cut).
    pub fn deafen(&self) {
        self.state.send_replace(State::Deaf);
    }
}

async fn pass(mut client: TcpStream, mut server: TcpStream, mut state: watch::Receiver<State>) {
    let at_first = *state.borrow_and_update();
    if at_first != State::Deaf {
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = state.changed() => {}
        }
    }
    let now = *state.borrow_and_update();
    if now == State::Forgetful {
        let _ = state.changed().await;
    }
    if now == State::Deaf {
        let (mut from_client, _to_client) = client.split();
        let (_from_server, mut to_server) = server.split();
        tokio::select! {
            _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
            _ = state.changed() => {}
        }
    }
    // Dropping both streams ends the connections.
}
