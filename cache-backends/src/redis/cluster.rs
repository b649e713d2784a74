//! A cluster: which node has a slot, and a connection of its own to each node.
//!
//! The driver has a client for clusters, which is not used: it connects when all nodes have answered or refused, and while
//! it learns the map of slots anew, which includes connecting to nodes that do not answer, all commands wait, also those to
//! nodes that do. Here a node that is down delays nothing but the calls whose keys it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crc16::{State, XMODEM};
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::{Cmd, ConnectionInfo, Value};
use tokio::runtime::Handle;

use super::dial::Dial;
use super::error::{Failure, NotConnected, Redirection};
use super::eviction;
use super::link::{Connection, Link};
use crate::lazy::Lazy;

/// The number of slots of every cluster.
const SLOTS: u16 = 16_384;

/// The number of groups of neighbouring slots that [`Cache::server`](session_core::Cache::server) counts as servers.
///
/// A master has a few ranges of slots, so neighbours are up or down together, and unlike the masters' addresses they stay
/// the same when a replica takes over. Few enough: a dead master of three has 22 of 64 groups, each of which the store
/// leaves alone after five failures. Many enough: a range of slots shares at most one group at each end with its
/// neighbours, so of a living master's keys about one in a hundred counts as a dead one's.
pub(super) const GROUPS: usize = 64;

/// How often a command is sent on before it is given up. Each time, a node has said that it did not execute it.
const REDIRECTIONS: usize = 4;

/// How long a map of slots is used at least, whatever fails: a failover takes longer than this to be over.
const LOOK: Duration = Duration::from_millis(200);

/// Host and port.
pub(super) type Address = (String, u16);

/// The slot of a key in Redis: of what is in its first braces, if there is something.
pub(super) fn slot(name: &[u8]) -> u16 {
    State::<XMODEM>::calculate(tag(name).unwrap_or(name)) % SLOTS
}

/// The group of a slot, below [`GROUPS`].
pub(super) fn group(slot: u16) -> usize {
    usize::from(slot) * GROUPS / usize::from(SLOTS)
}

fn tag(name: &[u8]) -> Option<&[u8]> {
    let mut parts = name.splitn(2, |byte| *byte == b'{');
    let after = parts.nth(1)?;
    let end = after.iter().position(|byte| *byte == b'}')?;
    after.get(..end).filter(|tag| !tag.is_empty())
}

/// A cluster, and the connections to its nodes.
pub(super) struct Cluster {
    nodes: Arc<Nodes>,
    /// Learns the first map of slots.
    first: Lazy<(), NotConnected>,
}

impl Cluster {
    /// Connects to nothing yet. `server` is what is the same for every node: all but its address.
    pub(super) fn new(
        seeds: Vec<Address>,
        server: ConnectionInfo,
        dial: Dial,
        response_timeout: Duration,
    ) -> Self {
        let nodes = Arc::new(Nodes {
            seeds,
            server,
            dial,
            response_timeout,
            known: Mutex::default(),
            map: RwLock::default(),
            look_not_before: Mutex::new(None),
        });
        let learning = Arc::clone(&nodes);
        let first = Lazy::new(Box::new(move || {
            let nodes = Arc::clone(&learning);
            async move { nodes.learn().await }.boxed()
        }));
        Self { nodes, first }
    }

    /// Sends `cmd` to the master that has the slot of `name`, and waits for its answer.
    pub(super) async fn call(&self, name: &[u8], cmd: &Cmd) -> Result<Value, Failure> {
        let map = self.map().await?;
        let slot = slot(name);
        let Some(node) = map.master_of(slot) else {
            self.nodes.look();
            return Err(Failure::NotConnected(NotConnected::NoNode));
        };
        let guard = LookIfDropped { nodes: &self.nodes, is_over: false };
        let answer = self.follow(node, cmd).await;
        guard.end(answer)
    }

    /// Sends `cmd` to `node`, and to where it is redirected to.
    async fn follow(&self, mut node: Arc<Node>, cmd: &Cmd) -> Result<Value, Failure> {
        let mut answer = node.link.call(cmd).await;
        for _ in 0..REDIRECTIONS {
            let Err(failure) = &answer else { return answer };
            answer = match failure.redirection() {
                Some(Redirection::Moved(address)) => {
                    self.nodes.look();
                    node = self.nodes.node(redirected(address, &node));
                    node.link.call(cmd).await
                }
                // The slot is on its way to another node, and this key has arrived there or is new.
                Some(Redirection::Ask(address)) => {
                    node = self.nodes.node(redirected(address, &node));
                    node.link.ask(cmd).await
                }
                None => return answer,
            };
        }
        answer
    }

