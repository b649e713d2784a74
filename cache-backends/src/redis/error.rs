//! The errors of Redis and of the driver as [`CacheError`].

use std::error::Error;
#[cfg(any(feature = "redis-cluster", feature = "redis-tls"))]
use std::io;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use session_core::{BoxError, CacheError};

use crate::error::At;

/// An error in connecting to the master that Redis Sentinel names. It is a source of
/// [`CacheError::Unavailable`], or of [`CacheError::Unusable`] if waiting does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SentinelError {
    /// The sentinels answer, and watch no master of this name.
    #[error(
        "the sentinels know no master {service:?}; the URL must end with the name that they monitor it under"
    )]
    UnknownService {
        /// The name that the URL has.
        service: String,
    },
    /// No sentinel can be reached.
    #[error("no sentinel answers ({reason}); check that they run and that their addresses are right")]
    Unreachable {
        /// The error of the last sentinel.
        reason: String,
    },
    /// No sentinel names the master: the password is wrong, or the server is no sentinel.
    #[error("the sentinels do not say where the master is ({reason}); check their addresses and password")]
    Refused {
        /// The error of the last sentinel.
        reason: String,
    },
    /// The server that the sentinels name does not call itself a master, because a failover is under way.
    #[error("the sentinels name {address}, which is no master at present")]
    NotMaster {
        /// The address of the server.
        address: String,
    },
}

impl SentinelError {
    /// Returns `true` if the error passes by itself.
    const fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotMaster { .. } => true,
            Self::UnknownService { .. } | Self::Refused { .. } => false,
        }
    }
}

/// An error in connecting.
#[derive(Clone, Debug)]
pub(super) enum NotConnected {
    /// The driver could not connect to this address.
    Driver { address: String, error: RedisError },
    /// The sentinels have named no master, or none that calls itself one.
    Sentinel(SentinelError),
    /// The server calls itself a replica.
    Replica { address: String },
    /// The server's version is too old.
    TooOld { address: String, version: String },
    /// The server does not know these commands.
    NoCommand { address: String, commands: String },
    /// The application's credentials provider has failed.
    Credentials(Arc<dyn Error + Send + Sync>),
    /// No node of the cluster has the slot, or no node that answers knows the slots.
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

/// The failure of a command: it has no usable reply.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command was not sent, because there is no connection.
    NotConnected(NotConnected),
    /// The command was sent. Either the reply is an error, or the connection broke.
    Answer(RedisError),
    /// The command was sent, and no answer came in time.
    Timeout,
    /// The reply to this command is of a type that it cannot have.
    Unexpected(&'static str),
}

impl Failure {
    pub(super) const fn unexpected(command: &'static str) -> Self {
        Self::Unexpected(command)
    }

    /// Returns the first word of the server's error.
    fn code(&self) -> Option<&str> {
        match self {
            Self::Answer(error) => error.code(),
            Self::NotConnected(_) | Self::Timeout | Self::Unexpected(_) => None,
        }
    }

    /// Returns `true` if the server does not remember the script.
    pub(super) fn is_no_script(&self) -> bool {
        self.code() == Some("NOSCRIPT")
    }

    /// Returns `true` if the key has a list, a set or the like.
    pub(super) fn is_wrong_type(&self) -> bool {
        self.code() == Some("WRONGTYPE")
    }

    /// Returns `true` if the server accepts no writes, and what it holds is still the cache's. A replica is another
    /// matter: what it holds may be old.
    pub(super) fn refuses_writes(&self) -> bool {
        matches!(self.code(), Some("OOM" | "MISCONF" | "NOREPLICAS"))
    }

    /// Returns the node to which a cluster's node redirects the command.
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

    /// Returns `true` if another node of the cluster has the key's slot by now.
    pub(super) fn has_moved(&self) -> bool {
        self.code() == Some("MOVED")
    }

    /// Returns `true` if another node of the cluster may have the key by now, because this one is out of
    /// reach, or cut off from the others.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn may_be_elsewhere(&self) -> bool {
        match self {
            Self::NotConnected(_) | Self::Timeout => true,
            Self::Answer(error) => error.code().is_none_or(|code| code == "CLUSTERDOWN"),
            Self::Unexpected(_) => false,
        }
    }

    /// Returns the error of connecting to `address`, of which the command was a part.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn while_connecting(self, address: &str) -> NotConnected {
        match self {
            Self::NotConnected(error) => error,
            Self::Answer(error) => NotConnected::driver(address, error),
            Self::Timeout => NotConnected::driver(address, io::Error::from(io::ErrorKind::TimedOut).into()),
            Self::Unexpected(_) => NotConnected::NoNode,
        }
    }
}

/// The node to which a command has to be sent instead.
#[cfg(feature = "redis-cluster")]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// Send all commands for the slot there.
    Moved((String, u16)),
    /// Send only this command there.
    Ask((String, u16)),
}

impl From<Failure> for CacheError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Timeout => Self::Unknown("no answer in time".into()),
            Failure::Unexpected(command) => Self::Unknown(format!("unexpected reply to {command}").into()),
            Failure::NotConnected(error) => not_connected(error),
            Failure::Answer(error) if is_temporary(&error) => Self::Unavailable(boxed(error)),
            Failure::Answer(error) if advice(&error).is_some() => Self::Unusable(advised(error)),
            // An error without a code is no server's, so whether the command was applied is unknown.
            Failure::Answer(error) if error.code().is_some() => Self::Refused(boxed(error)),
            Failure::Answer(error) => Self::Unknown(boxed(error)),
        }
    }
}

