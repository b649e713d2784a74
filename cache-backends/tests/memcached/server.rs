//! A server that speaks memcached's meta protocol and answers as a test wants.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};

/// The reply to a command.
pub(crate) enum Reply {
    /// Sends these bytes, with the command's opaque token.
    Bytes(Vec<u8>),
    /// Sends these bytes and closes the connection.
    Close(Vec<u8>),
    /// Sends nothing any more.
    Silence,
}

/// A command with its data.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    words: Vec<String>,
    pub(crate) data: Vec<u8>,
}

impl Command {
    pub(crate) fn name(&self) -> &str {
        &self.words[0]
    }

    pub(crate) fn key(&self) -> &str {
        &self.words[1]
    }

    /// Returns the argument of the flag with this letter.
    pub(crate) fn flag(&self, letter: char) -> Option<&str> {
        let flags = if self.name() == "ms" { &self.words[3..] } else { &self.words[2..] };
        flags.iter().find_map(|flag| flag.strip_prefix(letter))
    }
}

type Handler = dyn Fn(&Command) -> Reply + Send + Sync;

pub(crate) struct Server {
    pub(crate) address: String,
    connections: Arc<AtomicUsize>,
    commands: Arc<Mutex<Vec<Command>>>,
}

impl Server {
    pub(crate) async fn start(handler: impl Fn(&Command) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), handler)
    }

    pub(crate) fn start_on(
        listener: TcpListener,
        handler: impl Fn(&Command) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::begin(listener, 1, handler)
    }

    /// Starts a server that answers once it has received `count` commands, and not before.
    pub(crate) async fn start_for_batches_of(
        count: usize,
        handler: impl Fn(&Command) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::begin(TcpListener::bind("127.0.0.1:0").await.unwrap(), count, handler)
    }

    fn begin(
        listener: TcpListener,
        batch: usize,
        handler: impl Fn(&Command) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let server = Self { address, connections: Arc::default(), commands: Arc::default() };
        let (connections, commands) = (Arc::clone(&server.connections), Arc::clone(&server.commands));
        let handler: Arc<Handler> = Arc::new(handler);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, batch, Arc::clone(&handler), Arc::clone(&commands)));
            }
        });
        server
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Returns the names of the received commands.
    pub(crate) fn commands(&self) -> Vec<String> {
        self.commands.lock().unwrap().iter().map(|command| command.name().to_owned()).collect()
    }
}

async fn serve(stream: TcpStream, batch: usize, handler: Arc<Handler>, commands: Arc<Mutex<Vec<Command>>>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut waiting = Vec::new();
        while waiting.len() < batch {
            let Some(command) = next_command(&mut read).await else { return };
            waiting.push(command);
        }
        for command in waiting {
            let reply = handler(&command);
            let opaque = command.flag('O').map(|token| format!(" O{token}")).unwrap_or_default();
            commands.lock().unwrap().push(command);
            match reply {
                Reply::Bytes(bytes) => {
                    // The token is a flag at the end of the first line.
                    let line = bytes.iter().position(|byte| *byte == b'\r').unwrap();
                    let (line, rest) = bytes.split_at(line);
                    write.write_all(&[line, opaque.as_bytes(), rest].concat()).await.unwrap();
                }
                Reply::Close(bytes) => {
                    write.write_all(&bytes).await.unwrap();
                    return;
                }
                Reply::Silence => std::future::pending().await,
            }
        }
    }
}

async fn next_command(read: &mut BufReader<OwnedReadHalf>) -> Option<Command> {
    let mut line = String::new();
    read.read_line(&mut line).await.ok()?;
    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    let mut data = Vec::new();
    if words.first()? == "ms" {
        data = vec![0; words[2].parse::<usize>().unwrap() + 2];
        read.read_exact(&mut data).await.ok()?;
        data.truncate(data.len() - 2);
    }
    Some(Command { words, data })
}

pub(crate) fn line(text: &str) -> Reply {
    Reply::Bytes(format!("{text}\r\n").into_bytes())
}

/// Returns the reply of an item with these bytes and this CAS value.
pub(crate) fn item(bytes: &[u8], cas: u64) -> Reply {
    Reply::Bytes([format!("VA {} c{cas} f0\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
}