    /// Sends `cmd` to every master. Returns their answers by their addresses.
    pub(super) async fn call_all(&self, cmd: &Cmd) -> Result<Vec<(String, Value)>, Failure> {
        let masters = self.map().await?.masters();
        let calls = masters.iter().map(|node| async move { Ok((node.name(), node.link.call(cmd).await?)) });
        try_join_all(calls).await
    }

    async fn map(&self) -> Result<Arc<Map>, Failure> {
        if let Some(map) = self.nodes.map() {
            return Ok(map);
        }
        let attempt = self.first.attempt();
        if let Err(error) = attempt.clone().await {
            self.first.forget(&attempt);
            return Err(Failure::NotConnected(error));
        }
        self.nodes.map().ok_or(Failure::NotConnected(NotConnected::NoNode))
    }
}

/// A call to a node. If that does not answer, another one may be the master of its slots by now; and callers do not always
/// wait until that is certain.
struct LookIfDropped<'a> {
    nodes: &'a Arc<Nodes>,
    is_over: bool,
}

impl LookIfDropped<'_> {
    fn end(mut self, answer: Result<Value, Failure>) -> Result<Value, Failure> {
        self.is_over = !answer.as_ref().is_err_and(Failure::may_be_elsewhere);
        answer
    }
}

impl Drop for LookIfDropped<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.nodes.look();
        }
    }
}

struct Nodes {
    seeds: Vec<Address>,
    server: ConnectionInfo,
    dial: Dial,
    response_timeout: Duration,
    /// Those of the map, their replicas, the seeds, and those that commands were redirected to since.
    known: Mutex<BTreeMap<Address, Arc<Node>>>,
    map: RwLock<Option<Arc<Map>>>,
    look_not_before: Mutex<Option<Instant>>,
}

struct Node {
    address: Address,
    link: Link,
}

impl Node {
    fn name(&self) -> String {
        format!("{}:{}", self.address.0, self.address.1)
    }
}

/// Who has which slots.
struct Map {
    /// In the order of slots, which do not overlap.
    ranges: Vec<(Slots, Arc<Node>)>,
    replicas: Vec<Arc<Node>>,
}

/// The first and the last of a range.
type Slots = (u16, u16);

impl Map {
    fn master_of(&self, slot: u16) -> Option<Arc<Node>> {
        let next = self.ranges.partition_point(|((first, _), _)| *first <= slot);
        let ((_, last), node) = self.ranges.get(next.checked_sub(1)?)?;
        (slot <= *last).then(|| Arc::clone(node))
    }

    fn masters(&self) -> Vec<Arc<Node>> {
        let nodes = self.ranges.iter().map(|(_, node)| (&node.address, Arc::clone(node)));
        nodes.collect::<BTreeMap<_, _>>().into_values().collect()
    }
}

/// A node's view of the cluster.
struct View {
    masters: BTreeMap<Slots, Address>,
    replicas: BTreeSet<Address>,
}

