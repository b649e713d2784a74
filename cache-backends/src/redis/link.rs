//! The connection: made by the first call that needs it, and again by the next one after it broke.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

/// A call that is dropped before it was this old says nothing of the server.
const PATIENCE: Duration = Duration::from_millis(25);

pub(super) struct Link {
    connection: Lazy<Connection, NotConnected>,
    response_timeout: Duration,
    silence: Silence,
}

impl Link {
    pub(super) fn new(connect: Connect, response_timeout: Duration) -> Self {
        Self { connection: Lazy::new(connect), response_timeout, silence: Silence::new() }
    }

    /// Sends `cmd` and waits for its answer. Never sends it twice.
    pub(super) async fn call(&self, cmd: &Cmd) -> Result<Value, Failure> {
        self.exchange(async |connection| connection.send(cmd).await).await
    }

    /// As [`call`](Self::call), for a command that another node of the cluster has sent here by `ASK`.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn ask(&self, cmd: &Cmd) -> Result<Value, Failure> {
        // `ASKING` holds for the next command of the connection, so no other caller's may come in between: a pipeline.
        let mut pipeline = Pipeline::new();
        pipeline.cmd("ASKING").add_command(cmd.clone());
        self.exchange(async |connection| connection.send_all(&pipeline).await).await
    }

    async fn exchange(
        &self,
        send: impl AsyncFnOnce(&mut Connection) -> RedisResult<Value>,
    ) -> Result<Value, Failure> {
        let (attempt, mut connection) = self.connected().await.map_err(Failure::NotConnected)?;
        let waiting = self.silence.wait();
        let answer = timeout(self.response_timeout, send(&mut connection)).await;
        let answer = answer.map_err(|_| Failure::Silence)?;
        waiting.end();
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

    /// The present connection, or a new one where there is none, or an outdated or a silent one.
    async fn connected(&self) -> Result<(Attempt<Connection, NotConnected>, Connection), NotConnected> {
        let mut attempt = self.connection.attempt();
        let mut connected = attempt.clone().await;
        let is_useless = |connection: &Connection| {
            connection.is_outdated() || self.silence.has_lasted(self.response_timeout)
        };
        if connected.as_ref().is_ok_and(is_useless) {
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

/// Notices that a server answers no one, whether its callers wait until their time is over or are dropped before. The
/// connection is given up then: after an outage in which the network dropped packets, TCP would take as long again as that
/// has lasted to go on, and a new connection finds the server as soon as it is back.
struct Silence {
    beginning: Instant,
    /// In milliseconds from the beginning.
    last_answer: AtomicU64,
    /// Since when nothing was answered; 0 if something was.
    since: AtomicU64,
}

impl Silence {
    fn new() -> Self {
        Self { beginning: Instant::now(), last_answer: AtomicU64::new(0), since: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.beginning.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// A call begins to wait for its answer.
    fn wait(&self) -> Waiting<'_> {
        Waiting { silence: self, since: self.now(), is_answered: false }
    }

    /// Returns `true` to one caller if nothing was answered for so long. Another silence can begin then.
    fn has_lasted(&self, limit: Duration) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        since != 0
            && u128::from(self.now() - since) >= limit.as_millis()
            && self.since.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// A call that waits for its answer.
struct Waiting<'a> {
    silence: &'a Silence,
    since: u64,
    is_answered: bool,
}

impl Waiting<'_> {
    fn end(mut self) {
        self.is_answered = true;
        self.silence.last_answer.store(self.silence.now(), Ordering::Relaxed);
        // A load first, so that answers to many at once do not write one after the other.
        if self.silence.since.load(Ordering::Relaxed) != 0 {
            self.silence.since.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Silence { last_answer, since, .. } = self.silence;
        let has_waited = u128::from(self.silence.now() - self.since) >= PATIENCE.as_millis();
        // One that was answered later was sent on the same connection.
        if !self.is_answered && has_waited && last_answer.load(Ordering::Relaxed) < self.since {
            let _ = since.compare_exchange(0, self.since, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}
