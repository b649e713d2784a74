//! `cargo xtask services`: keeps servers running for development.
//!
//! Lines for a shell go to the output, everything else to the error stream: `eval "$(cargo xtask services
//! up)"`.
//!
//! Not with Docker Compose: Debian's engine comes without it, and images, ports and probes are in
//! [`crate::table`] for the tests anyway, so its file would repeat them.

use std::process::Command;
use std::time::{Duration, Instant};

use lexopt::{Arg, Parser, ValueExt};

use crate::help::Help;
use crate::process::output;
use crate::table::{Needs, Ports, SERVERS, Server};
use crate::{Result, engine, images};

pub(crate) const HELP: Help = Help {
    usage: "services up|status|down [NAME..]",
    summary: "Keeps servers running for development, on ports of 127.0.0.1.",
    details: "",
    options: &[
        ("up", "Starts servers and prints the variables that make the tests use them."),
        ("status", "Shows which servers run, and prints the variables of those that are ready."),
        ("down", "Removes servers."),
        ("NAME", "Names a server; may be repeated. Defaults to all."),
    ],
    examples: &[(
        "services up redis postgres",
        "two servers; to set the variables as well: eval \"$(cargo xtask services up redis postgres)\"",
    )],
};

const PATIENCE: Duration = Duration::from_secs(90);

/// A server that `services` knows how to keep.
struct Service {
    server: &'static Server,
    /// The ports of 127.0.0.1, and the ports in the container that they lead to.
    ports: Vec<(u16, u16)>,
}

pub(crate) fn run(mut args: Parser) -> Result {
    let mut words = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let (action, names) = words.split_first().ok_or_else(|| format!("usage: cargo xtask {}", HELP.usage))?;
    let services = chosen(names)?;
    engine::require()?;
    match action.as_str() {
        "up" => up(&services),
        "status" => {
            status(&services);
            Ok(())
        }
        "down" => down(&services),
        other => Err(format!("there is no `services {other}`; usage: cargo xtask {}", HELP.usage).into()),
    }
}

fn chosen(names: &[String]) -> Result<Vec<Service>> {
    let all: Vec<_> = SERVERS.iter().filter_map(service).collect();
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|service| service.server.name == **name))
    {
        let known: Vec<_> = all.iter().map(|service| service.server.name).collect();
        return Err(format!("there is no service {unknown:?}; there are {}", known.join(", ")).into());
    }
    let wanted = |service: &Service| names.is_empty() || names.iter().any(|name| name == service.server.name);
    Ok(all.into_iter().filter(wanted).collect())
}

fn service(server: &'static Server) -> Option<Service> {
    let first = server.service_port.filter(|_| server.needs == Needs::Nothing)?;
    let ports = match server.ports {
        Ports::Mapped(inside) => vec![(first, inside)],
        Ports::OneToOne(count) => (first..first + count).map(|port| (port, port)).collect(),
        Ports::None => return None,
    };
    Some(Service { server, ports })
}

fn up(services: &[Service]) -> Result {
    start(services)?;
    for service in services {
        println!("{}", service.export());
    }
    Ok(())
}

fn start(services: &[Service]) -> Result {
    for service in services {
        service.start()?;
    }
    services.iter().try_for_each(Service::wait)
}

/// Starts all services for a run of the tests, and returns the names of those that were not running.
pub(crate) fn start_all() -> Result<Vec<String>> {
    let services = chosen(&[])?;
    let is_new = |service: &&Service| !engine::is_running(&service.container());
    let new = services.iter().filter(is_new).map(|service| service.server.name.to_owned()).collect();
    start(&services)?;
    Ok(new)
}

/// Removes the services that [`start_all`] has started.
pub(crate) fn stop(names: &[String]) -> Result {
    if names.is_empty() { Ok(()) } else { down(&chosen(names)?) }
}

/// Returns the variables that make tests use the services, without those that are set already.
pub(crate) fn variables() -> Vec<(&'static str, String)> {
    let services = SERVERS.iter().filter_map(service);
    let unset = services.filter(|service| std::env::var_os(service.server.url_var).is_none());
    unset.map(|service| (service.server.url_var, service.url())).collect()
}