/// Returns the error of a server that does not report changes.
pub(super) fn no_tracking(failure: Failure) -> CacheError {
    match failure {
        Failure::Answer(error) if error.code().is_some() && !is_temporary(&error) => CacheError::Unusable(
            format!(
                "{}; allow the user +client|tracking and +ping, or use this cache without a near one",
                boxed(error)
            )
            .into(),
        ),
        failure => failure.into(),
    }
}

fn not_connected(error: NotConnected) -> CacheError {
    match error {
        NotConnected::Driver { address, error } => {
            let unreachable = (error.is_io_error() && !is_tls_error(&error)) || is_temporary(&error);
            // Without a connection, every call fails.
            let error = Box::new(At { address, error: advised(error) });
            if unreachable { CacheError::Unavailable(error) } else { CacheError::Unusable(error) }
        }
        NotConnected::Sentinel(error) if error.is_temporary() => CacheError::Unavailable(error.into()),
        NotConnected::Sentinel(error) => CacheError::Unusable(error.into()),
        NotConnected::Replica { address } => CacheError::Unavailable(
            format!(
                "{address} is a replica, whose entries may be old; if this is no failover, name the master instead"
            )
            .into(),
        ),
        NotConnected::TooOld { address, version } => CacheError::Unusable(
            format!("{address} runs Redis {version}; upgrade it to Redis 7.0 or newer, or to Valkey").into(),
        ),
        NotConnected::NoCommand { address, commands } => {
            CacheError::Unusable(format!("{address} does not know {commands}; {COMMANDS}").into())
        }
        NotConnected::Credentials(error) => {
            CacheError::Unavailable(format!("the credentials provider failed: {error}").into())
        }
        #[cfg(feature = "redis-cluster")]
        NotConnected::NoNode => {
            CacheError::Unavailable("no node of the cluster that answers has the key's slot".into())
        }
    }
}

/// Returns `true` if the server is just not ready: it starts, runs another client's script, has too many clients, or a
/// failover is under way.
fn is_temporary(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::ResponseError) => has_detail(error, "max number of clients"),
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                // The connection is replaced, and the next one may lead to the new master.
                | ServerErrorKind::ReadOnly
        ),
        _ => error.code() == Some("BUSY"),
    }
}

/// Returns `true` if this side or the server does not accept the other's certificate, or speaks TLS in another way.
#[cfg(feature = "redis-tls")]
fn is_tls_error(error: &RedisError) -> bool {
    // The driver's own form of a source.
    type Shared = Arc<dyn Error + Send + Sync>;
    let source = error.source().and_then(|source| source.downcast_ref::<Shared>());
    let of_system = source.and_then(|source| source.downcast_ref::<io::Error>());
    of_system.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<rustls::Error>())
}

#[cfg(not(feature = "redis-tls"))]
const fn is_tls_error(_: &RedisError) -> bool {
    false
}

const COMMANDS: &str = "the server must be Redis 7.0 or newer, or Valkey, and must neither rename nor forbid GET, SET, DEL, \
     EVAL and EVALSHA";

/// Returns the remedy for an error that every other call would get, too, or `None` if it is this call's alone.
fn advice(error: &RedisError) -> Option<&'static str> {
    const LOGIN: &str = "check the user and the password, and that the server takes further clients";
    const RIGHTS: &str = "allow the user +get +set +del +eval +evalsha, on the keys with the cache's prefix";
    const CERTIFICATES: &str = "check the certificates: root_certificates and the name in the URL for the server's, \
         client_certificate and client_key for this client's";
    const RESP3: &str = "a near cache needs a server that speaks RESP3: connect to it without the proxy that refuses that, or use \
         this cache without a near one";
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS")) => Some(LOGIN),
        _ if is_tls_error(error) => Some(CERTIFICATES),
        (_, Some("NOAUTH")) => Some("set a password: the server demands one"),
        (_, Some("NOPERM")) => Some(RIGHTS),
        (_, Some("DENIED")) => Some("set a password on the server and here, or turn its protected mode off"),
        (ErrorKind::RESP3NotSupported, _) | (_, Some("NOPROTO")) => Some(RESP3),
        // Rights of commands within the script, in the words of Redis 7.2 and of 7.0.
        _ if has_detail(error, "ACL failure in script") => Some(RIGHTS),
        _ if has_detail(error, "The user executing the script can't") => Some(RIGHTS),
        // A server that is no sentinel is another mistake.
        _ if has_detail(error, "'SENTINEL'") => None,
        _ if has_detail(error, "nknown command") || has_detail(error, "nknown Redis command") => {
            Some(COMMANDS)
        }
        _ if has_detail(error, "syntax error") => Some(COMMANDS),
        _ if has_detail(error, "DB index") => Some("check the number of the database in the URL"),
        _ => None,
    }
}

fn has_detail(error: &RedisError, text: &str) -> bool {
    error.detail().is_some_and(|detail| detail.contains(text))
}

/// Returns the error as a source, with the remedy if there is one.
fn advised(error: RedisError) -> BoxError {
    match advice(&error) {
        Some(advice) => format!("{}; {advice}", boxed(error)).into(),
        None => boxed(error),
    }
}

/// Returns the error as a source, without the parts that must not be shown.
fn boxed(error: RedisError) -> BoxError {
    let text = match (error.kind(), error.code()) {
        // The text is the operating system's or the TLS library's.
        (ErrorKind::Io, _) => return error.into(),
        // These errors quote the received bytes, which may be a payload.
        (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => {
            return "the answer could not be parsed".into();
        }
        (_, Some(code)) => format!("{code}: {}", error.detail().unwrap_or_default()),
        (_, None) => error.to_string(),
    };
    // A server quotes the arguments of an unknown command, and the key is among them.
    text.split(", with args").next().unwrap_or_default().into()
}
