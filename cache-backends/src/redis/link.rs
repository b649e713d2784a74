//! The connection: made by the first call that needs it, and again by the next one after it broke.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::time::timeout;

use super::error::{Failure, NotConnected};
use super::sentinel::Master;
use crate::lazy::{Attempt, Lazy, Make};

/// Makes a connection.
pub(super) type Connect = Make<Connection, NotConnected>;

/// A connection of the application's.
pub(super) trait Given: Send + Sync {
    fn handle(&self) -> Box<dyn ConnectionLike + Send>;
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Given for C {
    fn handle(&self) -> Box<dyn ConnectionLike + Send> {
        Box::new(self.clone())
    }
}

/// A handle to a connection. Commands of many callers travel on it one after the other, without waiting for answers.
#[derive(Clone)]
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Master(Master),
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
    Given(Arc<dyn Given>),
}

impl Connection {
    pub(super) async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(connection) | Self::Master(Master { connection, .. }) => {
                connection.send_packed_command(cmd).await?.extract_error()
            }
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(connection) => super::cluster::send(connection, cmd).await,
            Self::Given(given) => given.handle().req_packed_command(cmd).await?.extract_error(),
        }
    }

    /// Whether the server is not the one to ask any more.
    fn is_outdated(&self) -> bool {
        matches!(self, Self::Master(master) if master.is_replaced())
    }

    /// Whether nothing more, or nothing good, will be answered after this error.
    fn is_broken_by(&self, error: &RedisError) -> bool {
        match self {
            Self::Server(_) => error.is_unrecoverable_error(),
            Self::Master(_) => error.is_unrecoverable_error() || Master::is_demoted_by(error),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => error.is_connection_dropped(),
            Self::Given(_) => false,
        }
    }
}

pub(super) struct Link {
    connection: Lazy<Connection, NotConnected>,
    response_timeout: Duration,
}

impl Link {
    pub(super) fn new(connect: Connect, response_timeout: Duration) -> Self {
        Self { connection: Lazy::new(connect), response_timeout }
    }

    /// Sends `cmd` and waits for its answer. Never sends it twice.
    pub(super) async fn call(&self, cmd: &Cmd) -> Result<Value, Failure> {
        let (attempt, mut connection) = self.connected().await.map_err(Failure::NotConnected)?;
        let answer = timeout(self.response_timeout, connection.send(cmd)).await;
        let answer = answer.map_err(|_| Failure::Silence)?;
        if let Err(error) = &answer
            && connection.is_broken_by(error)
        {
            self.connection.forget(&attempt);
        }
        answer.map_err(Failure::Answer)
    }

    /// Where the master is that the sentinels have named, if there are any.
    pub(super) async fn master(&self) -> Option<String> {
        match self.connected().await {
            Ok((_, Connection::Master(master))) => Some(master.address.to_string()),
            _ => None,
        }
    }

    /// The present connection, or a new one where there is none or an outdated one.
    async fn connected(&self) -> Result<(Attempt<Connection, NotConnected>, Connection), NotConnected> {
        let mut attempt = self.connection.attempt();
        let mut connected = attempt.clone().await;
        if connected.as_ref().is_ok_and(Connection::is_outdated) {
            self.connection.forget(&attempt);
            attempt = self.connection.attempt();
            connected = attempt.clone().await;
        }
        if connected.is_err() {
            self.connection.forget(&attempt);
        }
        Ok((attempt, connected?))
    }
}
