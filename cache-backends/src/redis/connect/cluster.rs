//! A cluster: the map of slots, and a connection of its own to each node.
//!
//! The driver's client for clusters is not used. It connects only when all nodes have answered or refused.
//! While it refreshes its map of slots, which includes connecting to nodes that do not answer, all commands
//! wait, also those to nodes that answer. Here, a node that is down delays only the calls for its own keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crc16::{State, XMODEM};
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::{Cmd, ConnectionInfo, Value};
use tokio::runtime::Handle;

use super::connection::Connection;
use super::connector::{Connector, TakePush, with_address};
use super::eviction;
use super::greeting::Part;
use super::server::Server;
use crate::lazy::Lazy;
use crate::redis::error::{Failure, NotConnected, Redirection};

/// The number of slots of every cluster.
const SLOTS: u16 = 16_384;

/// The number of groups of neighbouring slots that [`Cache::server`](session_core::Cache::server) counts as
/// servers.
///
/// A master has a few ranges of slots, so neighbours are up or down together, and unlike the masters'
/// addresses they stay the same when a replica takes over. The number is small enough: a dead master of three
/// has 22 of 64 groups, each of which the store stops calling after five failures. It is large enough: a
/// range of slots shares at most one group at each end with its neighbours, so about one in a hundred keys of
/// a living master counts as a dead one's.
pub(super) const GROUPS: usize = 64;

/// The number of redirections after which a command fails. Each time, a node has said that it did not execute
/// it.
const REDIRECTIONS: usize = 4;

/// The shortest time between two refreshes of the map of slots, whatever fails. A failover takes longer than
/// this.
const REFRESH_INTERVAL: Duration = Duration::from_millis(200);

/// A host and a port.
type Address = (String, u16);

/// Returns the slot of a key in Redis: the slot of the text in its first braces, if they are not empty.
pub(super) fn slot(cache_key: &[u8]) -> u16 {
    State::<XMODEM>::calculate(hash_tag(cache_key).unwrap_or(cache_key)) % SLOTS
}

/// Returns the group of a slot, below [`GROUPS`].
pub(super) fn group(slot: u16) -> usize {
    usize::from(slot) * GROUPS / usize::from(SLOTS)
}

fn hash_tag(cache_key: &[u8]) -> Option<&[u8]> {
    let mut parts = cache_key.splitn(2, |byte| *byte == b'{');
    let after = parts.nth(1)?;
    let end = after.iter().position(|byte| *byte == b'}')?;
    after.get(..end).filter(|tag| !tag.is_empty())
}

/// A cluster, with the connections to its nodes.
pub(in crate::redis) struct Cluster {
    nodes: Arc<Nodes>,
    /// Learns the first map of slots.
    first: Lazy<(), NotConnected>,
}

impl Cluster {
    /// Creates a cluster, and connects to nothing yet. `info` is the part of the connection info that is the
    /// same for every node: all but the address.
    pub(in crate::redis) fn new(
        seeds: Vec<Address>,
        info: ConnectionInfo,
        connector: Connector,
        response_timeout: Duration,
    ) -> Self {
        let nodes = Arc::new(Nodes {
            seeds,
            info,
            connector,
            response_timeout,
            known: Mutex::default(),
            map: RwLock::default(),
            refresh_not_before: Mutex::new(None),
        });
        let learning = Arc::clone(&nodes);
        let first = Lazy::new(Box::new(move || {
            let nodes = Arc::clone(&learning);
            async move { nodes.learn().await }.boxed()
        }));
        Self { nodes, first }
    }

    /// Sends `cmd` to the master that has the slot of `cache_key`, and waits for its reply.
    pub(super) async fn call(&self, cache_key: &[u8], cmd: &Cmd) -> Result<Value, Failure> {
        let map = self.map().await?;
        let Some(node) = map.master_of(slot(cache_key)) else {
            self.nodes.refresh_in_background();
            return Err(Failure::NotConnected(NotConnected::NoNode));
        };
        let runtime = Handle::try_current().ok();
        let guard = RefreshIfUnanswered { nodes: &self.nodes, runtime, is_answered: false };
        let reply = self.follow(node, cmd).await;
        guard.end(reply)
    }

