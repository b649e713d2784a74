//! A network that can break: it stands between a process and its server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What it does with what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Each piece of an answer is late.
    Delay(Duration),
    /// Half of an answer passes, and then the connection ends.
    Cut,
    /// Nothing passes in either direction, and nothing says so.
    BlackHole,
    /// What the client says passes, the answers do not.
    Deaf,
    /// All connections are reset, new ones, too.
    Reset,
}

#[derive(Debug)]
struct Shared {
    mode: watch::Sender<Mode>,
    injected: AtomicU64,
}

#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared { mode: watch::Sender::new(Mode::Pass), injected: AtomicU64::new(0) });
        let proxy = Self { port, shared };
        tokio::spawn(proxy.clone().accept(listener, server));
        Ok(proxy)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// How often it has broken something.
    pub(crate) fn injected(&self) -> u64 {
        self.shared.injected.load(Ordering::Relaxed)
    }

    fn inject(&self) {
        self.shared.injected.fetch_add(1, Ordering::Relaxed);
    }

    async fn accept(self, listener: TcpListener, server: u16) {
        loop {
            // Out of descriptors, for example: it may go on.
            let Ok((client, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let proxy = self.clone();
            tokio::spawn(async move {
                if *proxy.shared.mode.borrow() == Mode::Reset {
                    let _ = client.set_zero_linger();
                    proxy.inject();
                    return;
                }
                // A server that is down: the client is told by the end of its connection.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                    proxy.pass(client, server).await;
                }
            });
        }
    }

    async fn pass(&self, client: TcpStream, server: TcpStream) {
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let is_reset = tokio::select! {
            is_reset = self.pump(from_client, &to_server, false) => is_reset,
            is_reset = self.pump(from_server, &to_client, true) => is_reset,
        };
        if is_reset {
            let _ = to_client.as_ref().set_zero_linger();
        }
    }

    /// Passes one direction on until it ends; whether the connection is to be reset.
    async fn pump(&self, mut from: OwnedReadHalf, to: &OwnedWriteHalf, is_answer: bool) -> bool {
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
                    // What lacks a piece cannot go on.
                    if is_reset || has_swallowed {
                        return is_reset;
                    }
                    continue;
                }
            };
            let Ok(read @ 1..) = read else { return false };
            let now = *mode.borrow();
            let passed = match now {
                Mode::BlackHole => 0,
                Mode::Deaf if is_answer => 0,
                Mode::Cut if is_answer => read / 2,
                Mode::Delay(time) if is_answer => {
                    self.inject();
                    tokio::time::sleep(time).await;
                    read
                }
                Mode::Reset => {
                    self.inject();
                    return true;
                }
                _ => read,
            };
            if passed < read {
                self.inject();
                has_swallowed = true;
            }
            if write_all(to, &chunk[..passed]).await.is_err() || passed < read && now == Mode::Cut {
                return false;
            }
        }
    }
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
