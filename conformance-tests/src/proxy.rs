//! A network that breaks: a proxy on 127.0.0.1 that stands between a store and one of its servers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Sound,
    /// Every answer comes so much later.
    Slow(Duration),
    /// A connection breaks after so many bytes of its next answer.
    Torn(usize),
    /// Nothing passes. What was said meanwhile comes through when the network is sound again.
    Silent,
    /// Connections break, and new ones as soon as they are made.
    Down,
}

/// A TCP proxy, which ends when this is dropped.
///
/// # Behavior
///
/// - Listens on a port of 127.0.0.1, and passes each connection on to the server.
/// - Counts round trips: how often a client spoke after it had been answered, or for the first time.
/// - Counts faults: connections that were broken or refused, answers that came late, and those that were held back.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    network: Arc<watch::Sender<Network>>,
    counts: Arc<Counts>,
    listening: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    round_trips: AtomicU64,
    faults: AtomicU64,
}

impl Proxy {
    /// Stands before `server`, which need not be there yet.
    ///
    /// # Errors
    ///
    /// When there is no port to listen on.
    pub async fn before(server: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let network = Arc::new(watch::Sender::new(Network::Sound));
        let counts = Arc::<Counts>::default();
        let (states, counting) = (Arc::clone(&network), Arc::clone(&counts));
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connect(client, server, states.subscribe(), Arc::clone(&counting)));
            }
        });
        Ok(Self { address, network, counts, listening })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the network so, also for the connections that there are.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// How many round trips there were.
    #[must_use]
    pub fn round_trips(&self) -> u64 {
        self.counts.round_trips.load(Ordering::SeqCst)
    }

    /// How many faults there were.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.counts.faults.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.network.send_replace(Network::Down);
    }
}

impl Counts {
    fn fault(&self) {
        self.faults.fetch_add(1, Ordering::SeqCst);
    }
}

/// Both directions of a connection, until one of them ends, or the network breaks it.
async fn connect(
    client: TcpStream,
    server: SocketAddr,
    mut network: watch::Receiver<Network>,
    counts: Arc<Counts>,
) {
    if *network.borrow_and_update() == Network::Down {
        counts.fault();
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let is_answered = AtomicBool::new(true);
    tokio::select! {
        () = questions(from_client, to_server, network.clone(), &is_answered, &counts) => {}
        () = answers(from_server, to_client, network.clone(), &is_answered, &counts) => {}
        _ = network.wait_for(|network| *network == Network::Down) => counts.fault(),
    }
}

async fn questions(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    is_answered: &AtomicBool,
    counts: &Counts,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if is_answered.swap(false, Ordering::SeqCst) {
            counts.round_trips.fetch_add(1, Ordering::SeqCst);
        }
        if network.wait_for(|network| *network != Network::Silent).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    is_answered: &AtomicBool,
    counts: &Counts,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let now = *network.borrow_and_update();
        match now {
            Network::Sound | Network::Down => {}
            Network::Slow(delay) => {
                counts.fault();
                tokio::time::sleep(delay).await;
            }
            Network::Silent => {
                counts.fault();
                if network.wait_for(|network| *network != Network::Silent).await.is_err() {
                    return;
                }
            }
            Network::Torn(bytes) => {
                counts.fault();
                let _ = to.write_all(&buffer[..length.min(bytes)]).await;
                return;
            }
        }
        is_answered.store(true, Ordering::SeqCst);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