    /// Sends `cmd` to `node`, and to the nodes that it is redirected to.
    async fn follow(&self, mut node: Arc<Node>, cmd: &Cmd) -> Result<Value, Failure> {
        let mut reply = node.server.call(cmd).await;
        for _ in 0..REDIRECTIONS {
            let Err(failure) = &reply else { return reply };
            reply = match failure.redirection() {
                Some(Redirection::Moved(address)) => {
                    self.nodes.refresh_in_background();
                    node = self.nodes.node(redirected(address, &node));
                    node.server.call(cmd).await
                }
                // The slot is on its way to another node, and this key has arrived there or is new.
                Some(Redirection::Ask(address)) => {
                    node = self.nodes.node(redirected(address, &node));
                    node.server.ask(cmd).await
                }
                None => return reply,
            };
        }
        reply
    }

    /// Sends `cmd` to every master. Returns their replies by their addresses.
    pub(in crate::redis) async fn call_all(&self, cmd: &Cmd) -> Result<Vec<(String, Value)>, Failure> {
        let masters = self.map().await?.masters();
        let calls = masters.iter().map(|node| async move { Ok((node.name(), node.server.call(cmd).await?)) });
        try_join_all(calls).await
    }

    /// Connects to every master for reports of changes. `take_push` takes the push messages of all of them.
    /// Returns the connections, and which keys each has.
    pub(in crate::redis) async fn connect_to_all(
        &self,
        take_push: TakePush,
    ) -> Result<(Vec<Connection>, Shares), NotConnected> {
        let map = self.map().await.map_err(|failure| failure.while_connecting("the cluster"))?;
        let masters = map.masters();
        let connecting = masters.iter().map(|node| {
            let (host, port) = node.address.clone();
            let info = with_address(&self.nodes.info, host, port);
            self.nodes.connector.connect_to(info, Part::Node, Some(Arc::clone(&take_push)))
        });
        let connected = try_join_all(connecting).await;
        if connected.is_err() {
            // Another node may be the master by now.
            self.nodes.refresh_in_background();
        }
        let connections = connected?.into_iter().map(Connection::Server).collect();
        Ok((connections, Shares { nodes: Arc::clone(&self.nodes), map, masters }))
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

/// A call to a node, which refreshes the map of slots if the node does not answer: another node may be the
/// master of its slots by now. A guard does it, because callers may drop the call before the node's time is
/// over.
struct RefreshIfUnanswered<'a> {
    nodes: &'a Arc<Nodes>,
    /// The runtime in which the call was begun. The one in which it is dropped may end.
    runtime: Option<Handle>,
    is_answered: bool,
}

impl RefreshIfUnanswered<'_> {
    fn end(mut self, reply: Result<Value, Failure>) -> Result<Value, Failure> {
        self.is_answered = !reply.as_ref().is_err_and(Failure::may_be_elsewhere);
        reply
    }
}

impl Drop for RefreshIfUnanswered<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let _inside = self.runtime.as_ref().map(Handle::enter);
            self.nodes.refresh_in_background();
        }
    }
}

struct Nodes {
    seeds: Vec<Address>,
    info: ConnectionInfo,
    connector: Connector,
    response_timeout: Duration,
    /// The nodes of the map, their replicas, the seeds, and the nodes that commands were redirected to since.
    known: Mutex<BTreeMap<Address, Arc<Node>>>,
    map: RwLock<Option<Arc<Map>>>,
    refresh_not_before: Mutex<Option<Instant>>,
}

struct Node {
    address: Address,
    server: Server,
}

impl Node {
    fn name(&self) -> String {
        format!("{}:{}", self.address.0, self.address.1)
    }
}

/// The map of slots.
struct Map {
    /// The ranges in the order of their slots, with their masters. They do not overlap. Maps that agree share them, so that
    /// each load over a near cache can find out whether slots have moved.
    ranges: Arc<Vec<Range>>,
    replicas: Vec<Arc<Node>>,
}

/// The first and the last of a range.
type Slots = (u16, u16);

/// A range, and its master.
type Range = (Slots, Arc<Node>);

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

/// The division of the keys among the masters, as it was when they were connected to.
pub(in crate::redis) struct Shares {
    nodes: Arc<Nodes>,
    map: Arc<Map>,
    masters: Vec<Arc<Node>>,
}

