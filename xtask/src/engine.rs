//! The Docker engine that the servers run on: found, or on a Debian machine installed and started.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::packages::{install, is_root};
use crate::process::{output, run, succeeds, which};

const PATIENCE: Duration = Duration::from_secs(60);
const LOG: &str = "/var/log/dockerd.log";

/// Returns the version of the engine that answers, or the reason why none does.
fn answer() -> Result<String> {
    output(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]))
}

/// Fails if no engine answers, and says what to do.
pub(crate) fn require() -> Result {
    let error = match answer() {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let advice = if is_root() {
        "`cargo xtask test --provision` installs and starts one"
    } else {
        "start Docker and join its group, or run `cargo xtask test --provision` as root, which installs and starts one"
    };
    Err(format!("no Docker engine answers; {advice}\n{error}").into())
}

/// Installs and starts what is missing for an engine to answer and for images to be built. Announces each
/// step.
pub(crate) fn provision() -> Result {
    let running = answer().is_ok();
    if !running && !is_root() {
        return require();
    }
    let mut packages = Vec::new();
    if !running && which("dockerd").is_none() {
        packages.extend(["docker.io", "iptables", "ca-certificates"]);
    }
    if which("mmdebstrap").is_none() {
        packages.extend(["mmdebstrap", "debian-archive-keyring"]);
    }
    install(&packages)?;
    if !running {
        start()?;
    }
    eprintln!("Docker engine {} answers", answer()?);
    Ok(())
}

fn start() -> Result {
    if Path::new("/run/systemd/system").exists() {
        eprintln!("starting the Docker engine with systemd");
        run(Command::new("systemctl").args(["start", "docker"]))?;
        return wait(None);
    }
    eprintln!("starting dockerd in the background; it goes on running, and logs to {LOG}");
    forget_dead("/var/run/docker.pid", "dockerd")?;
    forget_dead("/var/run/docker/containerd/containerd.pid", "containerd")?;
    let log = fs::File::create(LOG)?;
    let mut dockerd = Command::new(which("dockerd").ok_or("dockerd is not installed")?);
    // A process group of its own: an interrupt of this program does not reach it.
    dockerd.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    wait(Some(dockerd.spawn()?))
}

fn wait(mut dockerd: Option<Child>) -> Result {
    let start = Instant::now();
    loop {
        let error = match answer() {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let ended = dockerd.as_mut().map(Child::try_wait).transpose()?.flatten();
        if ended.is_some() || start.elapsed() > PATIENCE {
            let log = fs::read_to_string(LOG).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
            let fate =
                ended.map_or_else(|| "does not answer".to_owned(), |status| format!("ended: {status}"));
            return Err(format!("the Docker engine {fate}\n{error}\nthe end of {LOG}:\n{last}").into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Removes the pid file that a killed daemon left behind: with it, the daemon refuses to start if another
/// process has that pid.
fn forget_dead(pid_file: &str, name: &str) -> Result {
    let Ok(pid) = fs::read_to_string(pid_file) else { return Ok(()) };
    let command = fs::read_to_string(format!("/proc/{}/comm", pid.trim())).unwrap_or_default();
    if command.trim() != name {
        eprintln!("removing {pid_file}: no {name} has that pid any more");
        fs::remove_file(pid_file)?;
    }
    Ok(())
}

/// Returns whether a container of this name runs.
pub(crate) fn is_running(container: &str) -> bool {
    let state = output(Command::new("docker").args(["inspect", "--format", "{{.State.Running}}", container]));
    state.is_ok_and(|state| state == "true")
}

/// Removes a container, running or not. Returns `true` if there was one.
pub(crate) fn remove(container: &str) -> bool {
    succeeds(Command::new("docker").args(["container", "inspect", container]))
        && succeeds(Command::new("docker").args(["rm", "--force", "--volumes", container]))
}
