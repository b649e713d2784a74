//! The connection: made by the first call that needs it, and again by the next one after it broke.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[cfg(feature = "redis-cluster")]
use redis::Pipeline;
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
    Given(Arc<dyn Given>),
}

impl Connection {
    pub(super) async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(connection) | Self::Master(Master { connection, .. }) => {
                connection.send_packed_command(cmd).await?.extract_error()
            }
            Self::Given(given) => given.handle().req_packed_command(cmd).await?.extract_error(),
        }
    }

    /// Sends all commands, one directly after the other. Returns the answer to the last.
    #[cfg(feature = "redis-cluster")]
    async fn send_all(&mut self, pipeline: &Pipeline) -> RedisResult<Value> {
        let count = pipeline.len();
        let answers = match self {
            Self::Server(connection) | Self::Master(Master { connection, .. }) => {
                connection.send_packed_commands(pipeline, 0, count).await?
            }
            Self::Given(given) => given.handle().req_packed_commands(pipeline, 0, count).await?,
        };
        answers.into_iter().next_back().unwrap_or_default().extract_error()
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
            Self::Given(_) => false,
        }
    }
}

pub(super) struct Link {
    connection: Lazy<Connection, NotConnected>,
    response_timeout: Duration,
    /// Counts the answers, to notice when there are none.
    answers: AtomicUsize,
}

impl Link {
    pub(super) fn new(connect: Connect, response_timeout: Duration) -> Self {
        Self { connection: Lazy::new(connect), response_timeout, answers: AtomicUsize::new(0) }
    }

    /// Sends `cmd` and waits for its answer. Never sends it twice.
    pub(super) async fn call(&self, cmd: &Cmd) -> Result<Value, Failure> {
        self.exchange(async |connection| connection.send(cmd).await).await
    }

    /// As [`call`](Self::call), for a command that another node of the cluster has sent here by `ASK`.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn ask(&self, cmd: &Cmd) -> Result<Value, Failure> {
        // `ASKING` holds for the next command of the connection, so nobody else's must come in between: a pipeline.
        let mut pipeline = Pipeline::new();
        pipeline.cmd("ASKING").add_command(cmd.clone());
        self.exchange(async |connection| connection.send_all(&pipeline).await).await
    }

    async fn exchange(
        &self,
        send: impl AsyncFnOnce(&mut Connection) -> RedisResult<Value>,
    ) -> Result<Value, Failure> {
        let (attempt, mut connection) = self.connected().await.map_err(Failure::NotConnected)?;
        let before = self.answers.load(Ordering::Relaxed);
        let answer = timeout(self.response_timeout, send(&mut connection)).await;
        let Ok(answer) = answer else {
            // Nothing came on this connection, for anyone. Should the network have dropped packets, TCP would take as long
            // again as the outage lasted to notice its end; a new connection finds the server as soon as it is back.
            if before == self.answers.load(Ordering::Relaxed) {
                self.connection.forget(&attempt);
            }
            return Err(Failure::Silence);
        };
        self.answers.fetch_add(1, Ordering::Relaxed);
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
