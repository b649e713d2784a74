//! The servers, and which of them has a key.

use std::io;
use std::iter::once;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use memcache::exp::{
    AsyncMetaClient, Error, Get, GetResult, MetaClientBuilder, MutationStatus, Op, OpResult, Operation, Set,
};
use session_core::CacheError;
use tokio::time::timeout;

use super::error;
use crate::lazy::{Attempt, Lazy};

/// One server or several, never none.
pub(super) struct Servers {
    pub(super) first: Server,
    pub(super) others: Vec<Server>,
}

impl Servers {
    /// The server that has `name`: for every key an order of its own of all servers, and the first in it. So a server that
    /// is added or removed moves no keys but its own.
    pub(super) fn of(&self, name: &[u8]) -> &Server {
        let others = self.number_of(name).checked_sub(1).and_then(|number| self.others.get(number));
        others.unwrap_or(&self.first)
    }

    /// Returns the number of the server that has `name`, in the order in which they were given.
    pub(super) fn number_of(&self, name: &[u8]) -> usize {
        if self.is_one() {
            return 0;
        }
        let all = once(&self.first).chain(&self.others).enumerate();
        all.max_by_key(|(_, server)| score(&server.address, name)).map_or(0, |(number, _)| number)
    }

    /// Returns `true` if there is one server only, which has every key.
    pub(super) const fn is_one(&self) -> bool {
        self.others.is_empty()
    }

    /// Returns how many servers there are.
    pub(super) const fn len(&self) -> usize {
        1 + self.others.len()
    }
}

