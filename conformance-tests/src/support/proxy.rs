//! A network that can break: a proxy on 127.0.0.1 between a store and one of its servers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The treatment of the bytes that reach a [`Proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Pass,
    /// Each piece of an answer is delayed by this time.
    Delay(Duration),
    /// This many bytes of an answer pass, and then the connection ends.
    Cut(usize),
    /// Nothing passes in either direction, without any sign. The bytes are lost, and so is the connection.
    BlackHole,
    /// Nothing passes while this lasts. Afterwards everything does, late.
    Hold,
    /// The same for connections on which a server reports changes (`CLIENT TRACKING`, `LISTEN`). All others pass.
    HoldReports,
    /// Requests pass, answers do not.
    Deaf,
    /// All connections are reset, including new ones.
    Reset,
}

/// A TCP proxy. It lasts as long as the runtime on which it was made. Clones are handles to the same proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<SocketAddr>,
    connections: AtomicU64,
    mode: watch::Sender<Mode>,
    injected: AtomicU64,
    round_trips: AtomicU64,
}

impl Proxy {
    /// Starts a proxy for `server`, which need not be there yet.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no port to listen on.
    pub async fn before(server: SocketAddr) -> std::io::Result<Self> {
        Self::at(([127, 0, 0, 1], 0).into(), server).await
    }

    /// Starts a proxy for `server` that listens on `address`.
    ///
    /// # Errors
    ///
    /// Returns an error if the address is taken, or is none of this machine's.
    pub async fn at(address: SocketAddr, server: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Shared {
            server: Mutex::new(server),
            connections: AtomicU64::new(0),
            mode: watch::Sender::new(Mode::Pass),
            injected: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
        };
        let proxy = Self { address, shared: Arc::new(shared) };
        tokio::spawn(proxy.clone().accept(listener));
        Ok(proxy)
    }

    /// Returns the address on which the proxy listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the mode, for present and new connections.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// Leads new connections to another server, as a name does that has got another address. Present ones stay.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// Returns the number of connections that clients have made.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Returns how often the proxy has disturbed a connection.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.shared.injected.load(Ordering::SeqCst)
    }

    /// Returns how often a client sent a request for the first time, or after an answer.
    #[must_use]
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(Ordering::SeqCst)
    }

    fn inject(&self) {
        self.shared.injected.fetch_add(1, Ordering::SeqCst);
    }

    async fn accept(self, listener: TcpListener) {
        loop {
            // There may be no descriptors left, for example, so try again.
            let Ok((client, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            self.shared.connections.fetch_add(1, Ordering::SeqCst);
            let server = *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner);
            let proxy = self.clone();
            tokio::spawn(async move {
                if *proxy.shared.mode.borrow() == Mode::Reset {
                    let _ = client.set_zero_linger();
                    proxy.inject();
                    return;
                }
                // If the server is down, the client sees it by the end of its connection.
                if let Ok(server) = TcpStream::connect(server).await {
                    proxy.pass(client, server).await;
                }
            });
        }
    }

    async fn pass(&self, client: TcpStream, server: TcpStream) {
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let seen = Seen { is_answered: AtomicBool::new(true), has_reports: AtomicBool::new(false) };
        let is_reset = tokio::select! {
            is_reset = self.pump(from_client, &to_server, Direction::Question, &seen) => is_reset,
            is_reset = self.pump(from_server, &to_client, Direction::Answer, &seen) => is_reset,
        };
        if is_reset {
            let _ = to_client.as_ref().set_zero_linger();
        }
    }

    /// Forwards one direction until it ends. Returns `true` if the connection must be reset.
    async fn pump(
        &self,
        mut from: OwnedReadHalf,
        to: &OwnedWriteHalf,
        direction: Direction,
        seen: &Seen,
    ) -> bool {
        // In one function, because it is one loop with an arm for each mode.
        let mut mode = self.shared.mode.subscribe();
        let mut has_swallowed = false;
        let mut chunk = vec![0; 16 << 10];
        loop {
            let read = tokio::select! {
                read = from.read(&mut chunk) => read,
                _ = mode.changed() => {
                    let is_reset = *mode.borrow_and_update() == Mode::Reset;
                    if is_reset {
                        self.inject();
                    }
                    // A stream that lacks a piece cannot continue.
                    if is_reset || has_swallowed {
                        return is_reset;
                    }
                    continue;
                }
            };
            let Ok(read @ 1..) = read else { return false };
            let is_answer = direction == Direction::Answer;
            if seen.is_answered.swap(is_answer, Ordering::SeqCst) && !is_answer {
                self.shared.round_trips.fetch_add(1, Ordering::SeqCst);
            }
            let asks = |words: &[u8]| chunk[..read].windows(words.len()).any(|bytes| bytes == words);
            if !is_answer && (asks(TRACKING) || asks(LISTEN)) {
                seen.has_reports.store(true, Ordering::SeqCst);
            }
            let now = match *mode.borrow() {
                Mode::HoldReports if seen.has_reports.load(Ordering::SeqCst) => Mode::Hold,
                Mode::HoldReports => Mode::Pass,
                mode => mode,
            };
            let passed = match now {
                Mode::BlackHole => 0,
                Mode::Deaf if is_answer => 0,
                Mode::Cut(bytes) if is_answer => read.min(bytes),
                Mode::Delay(time) if is_answer => {
                    self.inject();
                    tokio::time::sleep(time).await;
                    read
                }
                Mode::Hold => {
                    self.inject();
                    let _ = mode.wait_for(|mode| !matches!(mode, Mode::Hold | Mode::HoldReports)).await;
                    read
                }
                Mode::Reset => {
                    self.inject();
                    return true;
                }
                _ => read,
            };
            let is_cut = is_answer && matches!(now, Mode::Cut(_));
            if passed < read || is_cut {
                self.inject();
                has_swallowed = true;
            }
            if write_all(to, &chunk[..passed]).await.is_err() || is_cut {
                return false;
            }
        }
    }
}

/// The word by which a client of Redis asks for reports.
const TRACKING: &[u8] = b"TRACKING";

/// The beginning of the statement by which a client of Postgres does.
const LISTEN: &[u8] = b"LISTEN \"";

/// The state of a connection, by the bytes that have passed.
struct Seen {
    /// The last bytes were an answer's.
    is_answered: AtomicBool,
    /// The client has asked for reports.
    has_reports: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Question,
    Answer,
}

async fn write_all(to: &OwnedWriteHalf, mut bytes: &[u8]) -> std::io::Result<()> {
    let to: &TcpStream = to.as_ref();
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
