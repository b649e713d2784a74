//! Starting the servers: the environment names some, and the others run in containers, which are removed
//! afterwards.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rcgen::generate_simple_self_signed;
use tempfile::TempDir;
use testcontainers::core::{ExecCommand, IntoContainerPort as _, Mount};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};

use crate::table::{Needs, Ports, Server, server};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The maximum time for a server in a new container to be ready.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

/// The servers, and those that are missing.
#[derive(Default)]
pub(crate) struct Brought {
    /// The URLs of the servers.
    pub(crate) urls: BTreeMap<&'static str, String>,
    /// The servers that run independently of the tests.
    pub(crate) shared: Vec<String>,
    /// The servers that are not available, and why.
    pub(crate) missing: BTreeMap<&'static str, String>,
    started: Vec<Started>,
}

struct Started {
    server: &'static Server,
    container: ContainerAsync<GenericImage>,
    ports: Vec<u16>,
    files: TempDir,
}

impl Brought {
    /// Takes the servers that the environment names, and starts the others in containers, all at once.
    pub(crate) async fn bring(names: impl IntoIterator<Item = &'static str>) -> Self {
        let mut brought = Self::default();
        let mut starting = Vec::new();
        for server in names.into_iter().filter_map(server) {
            if let Ok(url) = std::env::var(server.url_var) {
                brought.shared.push(url.clone());
                brought.urls.insert(server.name, url);
            } else {
                starting.push(server);
            }
        }
        brought.start(starting).await;
        brought
    }

    /// Starts all servers in containers at once, whatever the environment names, for tests that break them.
    #[allow(dead_code, reason = "the tests beside the matrix use it")]
    pub(crate) async fn own(names: impl IntoIterator<Item = &'static str>) -> Self {
        let mut brought = Self::default();
        brought.start(names.into_iter().filter_map(server)).await;
        brought
    }

    async fn start(&mut self, servers: impl IntoIterator<Item = &'static Server>) {
        let starting: Vec<_> =
            servers.into_iter().map(|server| (server, tokio::spawn(start(server)))).collect();
        for (server, task) in starting {
            match task.await.map_err(Failure::from).flatten() {
                Ok(started) => {
                    self.urls.insert(server.name, started.url());
                    self.started.push(started);
                }
                Err(error) => {
                    let reason = format!("{} is not set, and no container: {error}", server.url_var);
                    self.missing.insert(server.name, reason);
                }
            }
        }
    }

    fn started(&self, name: &str) -> Result<&Started, Failure> {
        let started = self.started.iter().find(|started| started.server.name == name);
        started.ok_or_else(|| format!("{name} was not started").into())
    }

    /// Kills a server.
    #[allow(dead_code, reason = "the tests beside the matrix use it")]
    pub(crate) async fn kill(&self, name: &str) -> Result<(), Failure> {
        Ok(self.started(name)?.container.stop_with_timeout(Some(0)).await?)
    }

    /// Starts a server that was killed, with the data that it had, and waits until it is ready. Returns its port,
    /// which may be another one.
    #[allow(dead_code, reason = "the tests beside the matrix use it")]
    pub(crate) async fn start_again(&self, name: &str) -> Result<u16, Failure> {
        let Started { server, container, .. } = self.started(name)?;
        container.start().await?;
        let (Ports::Mapped(inside), Some(probe)) = (server.ports, &server.probe) else {
            return Err(format!("{name} cannot be started again").into());
        };
        let port = container.get_host_port_ipv4(inside).await?;
        wait_until_ready(container, || probe.answers(port)).await?;
        Ok(port)
    }

    /// Runs a shell's command in the container of a server.
    #[allow(dead_code, reason = "the tests beside the matrix use it")]
    pub(crate) async fn run(&self, name: &str, command: &str) -> Result<(), Failure> {
        let command = ExecCommand::new(["sh", "-c", command]);
        let mut done = self.started(name)?.container.exec(command).await?;
        // To its end.
        let said = done.stderr_to_vec().await?;
        match done.exit_code().await? {
            Some(0) => Ok(()),
            _ => Err(format!("the command in {name} failed: {}", String::from_utf8_lossy(&said)).into()),
        }
    }

