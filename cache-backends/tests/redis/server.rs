//! A server that speaks Redis' protocol and answers as a test wants.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The reply to a command.
pub(crate) enum Reply {
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends these bytes and closes the connection.
    Close(Vec<u8>),
    /// Sends nothing any more.
    Silence,
}

/// A command with its arguments, in bytes.
pub(crate) type Command = Vec<Vec<u8>>;

type Handler = dyn Fn(&Command) -> Reply + Send + Sync;

pub(crate) struct Server {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
    commands: Arc<Mutex<Vec<Command>>>,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
    /// Notified when a connection asks for `INFO`.
    pub(crate) asked_for_info: Arc<Notify>,
}

impl Server {
    /// Starts a server that answers by `handler`, except for the commands of every new connection.
    pub(crate) async fn start(handler: impl Fn(&Command) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), handler)
    }

    /// Starts a server that answers `INFO` with this text, and everything else with nil.
    pub(crate) async fn start_with_info(info: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::begin(listener, info.into(), || hello("redis", "8.0.2", "master"), |_| nil())
    }

    /// Starts a server that answers each `HELLO` by `hello`.
    pub(crate) async fn start_with_hello(
        hello: impl Fn() -> Reply + Send + Sync + 'static,
        handler: impl Fn(&Command) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::begin(TcpListener::bind("127.0.0.1:0").await.unwrap(), "$-1\r\n".into(), hello, handler)
    }

    pub(crate) fn start_on(
        listener: TcpListener,
        handler: impl Fn(&Command) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::begin(listener, "$-1\r\n".into(), || hello("redis", "8.0.2", "master"), handler)
    }

    fn begin(
        listener: TcpListener,
        info: String,
        hello: impl Fn() -> Reply + Send + Sync + 'static,
        handler: impl Fn(&Command) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let (commands, asked_for_info) = (Arc::default(), Arc::default());
        let tasks = Arc::<Mutex<Vec<AbortHandle>>>::default();
        let server = Self { port, connections: Arc::default(), commands, tasks, asked_for_info };
        let connections = Arc::clone(&server.connections);
        let conversation = Conversation {
            handler: Arc::new(handler),
            hello: Arc::new(hello),
            info,
            commands: Arc::clone(&server.commands),
            asked_for_info: Arc::clone(&server.asked_for_info),
        };
        let tasks = Arc::clone(&server.tasks);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let serving = tokio::spawn(conversation.clone().serve(stream));
                tasks.lock().unwrap().push(serving.abort_handle());
            }
        });
        server.tasks.lock().unwrap().push(accepting.abort_handle());
        server
    }

    /// Ends all connections, and accepts no others.
    #[cfg(feature = "redis-cluster")]
    pub(crate) fn stop(&self) {
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Returns the names of the received commands, without those of every new connection.
    pub(crate) fn commands(&self) -> Vec<String> {
        let commands = self.commands.lock().unwrap();
        commands.iter().map(|command| text(&command[0])).collect()
    }
}

#[derive(Clone)]
struct Conversation {
    handler: Arc<Handler>,
    hello: Arc<dyn Fn() -> Reply + Send + Sync>,
    info: String,
    commands: Arc<Mutex<Vec<Command>>>,
    asked_for_info: Arc<Notify>,
}

impl Conversation {
    async fn serve(self, stream: TcpStream) {
        // As Redis does, or its second answer would wait for a client that delays its acknowledgement.
        stream.set_nodelay(true).unwrap();
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        while let Some(command) = next_command(&mut read).await {
            match self.reply(command) {
                Reply::Bytes(bytes) => write.write_all(&bytes).await.unwrap(),
                Reply::Close(bytes) => {
                    write.write_all(&bytes).await.unwrap();
                    return;
                }
                Reply::Silence => std::future::pending().await,
            }
        }
    }

    fn reply(&self, command: Command) -> Reply {
        match text(&command[0]).as_str() {
            "CLIENT" => ok(),
            "HELLO" => (self.hello)(),
            "COMMAND" => error("NOPERM this user has no permissions to run the 'command|info' command"),
            "INFO" => {
                self.asked_for_info.notify_one();
                Reply::Bytes(self.info.clone().into_bytes())
            }
            "AUTH" => (self.handler)(&command),
            _ => {
                let reply = (self.handler)(&command);
                self.commands.lock().unwrap().push(command);
                reply
            }
        }
    }
}

async fn next_command(read: &mut BufReader<OwnedReadHalf>) -> Option<Command> {
    let count = header(read, '*').await?;
    let mut command = Vec::with_capacity(count);
    for _ in 0..count {
        let mut argument = vec![0; header(read, '$').await? + 2];
        read.read_exact(&mut argument).await.ok()?;
        argument.truncate(argument.len() - 2);
        command.push(argument);
    }
    Some(command)
}

async fn header(read: &mut BufReader<OwnedReadHalf>, kind: char) -> Option<usize> {
    let mut line = String::new();
    read.read_line(&mut line).await.ok()?;
    line.trim_end().strip_prefix(kind)?.parse().ok()
}

pub(crate) fn text(argument: &[u8]) -> String {
    String::from_utf8_lossy(argument).into_owned()
}

pub(crate) fn ok() -> Reply {
    Reply::Bytes(b"+OK\r\n".to_vec())
}

pub(crate) fn nil() -> Reply {
    Reply::Bytes(b"$-1\r\n".to_vec())
}

pub(crate) fn one() -> Reply {
    Reply::Bytes(b":1\r\n".to_vec())
}

pub(crate) fn error(text: &str) -> Reply {
    Reply::Bytes(format!("-{text}\r\n").into_bytes())
}

pub(crate) fn bulk(bytes: &[u8]) -> Reply {
    Reply::Bytes([format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
}

/// Returns the reply to `HELLO` of a server of this version.
pub(crate) fn hello(server: &str, version: &str, role: &str) -> Reply {
    let fields = ["server", server, "version", version, "mode", "standalone", "role", role];
    let parts = fields.map(|field| format!("${}\r\n{field}\r\n", field.len()));
    Reply::Bytes(format!("*{}\r\n{}", fields.len(), parts.concat()).into_bytes())
}
