//! The connections. Each of these files uses only those before it: `tls`, `greeting`, `connector`,
//! `connection`, `eviction`, `liveness`, `server`, `sentinel`, `cluster`, `lines`.

#[cfg(feature = "redis-cluster")]
mod cluster;
mod connection;
mod connector;
mod eviction;
mod greeting;
mod lines;
mod liveness;
mod sentinel;
mod server;
#[cfg(feature = "redis-tls")]
mod tls;

use redis::{Cmd, Value};

#[cfg(feature = "redis-cluster")]
pub(super) use self::cluster::Cluster;
pub(super) use self::connection::{ApplicationConnection, Connection, MakeConnection};
pub(super) use self::connector::{Connector, TakePush};
pub(super) use self::greeting::{Part, is_replica, is_too_old};
pub(super) use self::lines::Lines;
pub(super) use self::sentinel::Sentinels;
pub(super) use self::server::Server;
#[cfg(feature = "redis-tls")]
pub(super) use self::tls::Certificates;
use super::error::Failure;

/// One server, or the nodes of a cluster.
pub(super) enum Servers {
    One(Server),
    #[cfg(feature = "redis-cluster")]
    Cluster(std::sync::Arc<Cluster>),
}

impl Servers {
    /// Creates the one server that `make` connects to, whose eviction policy is checked at each connection.
    pub(super) fn one(make: MakeConnection, response_timeout: std::time::Duration) -> Self {
        Self::One(Server::new(eviction::checked(make), response_timeout))
    }

    /// Sends `cmd`, whose key is `cache_key`, and waits for its reply. Never sends it again after it may have
    /// been executed.
    #[cfg_attr(not(feature = "redis-cluster"), expect(unused_variables, reason = "one server has every key"))]
    pub(super) async fn call(&self, cache_key: &[u8], cmd: &Cmd) -> Result<Value, Failure> {
        match self {
            Self::One(server) => server.call(cmd).await,
            #[cfg(feature = "redis-cluster")]
            // Boxed, because it is larger than the other, which is on every hit's stack.
            Self::Cluster(cluster) => Box::pin(cluster.call(cache_key, cmd)).await,
        }
    }

    /// Returns the number of servers that can fail independently.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => cluster::GROUPS,
        }
    }

    /// Returns the number of the server that has a key. `cache_key` is called only if there are several
    /// servers.
    #[cfg_attr(not(feature = "redis-cluster"), expect(unused_variables, reason = "one server has every key"))]
    pub(super) fn number_of(&self, cache_key: impl FnOnce() -> Vec<u8>) -> usize {
        match self {
            Self::One(_) => 0,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => cluster::group(cluster::slot(&cache_key())),
        }
    }
}
