//! The servers of a soak, in containers of its own, which it pauses, kills, restarts and cuts off.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::table::{Needs, Ports, Server};

const READY_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) struct Container {
    name: String,
    server: &'static Server,
    /// The ports outside.
    pub(crate) ports: Vec<u16>,
}

impl Container {
    pub(crate) fn start(server: &'static Server) -> Result<Self, Failure> {
        if server.needs != Needs::Nothing {
            return Err(format!("{} cannot be used for a soak", server.name).into());
        }
        remove_orphans();
        let ports = match server.ports {
            Ports::Mapped(_) => free_ports(1)?,
            Ports::OneToOne(count) => free_ports(count)?,
            Ports::None => return Err(format!("{} has no port", server.name).into()),
        };
        let id = ports.first().copied().unwrap_or_default();
        let name = format!("{PREFIX}{}-{}-{id}", std::process::id(), server.name);
        let mut command = Command::new("docker");
        command.args(["run", "--detach", "--name", &name]);
        for port in &ports {
            let inside = if let Ports::Mapped(inside) = server.ports { inside } else { *port };
            command.arg(format!("--publish=127.0.0.1:{port}:{inside}"));
        }
        for (variable, value) in server.env_on(&ports) {
            command.arg(format!("--env={variable}={value}"));
        }
        // An acknowledged write must survive the death of the server, though not of the machine.
        let arguments = server.command.iter().map(|argument| match *argument {
            "--innodb-flush-log-at-trx-commit=0" => "--innodb-flush-log-at-trx-commit=2",
            argument => argument,
        });
        let container = Self { name, server, ports };
        command.arg(server.image.reference()).args(arguments);
        if matches!(server.command.first(), Some(&("mysqld" | "mariadbd"))) {
            // By default, they lock out for good a host that broke off 100 handshakes.
            command.arg("--max-connect-errors=1000000000");
        }
        run(&mut command)?;
        container.wait()?;
        Ok(container)
    }

    pub(crate) fn docker(&self, words: &[&str]) -> Result<(), Failure> {
        run(Command::new("docker").args(words).arg(&self.name))
    }

    /// Runs a program in the container, and returns what it prints.
    pub(crate) fn exec(&self, words: &[&str]) -> Result<String, Failure> {
        let output = Command::new("docker").arg("exec").arg(&self.name).args(words).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} in {}: {said}", words.join(" "), self.name).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until the server is ready.
    pub(crate) fn wait(&self) -> Result<(), Failure> {
        let start = Instant::now();
        let is_ready = || {
            self.server.probe.as_ref().is_none_or(|probe| self.ports.iter().all(|port| probe.answers(*port)))
        };
        while !is_ready() {
            if start.elapsed() > READY_TIMEOUT {
                let logs = Command::new("docker").args(["logs", "--tail=30", &self.name]).output()?;
                let said = [logs.stdout, logs.stderr].concat();
                return Err(
                    format!("{} does not serve: {}", self.name, String::from_utf8_lossy(&said)).into()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Returns the short name of its image.
    pub(crate) fn image(&self) -> &'static str {
        self.server.image.name
    }

    pub(crate) fn url(&self, ports: &[u16]) -> String {
        self.server.url_on(ports)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.docker(&["rm", "--force", "--volumes"]) {
            eprintln!("{} stays: {error}", self.name);
        }
    }
}

const PREFIX: &str = "session-soak-";

/// Removes the containers of soaks that were killed.
fn remove_orphans() {
    let listed = Command::new("docker").args(["ps", "--all", "--format", "{{.Names}}"]).output();
    let Ok(listed) = listed else { return };
    for name in String::from_utf8_lossy(&listed.stdout).lines() {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !std::path::Path::new("/proc").join(process).exists()) {
            let _ = run(Command::new("docker").args(["rm", "--force", "--volumes", name]));
        }
    }
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    let action = arguments.first().cloned().unwrap_or_default();
    Err(format!("docker {action}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
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
