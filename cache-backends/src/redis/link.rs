//! The connection: made by the first call that needs it, and again by the next one after it broke.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::time::timeout;

use super::error::Failure;
use super::eviction;
use crate::lazy::{Lazy, Make};

/// Makes a connection.
pub(super) type Connect = Make<Connection, RedisError>;

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
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
    Given(Arc<dyn Given>),
}

impl Connection {
    pub(super) async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(connection) => connection.send_packed_command(cmd).await?.extract_error(),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(connection) => super::cluster::send(connection, cmd).await,
            Self::Given(given) => given.handle().req_packed_command(cmd).await?.extract_error(),
        }
    }

    /// Whether nothing more will be answered after this error.
    fn is_broken_by(&self, error: &RedisError) -> bool {
        match self {
            Self::Server(_) => error.is_unrecoverable_error(),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => error.is_connection_dropped(),
            Self::Given(_) => false,
        }
    }
}

pub(super) struct Link {
    connection: Lazy<Connection, RedisError>,
    /// For errors.
    address: String,
    response_timeout: Duration,
}

impl Link {
    pub(super) fn new(
        connect: Connect,
        address: String,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Self {
        let begin = move || {
            let connecting = connect();
            let limited = async move {
                let connection = timeout(connect_timeout, connecting).await.map_err(|_| too_slow())??;
                tokio::spawn(eviction::warn(connection.clone()));
                Ok(connection)
            };
            limited.boxed()
        };
        Self { connection: Lazy::new(Box::new(begin)), address, response_timeout }
    }

    /// Sends `cmd` and waits for its answer. Never sends it twice.
    pub(super) async fn call(&self, cmd: &Cmd) -> Result<Value, Failure> {
        let attempt = self.connection.attempt();
        let mut connection = match attempt.clone().await {
            Ok(connection) => connection,
            Err(error) => {
                self.connection.forget(&attempt);
                return Err(Failure::NotConnected { address: self.address.clone(), error });
            }
        };
        let answer = timeout(self.response_timeout, connection.send(cmd)).await;
        let answer = answer.map_err(|_| Failure::Silence)?;
        if let Err(error) = &answer
            && connection.is_broken_by(error)
        {
            self.connection.forget(&attempt);
        }
        answer.map_err(Failure::Answer)
    }
}

fn too_slow() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
