//! Redis Sentinel: who the master is, asked before a connection is made, and again as long as it is used.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionInfo, RedisError, Value};
use session_core::CacheError;
use tokio::time::{sleep, timeout};

use super::dial::{Dial, within};
use super::error::{Failure, NotConnected};
use super::link::{Connect, Connection, Link};

/// How often the sentinels are asked whether the master that is connected to is still the one. Nobody else would tell
/// where it hangs, or is cut off from them and not from here.
const LOOK: Duration = Duration::from_secs(1);

/// Why there is no connection to the master that Redis Sentinel names. It is a source of [`CacheError::Unavailable`], or
/// of [`CacheError::Refused`] where waiting does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SentinelError {
    /// The sentinels answer, and watch no master of this name.
    #[error(
        "the sentinels know no master {service:?}; the URL must end with the name that they monitor it under"
    )]
    UnknownService {
        /// The name that was asked for.
        service: String,
    },
    /// No sentinel could be asked.
    #[error("no sentinel answers ({reason}); check that they run and that their addresses are right")]
    Unreachable {
        /// What came of asking the last of them.
        reason: String,
    },
    /// No sentinel wants to say where the master is: wrong password, or what was asked is no sentinel.
    #[error("the sentinels do not say where the master is ({reason}); check their addresses and password")]
    Refused {
        /// What came of asking the last of them.
        reason: String,
    },
    /// The server that the sentinels name does not call itself a master: a failover is under way.
    #[error("the sentinels name {address}, which is no master at present")]
    NotMaster {
        /// Where it is.
        address: String,
    },
}

impl SentinelError {
    /// Whether it passes by itself.
    pub(super) const fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotMaster { .. } => true,
            Self::UnknownService { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Host and port.
type Address = (String, u16);

/// Whom to ask for the master, and how to connect to it.
pub(super) struct Sentinels {
    pub(super) service: String,
    /// Each with its address, for errors.
    pub(super) sentinels: Vec<(String, Link)>,
    pub(super) dial: Dial,
    /// What is the same for every master: all but its address.
    pub(super) server: ConnectionInfo,
}

/// A connection to the master.
#[derive(Clone)]
pub(super) struct Master {
    pub(super) connection: MultiplexedConnection,
    /// Of the server, with its port.
    pub(super) address: Arc<str>,
    is_replaced: Arc<AtomicBool>,
}

impl Master {
    /// Whether the sentinels name another master by now.
    pub(super) fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::Relaxed)
    }

    /// Whether the server says that it is no master any more.
    pub(super) fn is_demoted_by(error: &RedisError) -> bool {
        error.code() == Some("READONLY")
    }
}

pub(super) fn connect(sentinels: Sentinels) -> Connect {
    let sentinels = Arc::new(sentinels);
    Box::new(move || Arc::clone(&sentinels).connect().boxed())
}

impl Sentinels {
    async fn connect(self: Arc<Self>) -> Result<Connection, NotConnected> {
        let mut outcome = Err(SentinelError::UnknownService { service: self.service.clone() }.into());
        for (address, _) in self.named().await? {
            outcome = self.connect_to(&address).await;
            if let Ok(connection) = &outcome {
                let is_replaced = Arc::default();
                let master = Master {
                    connection: connection.clone(),
                    address: format!("{}:{}", address.0, address.1).into(),
                    is_replaced: Arc::clone(&is_replaced),
                };
                tokio::spawn(watch(Arc::downgrade(&is_replaced), Arc::clone(&self), address));
                return Ok(Connection::Master(master));
            }
        }
        outcome.map(Connection::Server)
    }

    /// The servers that are said to be the master, each with the number of those who say so, the most first. Just one,
    /// when more than half of all sentinels say it: the others may be slow, or cut off.
    async fn named(&self) -> Result<Vec<(Address, usize)>, SentinelError> {
        let mut cmd = Cmd::new();
        cmd.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
        let mut answers: FuturesUnordered<_> = self
            .sentinels
            .iter()
            .map(|(address, link)| {
                let asked = timeout(self.dial.connect_timeout, link.call(&cmd));
                async move { read(asked.await.unwrap_or(Err(Failure::Silence)), address) }
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

    /// Connects to this server, if it calls itself a master.
    async fn connect_to(&self, address: &Address) -> Result<MultiplexedConnection, NotConnected> {
        let (host, port) = address.clone();
        let server = Dial::at(&self.server, host, port);
        let name = server.addr().to_string();
        let mut connection = self.dial.connect_to(server).await?;
        let mut cmd = Cmd::new();
        cmd.arg("ROLE");
        let role = async { connection.send_packed_command(&cmd).await?.extract_error() };
        match within(self.dial.connect_timeout, name.clone(), role).await? {
            Value::Array(role) if role.first().and_then(text) == Some("master") => Ok(connection),
            _ => Err(SentinelError::NotMaster { address: name }.into()),
        }
    }
}

/// Looks after the connection to the master at `address`, until it is given up or another master is named.
async fn watch(is_replaced: Weak<AtomicBool>, sentinels: Arc<Sentinels>, address: Address) {
    while is_replaced.strong_count() > 0 {
        sleep(LOOK).await;
        // Who asks in vain knows nothing better than what there is.
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

/// What the sentinel at `address` has answered: where the master is, if it knows the name.
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
        CacheError::Refused(_) => SentinelError::Refused { reason },
        _ => SentinelError::Unreachable { reason },
    })
}

/// A host and a port.
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
