//! Redis Sentinel: the sentinels are asked for the master before a connection is made, and again as long as
//! it is used.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::{Cmd, ConnectionInfo, Value};
use session_core::CacheError;
use tokio::time::{sleep, timeout};

use super::connection::{Connection, MakeConnection, Master};
use super::connector::{Connector, Login, TakePush, with_address, within};
use super::greeting::Part;
use super::server::Server;
use crate::redis::error::{Failure, NotConnected, SentinelError};

/// The interval at which the sentinels are asked whether the connected master is still the master. Without
/// that, a master that hangs, or that is cut off from the sentinels only, would stay connected.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A host and a port.
type Address = (String, u16);

/// The sentinels to ask for the master, and the options for connecting to it.
pub(in crate::redis) struct Sentinels {
    /// The name that the sentinels monitor the master under.
    pub(in crate::redis) service: String,
    /// The sentinels, with their addresses for errors.
    pub(in crate::redis) sentinels: Vec<(String, Server)>,
    pub(in crate::redis) connector: Connector,
    /// The part of the connection info that is the same for every master: all but the address.
    pub(in crate::redis) info: ConnectionInfo,
}

impl Sentinels {
    /// Returns the function that connects to the master.
    pub(in crate::redis) fn make_connection(self: &Arc<Self>) -> MakeConnection {
        let sentinels = Arc::clone(self);
        Box::new(move || Arc::clone(&sentinels).connect(None).boxed())
    }

    /// Connects to the master. `take_push` takes the push messages.
    pub(in crate::redis) async fn connect(
        self: Arc<Self>,
        take_push: Option<TakePush>,
    ) -> Result<Connection, NotConnected> {
        let mut outcome = Err(SentinelError::UnknownService { service: self.service.clone() }.into());
        for (address, _) in self.named().await? {
            outcome = self.connect_to(&address, take_push.clone()).await;
            if let Ok(login) = &outcome {
                let is_replaced = Arc::default();
                let master = Master {
                    login: login.clone(),
                    address: format!("{}:{}", address.0, address.1).into(),
                    is_replaced: Arc::clone(&is_replaced),
                };
                tokio::spawn(watch(Arc::downgrade(&is_replaced), Arc::clone(&self), address));
                return Ok(Connection::Master(master));
            }
        }
        outcome.map(Connection::Server)
    }

    /// Returns the servers that sentinels name as the master, each with the number of these sentinels, the
    /// largest number first. Returns only one server once more than half of all sentinels name it, because
    /// the others may be slow or cut off.
    async fn named(&self) -> Result<Vec<(Address, usize)>, SentinelError> {
        let mut cmd = Cmd::new();
        cmd.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
        let mut answers: FuturesUnordered<_> = self
            .sentinels
            .iter()
            .map(|(address, sentinel)| {
                let asked = timeout(self.connector.connect_timeout, sentinel.call(&cmd));
                async move { read(asked.await.unwrap_or(Err(Failure::Timeout)), address) }
            })
            .collect();
        let mut votes = BTreeMap::<Address, usize>::new();
        let (mut is_unknown, mut last) = (false, None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Some(address)) => {
                    let count = votes.entry(address.clone()).or_default();
                    *count += 1;
                    if *count > self.sentinels.len() / 2 {
                        return Ok(vec![(address, *count)]);
                    }
                }
                Ok(None) => is_unknown = true,
                Err(error) => last = Some(error),
            }
        }
        match last {
            _ if !votes.is_empty() => {
                let mut named: Vec<_> = votes.into_iter().collect();
                named.sort_by_key(|(_, count)| Reverse(*count));
                Ok(named)
            }
            Some(error) if !is_unknown => Err(error),
            _ => Err(SentinelError::UnknownService { service: self.service.clone() }),
        }
    }

    /// Connects to the server at `address`, if it calls itself a master.
    async fn connect_to(
        &self,
        address: &Address,
        take_push: Option<TakePush>,
    ) -> Result<Login, NotConnected> {
        let (host, port) = address.clone();
        let info = with_address(&self.info, host, port);
        let name = info.addr().to_string();
        // The sentinels may name a replica in the middle of a failover, and `ROLE` is asked for that below.
        let mut login = self.connector.connect_to(info, Part::Node, take_push).await?;
        let mut cmd = Cmd::new();
        cmd.arg("ROLE");
        let role = async { login.connection.send_packed_command(&cmd).await?.extract_error() };
        match within(self.connector.connect_timeout, name.clone(), role).await? {
            Value::Array(role) if role.first().and_then(text) == Some("master") => Ok(login),
            _ => Err(SentinelError::NotMaster { address: name }.into()),
        }
    }
}

/// Watches the connection to the master at `address`, until it is dropped or the sentinels name another
/// master.
async fn watch(is_replaced: Weak<AtomicBool>, sentinels: Arc<Sentinels>, address: Address) {
    while is_replaced.strong_count() > 0 {
        sleep(CHECK_INTERVAL).await;
        // Keep the present master if no sentinel answers.
        let named = sentinels.named().await.unwrap_or_default();
        let votes = |(named, votes): &(Address, usize)| if *named == address { *votes } else { 0 };
        let for_it: usize = named.iter().map(votes).sum();
        if named.first().is_some_and(|(_, votes)| *votes > for_it)
            && let Some(is_replaced) = is_replaced.upgrade()
        {
            is_replaced.store(true, Ordering::Relaxed);
            return;
        }
    }
}

/// Reads the answer of the sentinel at `address`: the master's address, or `None` if it does not know the
/// name.
fn read(answer: Result<Value, Failure>, address: &str) -> Result<Option<Address>, SentinelError> {
    let failure = match answer {
        Ok(Value::Nil) => return Ok(None),
        Ok(master) => match address_in(&master) {
            Some(master) => return Ok(Some(master)),
            None => Failure::unexpected("SENTINEL"),
        },
        Err(failure) => failure,
    };
    let is_named = matches!(failure, Failure::NotConnected(_));
    let error = CacheError::from(failure);
    let reason = error.source().map(ToString::to_string).unwrap_or_default();
    let reason = if is_named { reason } else { format!("{address}: {reason}") };
    Err(match error {
        CacheError::Refused(_) | CacheError::Unusable(_) => SentinelError::Refused { reason },
        _ => SentinelError::Unreachable { reason },
    })
}

/// Reads a host and a port.
fn address_in(value: &Value) -> Option<Address> {
    let Value::Array(parts) = value else { return None };
    let [host, port] = parts.as_slice() else { return None };
    Some((text(host)?.to_owned(), text(port)?.parse().ok()?))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}