impl Nodes {
    fn map(&self) -> Option<Arc<Map>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node at `address`, which is connected to when it is called.
    fn node(&self, address: Address) -> Arc<Node> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let node = known.entry(address).or_insert_with_key(|(host, port)| {
            let (dial, server) = (self.dial.clone(), Dial::at(&self.server, host.clone(), *port));
            let connect = move || {
                let (dial, server) = (dial.clone(), server.clone());
                async move { dial.connect_to(server).await.map(Connection::Server) }.boxed()
            };
            let link = Link::new(eviction::looking(Box::new(connect)), self.response_timeout);
            Arc::new(Node { address: (host.clone(), *port), link })
        });
        Arc::clone(node)
    }

    /// Learns the map of slots anew, beside the calls, unless that was just done or is being done.
    fn look(self: &Arc<Self>) {
        // A call may be dropped when the runtime has ended.
        let Ok(runtime) = Handle::try_current() else { return };
        let mut not_before = self.look_not_before.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if not_before.is_some_and(|instant| now < instant) {
            return;
        }
        // It takes no longer than this: the masters first, then the others.
        *not_before = Some(now + 2 * (self.dial.connect_timeout + self.response_timeout));
        drop(not_before);
        let nodes = Arc::clone(self);
        runtime.spawn(async move {
            // Without a map, the old one is the best there is.
            let _ = nodes.learn().await;
            *nodes.look_not_before.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Instant::now() + LOOK);
        });
    }

    /// Learns the map of slots: from more than half of the masters, which may disagree while a failover is under way, or
    /// else from whichever node answers.
    async fn learn(&self) -> Result<(), NotConnected> {
        let map = self.map();
        let masters = map.as_ref().map(|map| map.masters()).unwrap_or_default();
        let view = match self.ask(&masters, masters.len() / 2 + 1).await {
            Ok(view) => view,
            Err(_) => {
                let replicas = map.iter().flat_map(|map| map.replicas.iter().cloned());
                let seeds = self.seeds.iter().map(|address| self.node(address.clone()));
                self.ask(&replicas.chain(seeds).collect::<Vec<_>>(), 1).await?
            }
        };
        self.keep(view);
        Ok(())
    }

    /// Asks these nodes, all at once. Returns the first view that `enough` of them share, or that of the most.
    async fn ask(&self, nodes: &[Arc<Node>], enough: usize) -> Result<View, NotConnected> {
        let mut cmd = Cmd::new();
        cmd.arg("CLUSTER").arg("SLOTS");
        let cmd = &cmd;
        let mut answers: FuturesUnordered<_> =
            nodes.iter().map(|node| async move { read(node.link.call(cmd).await, node) }).collect();
        let mut views: Vec<(View, usize)> = Vec::new();
        let mut error = NotConnected::NoNode;
        while let Some(answer) = answers.next().await {
            let view = match answer {
                Ok(view) => view,
                Err(failed) => {
                    error = failed;
                    continue;
                }
            };
            let number = views.iter().position(|(other, _)| other.masters == view.masters);
            let mut shared = number.map_or((view, 0), |number| views.swap_remove(number));
            shared.1 += 1;
            if shared.1 >= enough {
                return Ok(shared.0);
            }
            views.push(shared);
        }
        views.into_iter().max_by_key(|(_, count)| *count).map(|(view, _)| view).ok_or(error)
    }

    fn keep(&self, view: View) {
        let ranges = view.masters.into_iter().map(|(slots, address)| (slots, self.node(address)));
        let map = Map {
            ranges: ranges.collect(),
            replicas: view.replicas.into_iter().map(|address| self.node(address)).collect(),
        };
        // The connections to nodes that have left end with them.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = map.ranges.iter().map(|(_, node)| node).chain(&map.replicas);
        let stay: BTreeSet<_> = nodes.map(|node| &node.address).chain(&self.seeds).collect();
        known.retain(|address, _| stay.contains(address));
        drop(known);
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(map));
    }
}

/// Where a node has redirected to. Without a host, it is its own.
fn redirected((host, port): Address, from: &Node) -> Address {
    if host.is_empty() { (from.address.0.clone(), port) } else { (host, port) }
}

/// The answer of `node` to `CLUSTER SLOTS`.
fn read(answer: Result<Value, Failure>, node: &Node) -> Result<View, NotConnected> {
    let answer = answer.map_err(|failure| failure.while_connecting(&node.name()))?;
    let mut view = View { masters: BTreeMap::new(), replicas: BTreeSet::new() };
    let Value::Array(ranges) = answer else { return Err(NotConnected::NoNode) };
    for range in ranges {
        let Value::Array(range) = range else { continue };
        let [Value::Int(first), Value::Int(last), master, replicas @ ..] = range.as_slice() else { continue };
        let slots = (u16::try_from(*first), u16::try_from(*last));
        let ((Ok(first), Ok(last)), Some(master)) = (slots, address(master, node)) else { continue };
        view.masters.insert((first, last), master);
        view.replicas.extend(replicas.iter().filter_map(|replica| address(replica, node)));
    }
    // A node that was reset, or that has met no others yet, knows nothing.
    if view.masters.is_empty() { Err(NotConnected::NoNode) } else { Ok(view) }
}

/// Where a node is, as `from` says: `?` if it does not know, and nothing or nil if it is on the same host.
fn address(value: &Value, from: &Node) -> Option<Address> {
    let Value::Array(parts) = value else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        Value::Nil => "",
        _ => return None,
    };
    let port = u16::try_from(*port).ok()?;
    (host != "?").then(|| redirected((host.to_owned(), port), from))
}