    pub(crate) async fn print_logs(&self) {
        for started in &self.started {
            eprintln!("\n---- {} says:\n{}", started.server.name, logs(&started.container).await);
        }
    }

    pub(crate) async fn remove(self) {
        for started in self.started {
            if let Err(error) = started.container.rm().await {
                eprintln!("the container of {} stays: {error}", started.server.name);
            }
        }
    }
}

async fn start(server: &'static Server) -> Result<Started, Failure> {
    let files = files(server)?;
    let path = files.path().to_str().ok_or("the directory for temporary files is no text")?.to_owned();
    let reference = server.image.reference();
    let (name, tag) = reference.rsplit_once(':').unwrap_or((&reference, "latest"));
    let mut image = GenericImage::new(name, tag);
    if let Ports::Mapped(port) = server.ports {
        image = image.with_exposed_port(port.tcp());
    }
    let mut request = image.with_cmd(server.command.iter().copied()).with_startup_timeout(EVENT_TIMEOUT);
    let mut ports = match server.ports {
        Ports::OneToOne(count) => free_ports(count)?,
        Ports::Mapped(_) | Ports::None => Vec::new(),
    };
    for port in &ports {
        request = request.with_mapped_port(*port, port.tcp());
    }
    for (variable, value) in server.env_on(&ports) {
        request = request.with_env_var(variable, value);
    }
    if let Needs::SocketDirectory(inside) | Needs::Certificates(inside) = server.needs {
        request = request.with_mount(Mount::bind_mount(path, inside));
    }
    let container = request.start().await?;
    if let Ports::Mapped(port) = server.ports {
        ports.push(container.get_host_port_ipv4(port).await?);
    }
    let started = Started { server, container, ports, files };
    wait_until_ready(&started.container, || started.is_ready()).await?;
    Ok(started)
}

async fn wait_until_ready(
    container: &ContainerAsync<GenericImage>,
    is_ready: impl Fn() -> bool,
) -> Result<(), Failure> {
    let start = Instant::now();
    while !tokio::task::block_in_place(&is_ready) {
        let running = container.is_running().await?;
        if !running || start.elapsed() > EVENT_TIMEOUT {
            let fate = if running { "does not become ready" } else { "ended" };
            return Err(format!("it {fate} and logged: {}", logs(container).await).into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

impl Started {
    fn url(&self) -> String {
        let files = self.files.path().display().to_string();
        self.server.url_on(&self.ports).replace("{socket}", &files).replace("{certificates}", &files)
    }

    fn is_ready(&self) -> bool {
        match (&self.server.probe, self.server.needs) {
            (Some(probe), _) => self.ports.iter().all(|port| probe.answers(*port)),
            (None, Needs::SocketDirectory(_)) => self.pong().unwrap_or(false),
            (None, _) => self.ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()),
        }
    }

    fn pong(&self) -> std::io::Result<bool> {
        let mut connection = UnixStream::connect(self.files.path().join("redis.sock"))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        connection.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    }
}

/// Makes a directory with what the server needs from outside. Every user can use it, because the server runs
/// as a user of its own.
fn files(server: &Server) -> Result<TempDir, Failure> {
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777))?;
    if let Needs::Certificates(_) = server.needs {
        let made = generate_simple_self_signed(["127.0.0.1", "::1", "localhost"].map(str::to_owned))?;
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        for (name, content) in [("ca.pem", &certificate), ("cert.pem", &certificate), ("key.pem", &key)] {
            std::fs::write(directory.path().join(name), content)?;
        }
    }
    Ok(directory)
}

/// Returns ports that are free, together with their numbers plus 10000, on which a cluster's nodes talk to
/// each other.
fn free_ports(count: u16) -> Result<Vec<u16>, Failure> {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut ports = Vec::new();
    for _ in 0..1_000 {
        let port = fastrand::u16(20_000..30_000);
        if !ports.contains(&port) && is_free(port) && is_free(port + 10_000) {
            ports.push(port);
        }
        if ports.len() == usize::from(count) {
            return Ok(ports);
        }
    }
    Err("there are no free ports".into())
}

async fn logs(container: &ContainerAsync<GenericImage>) -> String {
    let streams = [container.stdout_to_vec().await, container.stderr_to_vec().await];
    let said = streams.map(Result::unwrap_or_default).concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
