//! A server: its connection is made by the first call that needs it, and by the next one after it broke.

use std::time::Duration;

#[cfg(feature = "redis-cluster")]
use redis::Pipeline;
use redis::{Cmd, RedisResult, Value};
use tokio::time::timeout;

use super::connection::{Connection, MakeConnection};
use super::liveness::Liveness;
use crate::lazy::{Attempt, Lazy};
use crate::redis::error::{Failure, NotConnected};

/// A server, with the connection to it. With Redis Sentinel, it is the server that is the master at present.
pub(in crate::redis) struct Server {
    connection: Lazy<Connection, NotConnected>,
    response_timeout: Duration,
    liveness: Liveness,
}

impl Server {
    pub(in crate::redis) fn new(make: MakeConnection, response_timeout: Duration) -> Self {
        Self { connection: Lazy::new(make), response_timeout, liveness: Liveness::new() }
    }

    /// Sends `cmd` and waits for its reply. Never sends it twice.
    pub(in crate::redis) async fn call(&self, cmd: &Cmd) -> Result<Value, Failure> {
        self.exchange(async |connection| connection.send(cmd).await).await
    }

    /// Sends a command that another node of the cluster has redirected here by `ASK`, and waits for its
    /// reply. Never sends it twice.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn ask(&self, cmd: &Cmd) -> Result<Value, Failure> {
        // `ASKING` applies to the next command on the connection. A pipeline keeps other callers' commands
        // from coming between them.
        let mut pipeline = Pipeline::new();
        pipeline.cmd("ASKING").add_command(cmd.clone());
        self.exchange(async |connection| connection.send_all(&pipeline).await).await
    }

    async fn exchange(
        &self,
        send: impl AsyncFnOnce(&mut Connection) -> RedisResult<Value>,
    ) -> Result<Value, Failure> {
        let (attempt, mut connection) = self.connected().await.map_err(Failure::NotConnected)?;
        let pending = self.liveness.begin_call();
        let reply = timeout(self.response_timeout, send(&mut connection)).await;
        let reply = reply.map_err(|_| Failure::Timeout)?;
        pending.answered();
        if let Err(error) = &reply
            && connection.is_broken_by(error)
        {
            self.connection.forget(&attempt);
        }
        reply.map_err(Failure::Answer)
    }

    /// Returns the address of the master that the sentinels have named, or `None` without sentinels.
    pub(in crate::redis) async fn master(&self) -> Option<String> {
        match self.connected().await {
            Ok((_, Connection::Master(master))) => Some(master.address.to_string()),
            _ => None,
        }
    }

    /// Returns the current connection. Connects if there is none, or if it is outdated or silent.
    async fn connected(&self) -> Result<(Attempt<Connection, NotConnected>, Connection), NotConnected> {
        let mut attempt = self.connection.attempt();
        let mut connected = attempt.clone().await;
        let is_useless = |connection: &Connection| {
            connection.is_outdated() || self.liveness.was_silent_for(self.response_timeout)
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
