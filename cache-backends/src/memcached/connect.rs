//! The servers, the choice of the server that has a key, and the connections.

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

/// One server or several. Never none.
pub(super) struct Servers {
    pub(super) first: Server,
    pub(super) others: Vec<Server>,
}

impl Servers {
    /// Returns the server that has `cache_key`, by rendezvous hashing: a server that is added or removed
    /// moves no keys but its own.
    pub(super) fn of(&self, cache_key: &[u8]) -> &Server {
        let others = self.number_of(cache_key).checked_sub(1).and_then(|number| self.others.get(number));
        others.unwrap_or(&self.first)
    }

    /// Returns the number of the server that has `cache_key`, in the order of the configuration.
    pub(super) fn number_of(&self, cache_key: &[u8]) -> usize {
        if self.is_one() {
            return 0;
        }
        let all = once(&self.first).chain(&self.others).enumerate();
        all.max_by_key(|(_, server)| score(&server.address, cache_key)).map_or(0, |(number, _)| number)
    }

    /// Returns `true` if there is only one server, which has every key.
    pub(super) const fn is_one(&self) -> bool {
        self.others.is_empty()
    }

    /// Returns the number of servers.
    pub(super) const fn len(&self) -> usize {
        1 + self.others.len()
    }
}

/// Returns the score of a server for a key: FNV-1a, then the finalizer of MurmurHash3. It must be the same on
/// all nodes, in every build and in every version.
fn score(address: &str, cache_key: &[u8]) -> u64 {
    let bytes = address.bytes().chain(once(0)).chain(cache_key.iter().copied());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// The time for which the addresses behind a server's name are used although the server cannot be reached
/// there.
const ADDRESS_LIFETIME: Duration = Duration::from_secs(10);

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
    /// Creates a server at `address`, a host and a port. Connects to nothing yet.
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

    /// Returns the host and the port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Returns the result of `work`, or an error if it takes longer than the connect timeout.
    pub(super) async fn within_connect_timeout<T>(
        &self,
        work: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        let too_slow = |_| error::not_connected(&self.address, Arc::new(io::ErrorKind::TimedOut.into()));
        timeout(self.connect_timeout, work).await.map_err(too_slow)?
    }

    /// Sends one command and waits for its answer. Never sends it twice.
    pub(super) async fn run<O: Operation>(&self, operation: O) -> Result<O::Output, CacheError> {
        let (attempt, client) = self.client().await?;
        let answer = client.meta.run(operation).await;
        answer.map_err(|error| self.failed(&attempt, &client, error))
    }

    /// Sends one command that changes an item and waits for its status. Never sends it twice.
    pub(super) async fn mutate(&self, mutation: Op) -> Result<MutationStatus, CacheError> {
        match self.run(mutation).await? {
            OpResult::Mutation(mutation) => Ok(mutation.status),
            _ => Err(error::of(&self.address, Error::Protocol(String::new()))),
        }
    }

    /// Sends a `get` and an `add` at once, and waits for both answers. Never sends them twice.
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
                // A server that does not know the commands of the one does not know those of the other.
                Ok((Some(Err(error)), _)) if is_rejection(&error) => error,
                // The error answers the `get`, so the outcome of the `add` is unknown.
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
                Err(error::not_connected(&self.address, error))
            }
        }
    }

    fn failed(
        &self,
        attempt: &Attempt<Arc<Client>, Arc<io::Error>>,
        client: &Client,
        error: Error,
    ) -> CacheError {
        // Look the name up again, because the server may have moved.
        if error.is_retryable() && client.looked_up.elapsed() > ADDRESS_LIFETIME {
            self.client.forget(attempt);
        }
        error::of(&self.address, error)
    }
}

fn is_rejection(error: &Error) -> bool {
    match error {
        Error::Rejected(_) => true,
        Error::Ambiguous { source, .. } => is_rejection(source),
        _ => false,
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
    fn order_of_the_servers_does_not_change_the_routes() {
        assert_eq!(routes(&["a:1", "b:1", "c:1"]), routes(&["c:1", "a:1", "b:1"]));
    }

    #[test]
    fn every_server_has_its_share_of_the_keys() {
        let routes = routes(&["10.0.0.1:11211", "10.0.0.2:11211", "10.0.0.3:11211", "10.0.0.4:11211"]);
        let mut shares = BTreeMap::new();
        for server in routes.values() {
            *shares.entry(server).or_insert(0) += 1;
        }
        assert_eq!(shares.len(), 4);
        assert!(shares.values().all(|share| (2_300..2_700).contains(share)), "{shares:?}");
    }

    #[test]
    fn added_server_moves_no_keys_but_its_own() {
        let (before, after) = (routes(&["a:1", "b:1"]), routes(&["a:1", "b:1", "c:1"]));
        for (name, server) in &after {
            assert!(server == "c:1" || *server == before[name], "{name} moved to {server}");
        }
    }

    // Nodes of different versions share servers.
    #[test]
    fn routes_are_the_same_in_every_version() {
        let servers = servers(&["a:1", "b:1", "c:1"]);
        let routes = ["session:1", "session:2", "session:3", "session:4", "session:5", "session:6"]
            .map(|name| servers.of(name.as_bytes()).address.as_str());
        assert_eq!(routes, ["b:1", "a:1", "b:1", "c:1", "a:1", "a:1"]);
        assert_eq!(score("a:1", b"session:1"), 0x2932_a0f1_766c_7ecb);
    }
}
