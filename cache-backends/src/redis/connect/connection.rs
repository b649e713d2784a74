//! A connection that is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "redis-cluster")]
use redis::Pipeline;
use redis::aio::ConnectionLike;
use redis::{Cmd, RedisError, RedisResult, Value};

use super::connector::Login;
use crate::lazy::Make;
use crate::redis::error::NotConnected;

/// A function that makes a connection.
pub(in crate::redis) type MakeConnection = Make<Connection, NotConnected>;

/// A handle to a connection. Commands of many callers are sent on it one after the other, without waiting for
/// replies.
#[derive(Clone)]
pub(in crate::redis) enum Connection {
    /// A connection to a server at a fixed address.
    Server(Login),
    /// A connection to the master that Redis Sentinel has named.
    Master(Master),
    /// A connection that the application has made.
    Application(Arc<dyn ApplicationConnection>),
}

impl Connection {
    pub(in crate::redis) async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(login) | Self::Master(Master { login, .. }) => {
                login.connection.send_packed_command(cmd).await?.extract_error()
            }
            Self::Application(connection) => {
                connection.handle().req_packed_command(cmd).await?.extract_error()
            }
        }
    }

    /// Sends all commands, one directly after the other. Returns the reply to the last one.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn send_all(&mut self, pipeline: &Pipeline) -> RedisResult<Value> {
        let count = pipeline.len();
        let replies = match self {
            Self::Server(login) | Self::Master(Master { login, .. }) => {
                login.connection.send_packed_commands(pipeline, 0, count).await?
            }
            Self::Application(connection) => {
                connection.handle().req_packed_commands(pipeline, 0, count).await?
            }
        };
        replies.into_iter().next_back().unwrap_or_default().extract_error()
    }

    /// Returns `true` if another connection is to be made: the sentinels name another server by now, or the credentials
    /// will soon expire.
    pub(in crate::redis) fn is_outdated(&self) -> bool {
        match self {
            Self::Server(login) => login.is_to_be_renewed(),
            Self::Master(master) => {
                master.is_replaced.load(Ordering::Relaxed) || master.login.is_to_be_renewed()
            }
            Self::Application(_) => false,
        }
    }

    /// Returns `true` if a connection with this error has to be replaced.
    pub(super) fn is_broken_by(&self, error: &RedisError) -> bool {
        // `READONLY` says that the server is no master any more, and the others that the login is not valid any more: by
        // now, the same name may lead to the new master, and there may be a new password.
        let is_broken = error.is_unrecoverable_error()
            || matches!(error.code(), Some("READONLY" | "NOAUTH" | "WRONGPASS"));
        is_broken && !matches!(self, Self::Application(_))
    }
}

/// A connection to the master.
#[derive(Clone)]
pub(in crate::redis) struct Master {
    pub(super) login: Login,
    /// The host and the port of the server.
    pub(super) address: Arc<str>,
    /// Set once the sentinels name another master.
    pub(super) is_replaced: Arc<AtomicBool>,
}

/// A connection of the application's, of any type.
pub(in crate::redis) trait ApplicationConnection: Send + Sync {
    fn handle(&self) -> Box<dyn ConnectionLike + Send>;
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> ApplicationConnection for C {
    fn handle(&self) -> Box<dyn ConnectionLike + Send> {
        Box::new(self.clone())
    }
}