impl Shares {
    /// Returns the number of the master that has the key.
    pub(super) fn number_of(&self, cache_key: &[u8]) -> Option<usize> {
        let master = self.map.master_of(slot(cache_key))?;
        self.masters.iter().position(|node| Arc::ptr_eq(node, &master))
    }

    /// Returns `true` if slots have moved since.
    pub(super) fn is_outdated(&self) -> bool {
        self.nodes.map().is_none_or(|present| !Arc::ptr_eq(&present.ranges, &self.map.ranges))
    }

    pub(super) fn refresh(&self) {
        self.nodes.refresh_in_background();
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

    /// Returns the node at `address`, which is connected to when it is called.
    fn node(&self, address: Address) -> Arc<Node> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let node = known.entry(address).or_insert_with_key(|(host, port)| {
            let (connector, info) = (self.connector.clone(), with_address(&self.info, host.clone(), *port));
            let make = move || {
                let (connector, info) = (connector.clone(), info.clone());
                async move { connector.connect_to(info, Part::Node, None).await.map(Connection::Server) }
                    .boxed()
            };
            let server = Server::new(eviction::checked(Box::new(make)), self.response_timeout);
            Arc::new(Node { address: (host.clone(), *port), server })
        });
        Arc::clone(node)
    }

    /// Refreshes the map of slots in the background, unless that was just done or is being done.
    fn refresh_in_background(self: &Arc<Self>) {
        // There is no runtime if a call is dropped after it has ended.
        let Ok(runtime) = Handle::try_current() else { return };
        let mut not_before = self.refresh_not_before.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if not_before.is_some_and(|instant| now < instant) {
            return;
        }
        // A refresh takes no longer than this: it asks the masters first, then the other nodes.
        *not_before = Some(now + 2 * (self.connector.connect_timeout + self.response_timeout));
        drop(not_before);
        let nodes = Arc::clone(self);
        runtime.spawn(async move {
            // Keep the old map if there is no new one.
            let _ = nodes.learn().await;
            *nodes.refresh_not_before.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Instant::now() + REFRESH_INTERVAL);
        });
    }

    /// Learns the map of slots from more than half of the masters, which may disagree while a failover is
    /// under way, or else from any node that answers.
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

    /// Asks `nodes` for their views, all at once. Returns the first view that `enough` of them share, or else
    /// the view that most of them share.
    async fn ask(&self, nodes: &[Arc<Node>], enough: usize) -> Result<View, NotConnected> {
        let mut cmd = Cmd::new();
        cmd.arg("CLUSTER").arg("SLOTS");
        let cmd = &cmd;
        let mut answers: FuturesUnordered<_> =
            nodes.iter().map(|node| async move { read(node.server.call(cmd).await, node) }).collect();
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
        let ranges: Vec<_> = ranges.collect();
        // A node that has stayed is the same one, because all that are in the map stay known.
        let is_same = |(old, new): (&Range, &Range)| old.0 == new.0 && Arc::ptr_eq(&old.1, &new.1);
        let present = self.map().map(|map| Arc::clone(&map.ranges));
        let present = present.filter(|old| old.len() == ranges.len() && old.iter().zip(&ranges).all(is_same));
        let map = Map {
            ranges: present.unwrap_or_else(|| Arc::new(ranges)),
            replicas: view.replicas.into_iter().map(|address| self.node(address)).collect(),
        };
        // Drop the nodes that have left the cluster, and with them their connections.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = map.ranges.iter().map(|(_, node)| node).chain(&map.replicas);
        let stay: BTreeSet<_> = nodes.map(|node| &node.address).chain(&self.seeds).collect();
        known.retain(|address, _| stay.contains(address));
        drop(known);
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(map));
    }
}

/// Returns the address that a node has redirected to. Without a host, it is the node's own host.
fn redirected((host, port): Address, from: &Node) -> Address {
    if host.is_empty() { (from.address.0.clone(), port) } else { (host, port) }
}

/// Reads the reply of `node` to `CLUSTER SLOTS`.
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
    // A node that was reset, or that has met no other nodes yet, knows no slots.
    if view.masters.is_empty() { Err(NotConnected::NoNode) } else { Ok(view) }
}

/// Reads a node's address in a reply of `from`. The host is `?` if `from` does not know it, and empty or nil
/// if it is the same host.
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
