//! The connection: made by the first call that needs it, and again by the next one after it broke.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::time::timeout;

use super::error::Failure;
use super::eviction;

/// Makes a connection.
pub(super) type Connect = Box<dyn Fn() -> BoxFuture<'static, RedisResult<Connection>> + Send + Sync>;

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

/// An attempt to connect that all callers share. It belongs to none of them: it goes on when they are gone.
type Attempt = Shared<BoxFuture<'static, RedisResult<Connection>>>;

pub(super) struct Link {
    connect: Connect,
    /// For errors.
    address: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    current: Mutex<Option<Attempt>>,
}

impl Link {
    pub(super) fn new(
        connect: Connect,
        address: String,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Self {
        Self { connect, address, connect_timeout, response_timeout, current: Mutex::new(None) }
    }

    /// Sends `cmd` and waits for its answer. Never sends it twice.
    pub(super) async fn call(&self, cmd: &Cmd) -> Result<Value, Failure> {
        let attempt = self.attempt();
        let mut connection = match attempt.clone().await {
            Ok(connection) => connection,
            Err(error) => {
                self.forget(&attempt);
                return Err(Failure::NotConnected { address: self.address.clone(), error });
            }
        };
        let answer = timeout(self.response_timeout, connection.send(cmd)).await;
        let answer = answer.map_err(|_| Failure::Silence)?;
        if let Err(error) = &answer
            && connection.is_broken_by(error)
        {
            self.forget(&attempt);
        }
        answer.map_err(Failure::Answer)
    }

    fn attempt(&self) -> Attempt {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.get_or_insert_with(|| self.begin()).clone()
    }

    fn begin(&self) -> Attempt {
        let (connecting, limit) = ((self.connect)(), self.connect_timeout);
        let attempt = async move {
            let connection = timeout(limit, connecting).await.map_err(|_| too_slow())??;
            tokio::spawn(eviction::warn(connection.clone()));
            Ok(connection)
        };
        let attempt = attempt.boxed().shared();
        tokio::spawn(attempt.clone());
        attempt
    }

    /// Lets the next call connect anew, unless another one did so already.
    fn forget(&self, attempt: &Attempt) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| current.ptr_eq(attempt)) {
            *current = None;
        }
    }
}

fn too_slow() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
