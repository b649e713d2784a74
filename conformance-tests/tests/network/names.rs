//! Names whose addresses change. The tests run with a file `/etc/hosts` of their own, in a namespace of their own, so
//! that names are resolved as they are in a program.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use conformance_tests::proxy::{Mode, Proxy};

use crate::Links;
use crate::database_failover::Load;
use crate::failover::{ask, until};
use crate::pair::{Kind, Pair};
use crate::trouble::{hits_again, login, logs_out, request, store};

/// The name of such a file among the servers that a test needs.
pub const OWN_HOSTS: &str = "own-hosts";

/// The variable that a process has which can write to its file.
const HAS_OWN_HOSTS: &str = "NETWORK_HAS_OWN_HOSTS";

/// The addresses of a name, one after the other. Servers in containers are published on 127.0.0.1 only, so proxies can have
/// their ports here.
const ADDRESSES: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

/// Replaces this process by one that has a file of its own, if the machine lets it.
pub fn enter() {
    if has_own_hosts() {
        return;
    }
    let file = tempfile::NamedTempFile::new().and_then(|file| {
        std::fs::copy("/etc/hosts", file.path())?;
        file.into_temp_path().keep().map_err(Into::into)
    });
    let (Ok(file), Ok(program)) = (file, std::env::current_exe()) else { return };
    let namespace = |script: &str| {
        let mut command = Command::new("unshare");
        // In a namespace of users, root cannot remove what servers leave in mounted directories.
        command
            .args((!is_root()).then_some("--map-root-user"))
            .args(["--mount", "sh", "-c", script])
            .arg(&file);
        command
    };
    let tried =
        namespace("mount --bind \"$0\" /etc/hosts").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if tried.is_ok_and(|status| status.success()) {
        let script = format!("mount --bind \"$0\" /etc/hosts && rm \"$0\" && {HAS_OWN_HOSTS}=1 exec \"$@\"");
        // Returns only if it fails.
        let error = namespace(&script).arg(program).args(std::env::args_os().skip(1)).exec();
        eprintln!("no file /etc/hosts of its own: {error}");
    }
    let _ = std::fs::remove_file(file);
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

pub fn has_own_hosts() -> bool {
    std::env::var_os(HAS_OWN_HOSTS).is_some()
}

/// Makes a name lead to these addresses.
fn lead(name: &'static str, addresses: &'static [&str]) {
    static NAMES: Mutex<BTreeMap<&str, &[&str]>> = Mutex::new(BTreeMap::new());
    assert!(has_own_hosts(), "this would be the machine's file");
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.insert(name, addresses);
    let lines = |(name, addresses): (&&str, &&[&str])| -> String {
        addresses.iter().map(|address| format!("{address} {name}\n")).collect()
    };
    let lines: String = names.iter().map(lines).collect();
    // In place, because another file would not be the one that is mounted, and without emptying it first, because
    // another thread may be reading it.
    let mut file = std::fs::OpenOptions::new().write(true).open("/etc/hosts").unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    file.set_len(lines.len().try_into().unwrap()).unwrap();
}

/// The nodes move to other addresses, one of which the name leads to, and the former ones fall silent.
pub async fn cluster_whose_nodes_all_move_is_found_by_its_name(links: &Links) {
    const NAME: &str = "cluster.test";
    let hosts = links.only().direct.trim_start_matches("redis+cluster://").trim_end_matches('/').to_owned();
    let ports: Vec<u16> =
        hosts.split(',').map(|host| host.rsplit_once(':').unwrap().1.parse().unwrap()).collect();
    let mut nodes = Vec::new();
    for port in ports {
        nodes.push(Node::behind_proxies(port).await);
    }
    move_to(&nodes, ADDRESSES[0]).await;
    lead(NAME, &ADDRESSES[..1]);
    let store = store(&format!("redis+cluster://{NAME}:{}/", nodes[0].port())).await;
    let (cookie, ended) = (login(&store).await, login(&store).await);
    hits_again(&store, &cookie, 0).await;
    hits_again(&store, &ended, 0).await;
    let connections =
        |number: usize| nodes.iter().map(|node| node.proxies[number].connections()).sum::<u64>();
    assert!(connections(0) > 0 && connections(1) == 0);

    nodes.iter().for_each(|node| node.proxies[0].set(Mode::BlackHole));
    move_to(&nodes, ADDRESSES[1]).await;
    assert_eq!(request(&store, &cookie).await, 1);
    lead(NAME, &ADDRESSES[1..]);
    let begun = Instant::now();
    logs_out(&store, &ended).await;
    hits_again(&store, &cookie, 1).await;
    eprintln!("a cluster with other addresses was used again after {:?}", begun.elapsed());
    assert!(connections(1) > 0);
    assert_eq!(request(&store, &cookie).await, 2);
    logs_out(&store, &cookie).await;
}

/// A node of a cluster.
struct Node {
    /// The port on which it is asked directly.
    direct: u16,
    /// On each of the addresses, with the same port.
    proxies: [Proxy; 2],
}

impl Node {
    async fn behind_proxies(direct: u16) -> Self {
        Self { direct, proxies: proxies([([127, 0, 0, 1], direct).into(); 2]).await }
    }

    fn port(&self) -> u16 {
        self.proxies[0].address().port()
    }
}

/// Makes the nodes announce an address, to clients and to each other.
async fn move_to(nodes: &[Node], address: &str) {
    for node in nodes {
        let (port, bus) = (node.port().to_string(), (node.direct + 10_000).to_string());
        let settings = [
            "cluster-announce-bus-port",
            &bus,
            "cluster-announce-port",
            &port,
            "cluster-announce-ip",
            address,
        ];
        let set = [&["CONFIG", "SET"], &settings[..]].concat();
        ask::<()>(node.direct, &set).await.expect("the node takes it");
    }
    for node in nodes {
        until("all nodes announce the address", || async {
            let known: Option<String> = ask(node.direct, &["CLUSTER", "NODES"]).await;
            let is_known = |node: &Node| {
                let announced = format!(" {address}:{}@", node.port());
                known.as_ref().is_some_and(|known| known.contains(&announced))
            };
            nodes.iter().all(is_known)
        })
        .await;
    }
}

/// A proxy on each of the addresses, with the same port, for the server of the same place.
async fn proxies(servers: [SocketAddr; 2]) -> [Proxy; 2] {
    let first = Proxy::at(format!("{}:0", ADDRESSES[0]).parse().unwrap(), servers[0]).await.unwrap();
    let second = format!("{}:{}", ADDRESSES[1], first.address().port());
    [first, Proxy::at(second.parse().unwrap(), servers[1]).await.unwrap()]
}

/// As a managed database fails over: the former primary is gone without a sign, and its name gets the address of another
/// server.
pub async fn name_of_a_database_that_gets_another_address_is_followed(links: &Links) {
    const NAME: &str = "database.test";
    let mut pair = Pair::new(Kind::Postgres, &links.only().direct).await;
    pair.be_synchronous().await;
    let proxies = proxies([pair.ways[0].address(), pair.ways[1].address()]).await;
    let port = proxies[0].address().port();
    lead(NAME, &ADDRESSES[..1]);
    pair.url = pair.url.replace(&pair.address.address().to_string(), &format!("{NAME}:{port}"));
    let load = Load::on(&pair).await;
    proxies[0].set(Mode::BlackHole);
    pair.stop().await;
    pair.promote().await;
    lead(NAME, &ADDRESSES[1..]);
    load.recovers("another address", Instant::now()).await;
    load.goes_on_for(Duration::from_secs(1)).await;
    load.shows_nothing_old().await;
}

/// The first address leads to a replica, and then nowhere.
pub async fn every_address_of_a_name_is_tried_for_the_primary(links: &Links) {
    const NAME: &str = "servers.test";
    for (kind, server) in [(Kind::Postgres, "postgres-pair"), (Kind::MariaDb, "mariadb-pair")] {
        let pair = Pair::new(kind, &links.get(server).direct).await;
        let proxies = proxies([pair.ways[1].address(), pair.ways[0].address()]).await;
        lead(NAME, &ADDRESSES);
        let port = proxies[0].address().port();
        let url = pair.url.replace(&pair.address.address().to_string(), &format!("{NAME}:{port}"));
        for mode in [Mode::Pass, Mode::BlackHole] {
            proxies[0].set(mode);
            let (first, second) = (proxies[0].connections(), proxies[1].connections());
            let begun = Instant::now();
            let node = db_backends::connect(&url).await.expect("the other address leads to the primary");
            node.migrate_dyn().await.expect("the primary takes writes");
            assert!(proxies[0].connections() > first, "the first address was not tried");
            assert!(proxies[1].connections() > second, "the second address was not tried");
            eprintln!("{kind:?}, {mode:?}: connected after {:?}", begun.elapsed());
        }
    }
}
