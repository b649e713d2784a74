//! Where commands go: to one server, or to the nodes of a cluster.

use redis::{Cmd, Value};

#[cfg(feature = "redis-cluster")]
use super::cluster::{self, Cluster};
use super::error::Failure;
use super::link::Link;

pub(super) enum Servers {
    One(Link),
    #[cfg(feature = "redis-cluster")]
    Cluster(Cluster),
}

impl Servers {
    /// Sends `cmd`, whose key is `name`, and waits for its answer. Never sends it again after it may have been executed.
    #[cfg_attr(not(feature = "redis-cluster"), expect(unused_variables, reason = "one server has every key"))]
    pub(super) async fn call(&self, name: &[u8], cmd: &Cmd) -> Result<Value, Failure> {
        match self {
            Self::One(link) => link.call(cmd).await,
            #[cfg(feature = "redis-cluster")]
            // Larger than the other, and this one is on every hit's stack.
            Self::Cluster(cluster) => Box::pin(cluster.call(name, cmd)).await,
        }
    }

    /// Returns the number of the servers that can fail independently.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => cluster::GROUPS,
        }
    }

    /// Returns the number of the server that has the key that `name` makes, which is only called for several servers.
    #[cfg_attr(not(feature = "redis-cluster"), expect(unused_variables, reason = "one server has every key"))]
    pub(super) fn number_of(&self, name: impl FnOnce() -> Vec<u8>) -> usize {
        match self {
            Self::One(_) => 0,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => cluster::group(cluster::slot(&name())),
        }
    }
}
