//! The connections of a channel: one to each server whose changes are reported.

#[cfg(feature = "redis-cluster")]
use super::cluster::Shares;
use super::connection::Connection;

/// A connection to each server.
pub(in crate::redis) struct Lines {
    connections: Vec<Connection>,
    /// The division of keys among the servers of a cluster.
    #[cfg(feature = "redis-cluster")]
    shares: Option<Shares>,
}

impl Lines {
    /// Creates the lines of one server.
    pub(in crate::redis) fn one(connection: Connection) -> Self {
        Self {
            connections: vec![connection],
            #[cfg(feature = "redis-cluster")]
            shares: None,
        }
    }

    #[cfg(feature = "redis-cluster")]
    pub(in crate::redis) fn of_cluster((connections, shares): (Vec<Connection>, Shares)) -> Self {
        Self { connections, shares: Some(shares) }
    }

    pub(in crate::redis) fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// Returns the number of the connection to the server that has the key, or `None` if no server has it.
    #[cfg_attr(not(feature = "redis-cluster"), expect(unused_variables, reason = "one server has every key"))]
    pub(in crate::redis) fn number_of(&self, cache_key: &[u8]) -> Option<usize> {
        #[cfg(feature = "redis-cluster")]
        if let Some(shares) = &self.shares {
            return shares.number_of(cache_key);
        }
        Some(0)
    }

    pub(in crate::redis) const fn is_cluster(&self) -> bool {
        #[cfg(feature = "redis-cluster")]
        return self.shares.is_some();
        #[cfg(not(feature = "redis-cluster"))]
        false
    }

    /// Returns `true` if other connections are to be made: a server was replaced, credentials will soon expire, or keys have
    /// moved from one server to another.
    pub(in crate::redis) fn is_outdated(&self) -> bool {
        #[cfg(feature = "redis-cluster")]
        if self.shares.as_ref().is_some_and(Shares::is_outdated) {
            return true;
        }
        self.connections.iter().any(Connection::is_outdated)
    }

    /// Finds out again which server has which keys, in the background.
    pub(in crate::redis) fn refresh(&self) {
        #[cfg(feature = "redis-cluster")]
        if let Some(shares) = &self.shares {
            shares.refresh();
        }
    }
}