/// Must be the same on all nodes, whatever they were compiled with, and forever: FNV-1a, stirred by the end of MurmurHash3.
fn score(address: &str, name: &[u8]) -> u64 {
    let bytes = address.bytes().chain(once(0)).chain(name.iter().copied());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// How long the addresses behind a server's name are used although it cannot be reached there.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(10);

/// A server, and the connections to it.
pub(super) struct Server {
    address: String,
    connect_timeout: Duration,
    client: Lazy<Arc<Client>, Arc<io::Error>>,
}

struct Client {
    meta: AsyncMetaClient,
    looked_up: Instant,
}

impl Server {
    /// `address` is a host and a port.
    pub(super) fn new(address: String, settings: MetaClientBuilder, connect_timeout: Duration) -> Self {
        let name = address.clone();
        let make = move || {
            let looking_up = settings.clone().connect_async(name.clone());
            let limited = async move {
                let meta = match timeout(connect_timeout, looking_up).await {
                    Ok(Ok(meta)) => Ok(meta),
                    Ok(Err(Error::Io(error))) => Err(error),
                    Ok(Err(_)) => Err(io::Error::other("its name has no address")),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
                Ok(Arc::new(Client { meta: meta.map_err(Arc::new)?, looked_up: Instant::now() }))
            };
            limited.boxed()
        };
        Self { address, connect_timeout, client: Lazy::new(Box::new(make)) }
    }

    /// Its host and port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What `work` gives, unless it takes longer than connecting may.
    pub(super) async fn within_the_time_to_connect<T>(
        &self,
        work: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        let too_slow = |_| error::not_found(&self.address, Arc::new(io::ErrorKind::TimedOut.into()));
        timeout(self.connect_timeout, work).await.map_err(too_slow)?
    }

    /// Sends one command and waits for its answer. Never sends it twice.
    pub(super) async fn run<O: Operation>(&self, operation: O) -> Result<O::Output, CacheError> {
        let (attempt, client) = self.client().await?;
        let answer = client.meta.run(operation).await;
        answer.map_err(|error| self.failed(&attempt, &client, error))
    }

    /// As [`run`](Self::run), for a command that changes something.
    pub(super) async fn mutate(&self, mutation: Op) -> Result<MutationStatus, CacheError> {
        match self.run(mutation).await? {
            OpResult::Mutation(mutation) => Ok(mutation.status),
            _ => Err(error::of(&self.address, Error::Protocol(String::new()))),
        }
    }

    /// Sends both commands at once, the second one to add something, and waits for both answers.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` keeps two copies of its arguments")]
    pub(super) fn run_both(
        &self,
        get: Get,
        add: Set,
    ) -> impl Future<Output = Result<(GetResult, MutationStatus), CacheError>> + Send {
        async move {
            let (attempt, client) = self.client().await?;
            let answers = Box::pin(client.meta.run_batch([Op::Get(get), Op::Set(add)])).await;
            let answers = answers.map(Vec::into_iter).map(|mut answers| (answers.next(), answers.next()));
            let error = match answers {
                Ok((Some(Ok(OpResult::Get(found))), Some(Ok(OpResult::Mutation(added))))) => {
                    return Ok((found, added.status));
                }
                Ok((Some(Ok(_)), Some(Err(error)))) | Err(error) => error,
                // The error is not the answer to this command, but to the one before.
                Ok((_, Some(Err(Error::Ambiguous { key, .. })))) => {
                    Error::Ambiguous { key, source: Box::new(Error::Protocol(String::new())) }
                }
                Ok((_, Some(Err(error)))) => error,
                Ok(_) => Error::Protocol(String::new()),
            };
            Err(self.failed(&attempt, &client, error))
        }
    }

    async fn client(&self) -> Result<(Attempt<Arc<Client>, Arc<io::Error>>, Arc<Client>), CacheError> {
        let attempt = self.client.attempt();
        match attempt.clone().await {
            Ok(client) => Ok((attempt, client)),
            Err(error) => {
                self.client.forget(&attempt);
                Err(error::not_found(&self.address, error))
            }
        }
    }

    fn failed(
        &self,
        attempt: &Attempt<Arc<Client>, Arc<io::Error>>,
        client: &Client,
        error: Error,
    ) -> CacheError {
        // It may have moved.
        if error.is_retryable() && client.looked_up.elapsed() > LOOK_UP_AGAIN {
            self.client.forget(attempt);
        }
        error::of(&self.address, error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn servers(addresses: &[&str]) -> Servers {
        let mut servers: Vec<_> = addresses
            .iter()
            .map(|address| Server::new((*address).into(), MetaClientBuilder::new(), Duration::ZERO))
            .collect();
        Servers { first: servers.remove(0), others: servers }
    }

    fn routes(addresses: &[&str]) -> BTreeMap<String, String> {
        let servers = servers(addresses);
        let names = (0..10_000).map(|number| format!("session:{number}"));
        names.map(|name| (servers.of(name.as_bytes()).address.clone(), name)).map(|(a, n)| (n, a)).collect()
    }

    #[test]
    fn the_order_of_the_servers_does_not_matter() {
        assert_eq!(routes(&["a:1", "b:1", "c:1"]), routes(&["c:1", "a:1", "b:1"]));
    }

    #[test]
    fn every_server_gets_its_share() {
        let routes = routes(&["10.0.0.1:11211", "10.0.0.2:11211", "10.0.0.3:11211", "10.0.0.4:11211"]);
        let mut shares = BTreeMap::new();
        for server in routes.values() {
            *shares.entry(server).or_insert(0) += 1;
        }
        assert_eq!(shares.len(), 4);
        assert!(shares.values().all(|share| (2_300..2_700).contains(share)), "{shares:?}");
    }

    #[test]
    fn a_server_that_is_added_moves_no_keys_but_its_own() {
        let (before, after) = (routes(&["a:1", "b:1"]), routes(&["a:1", "b:1", "c:1"]));
        for (name, server) in &after {
            assert!(server == "c:1" || *server == before[name], "{name} moved to {server}");
        }
    }

    // Nodes of different versions share the servers.
    #[test]
    fn the_routing_is_the_same_in_every_version() {
        let servers = servers(&["a:1", "b:1", "c:1"]);
        let routes = ["session:1", "session:2", "session:3", "session:4", "session:5", "session:6"]
            .map(|name| servers.of(name.as_bytes()).address.as_str());
        assert_eq!(routes, ["b:1", "a:1", "b:1", "c:1", "a:1", "a:1"]);
        assert_eq!(score("a:1", b"session:1"), 0x2932_a0f1_766c_7ecb);
    }
}
