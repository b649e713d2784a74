//! What Redis and the driver say, in the words of [`CacheError`].

#[cfg(feature = "redis-cluster")]
use std::io;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use session_core::{BoxError, CacheError};

use super::sentinel::SentinelError;

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) enum NotConnected {
    /// The driver could not connect to this address.
    Driver { address: String, error: RedisError },
    /// The sentinels have not named a master that is one.
    Sentinel(SentinelError),
    /// No node of the cluster has the slot, or none that answers knows who has which.
    #[cfg(feature = "redis-cluster")]
    NoNode,
}

impl NotConnected {
    pub(super) fn driver(address: &str, error: RedisError) -> Self {
        Self::Driver { address: address.into(), error }
    }
}

impl From<SentinelError> for NotConnected {
    fn from(error: SentinelError) -> Self {
        Self::Sentinel(error)
    }
}

/// Why a command brought no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not sent: there is no connection.
    NotConnected(NotConnected),
    /// It was sent. Either an error is the answer, or the connection broke.
    Answer(RedisError),
    /// It was sent, and no answer came in time.
    Silence,
    /// The answer to this command is of no kind that it can have.
    Unexpected(&'static str),
}

impl Failure {
    pub(super) const fn unexpected(command: &'static str) -> Self {
        Self::Unexpected(command)
    }

    /// The first word of the error that the server answered.
    fn code(&self) -> Option<&str> {
        match self {
            Self::Answer(error) => error.code(),
            Self::NotConnected(_) | Self::Silence | Self::Unexpected(_) => None,
        }
    }

    /// The server does not remember the script.
    pub(super) fn is_no_script(&self) -> bool {
        self.code() == Some("NOSCRIPT")
    }

    /// A list, a set or the like is under the key.
    pub(super) fn is_wrong_type(&self) -> bool {
        self.code() == Some("WRONGTYPE")
    }

    /// Where a cluster's node says that the key is.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn redirection(&self) -> Option<Redirection> {
        let Self::Answer(error) = self else { return None };
        let (address, _) = error.redirect_node()?;
        let (host, port) = address.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = (host.to_owned(), port.parse().ok()?);
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => Some(Redirection::Ask(address)),
            _ => Some(Redirection::Moved(address)),
        }
    }

    /// Whether the cluster may have given the key to another node: this one is out of reach, or cut off from the others.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn may_be_elsewhere(&self) -> bool {
        match self {
            Self::NotConnected(_) | Self::Silence => true,
            Self::Answer(error) => error.code().is_none_or(|code| code == "CLUSTERDOWN"),
            Self::Unexpected(_) => false,
        }
    }

    /// The same, where the command was a part of connecting to `address`.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn while_connecting(self, address: &str) -> NotConnected {
        match self {
            Self::NotConnected(error) => error,
            Self::Answer(error) => NotConnected::driver(address, error),
            Self::Silence => NotConnected::driver(address, io::Error::from(io::ErrorKind::TimedOut).into()),
            Self::Unexpected(_) => NotConnected::NoNode,
        }
    }

    /// The server takes no writes, but may answer reads.
    pub(super) fn refuses_writes(&self) -> bool {
        matches!(self.code(), Some("OOM" | "READONLY" | "MISCONF" | "NOREPLICAS"))
    }
}

/// Where a command has to be sent instead.
#[cfg(feature = "redis-cluster")]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// There, like all others for the same slot.
    Moved((String, u16)),
    /// There, but only this one.
    Ask((String, u16)),
}

impl From<Failure> for CacheError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Silence => Self::Unknown("no answer in time".into()),
            Failure::Unexpected(command) => {
                Self::Unknown(format!("{command} was answered by something that is no answer to it").into())
            }
            Failure::NotConnected(NotConnected::Driver { address, error }) => {
                let unreachable = error.is_io_error() || passes(&error);
                let error = Box::new(At { address, error: boxed(error) });
                if unreachable { Self::Unavailable(error) } else { Self::Refused(error) }
            }
            Failure::NotConnected(NotConnected::Sentinel(error)) if error.passes() => {
                Self::Unavailable(error.into())
            }
            Failure::NotConnected(NotConnected::Sentinel(error)) => Self::Refused(error.into()),
            #[cfg(feature = "redis-cluster")]
            Failure::NotConnected(NotConnected::NoNode) => {
                Self::Unavailable("no node of the cluster that answers has the key's slot".into())
            }
            Failure::Answer(error) if passes(&error) => Self::Unavailable(boxed(error)),
            // Whatever is no answer of a server leaves open what it did.
            Failure::Answer(error) if error.code().is_some() => Self::Refused(boxed(error)),
            Failure::Answer(error) => Self::Unknown(boxed(error)),
        }
    }
}

/// Whether the server is just not ready: it starts, a script of somebody else runs, a failover is under way.
fn passes(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
        ),
        _ => error.code() == Some("BUSY"),
    }
}

/// An error, and whose it is.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {error}")]
struct At {
    address: String,
    #[source]
    error: BoxError,
}

/// The error as a source, without what must not be seen.
fn boxed(error: RedisError) -> BoxError {
    let text = match (error.kind(), error.code()) {
        // The operating system's words, or the TLS library's.
        (ErrorKind::Io, _) => return error.into(),
        // These quote what was received, and that may be a payload.
        (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => {
            return "the answer could not be parsed".into();
        }
        (_, Some(code)) => format!("{code}: {}", error.detail().unwrap_or_default()),
        (_, None) => error.to_string(),
    };
    // A server quotes the arguments of a command that it does not know, and the key is among them.
    text.split(", with args").next().unwrap_or_default().into()
}