fn status(services: &[Service]) {
    for service in services {
        let state = match (engine::is_running(&service.container()), service.is_ready()) {
            (true, true) => "ready",
            (true, false) => "running, not ready",
            (false, _) => "not running",
        };
        eprintln!("{:<14} {state}", service.server.name);
        if state == "ready" {
            println!("{}", service.export());
        }
    }
}

fn down(services: &[Service]) -> Result {
    for service in services {
        if engine::remove(&service.container()) {
            eprintln!("{}: removed", service.server.name);
        } else if engine::is_running(&service.container()) {
            return Err(format!("{} could not be removed", service.container()).into());
        }
    }
    Ok(())
}

impl Service {
    fn container(&self) -> String {
        format!("session-service-{}", self.server.name)
    }

    fn start(&self) -> Result {
        let (name, container) = (self.server.name, self.container());
        if engine::is_running(&container) {
            eprintln!("{name}: is running");
            return Ok(());
        }
        engine::remove(&container);
        let image = images::available(self.server.image);
        eprintln!("{name}: starting {image}");
        let inside: Vec<_> = self.ports.iter().map(|(_, inside)| *inside).collect();
        let mut command = Command::new("docker");
        command.args(["run", "--detach", "--name", &container]);
        for (outside, inside) in &self.ports {
            command.arg(format!("--publish=127.0.0.1:{outside}:{inside}"));
        }
        for (variable, value) in self.server.env_on(&inside) {
            command.arg(format!("--env={variable}={value}"));
        }
        output(command.arg(image).args(self.server.command)).map_err(|error| {
            engine::remove(&container);
            format!("{error}\nwhere no registry can be reached, `cargo xtask images` builds stand-ins")
        })?;
        Ok(())
    }

    fn wait(&self) -> Result {
        let start = Instant::now();
        while !self.is_ready() {
            let running = engine::is_running(&self.container());
            if !running || start.elapsed() > PATIENCE {
                let logs = Command::new("docker").args(["logs", "--tail=30", &self.container()]).output()?;
                let text = [logs.stdout, logs.stderr].concat();
                let fate = if running { "does not become ready" } else { "ended" };
                return Err(
                    format!("{} {fate}:\n{}", self.container(), String::from_utf8_lossy(&text)).into()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.server
            .probe
            .as_ref()
            .is_none_or(|probe| self.ports.iter().all(|(outside, _)| probe.answers(*outside)))
    }

    fn url(&self) -> String {
        let outside: Vec<_> = self.ports.iter().map(|(outside, _)| *outside).collect();
        self.server.url_on(&outside)
    }

    fn export(&self) -> String {
        format!("export {}='{}'", self.server.url_var, self.url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{CACHES, DATABASES, server};

    #[test]
    fn every_server_of_the_matrix_is_a_service() {
        let services = chosen(&[]).unwrap();
        let expected: Vec<_> = CACHES.iter().chain(DATABASES).filter_map(|name| server(name)).collect();
        assert_eq!(services.iter().map(|service| service.server).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn services_are_chosen_by_name() {
        let chosen = chosen(&["mysql".to_owned(), "redis".to_owned()]).unwrap();
        assert_eq!(chosen.iter().map(|service| service.server.name).collect::<Vec<_>>(), ["redis", "mysql"]);
        let unknown = super::chosen(&["oracle".to_owned()]).err().unwrap().to_string();
        assert!(unknown.contains("oracle") && unknown.contains("memcached"), "{unknown}");
    }

    #[test]
    fn export_is_the_variable_that_the_tests_read() {
        let services = chosen(&["postgres".to_owned(), "redis-cluster".to_owned()]).unwrap();
        let exports: Vec<_> = services.iter().map(Service::export).collect();
        assert_eq!(
            exports,
            [
                "export CONFORMANCE_REDIS_CLUSTER_URL='redis+cluster://127.0.0.1:17000,127.0.0.1:17001,127.0.0.1:17002/'",
                "export CONFORMANCE_POSTGRES_URL='postgres://postgres:conformance@127.0.0.1:15432/sessions'",
            ]
        );
    }
}
