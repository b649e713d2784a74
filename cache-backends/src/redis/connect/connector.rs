//! Connecting to a server.

use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "redis-tls")]
use redis::TlsCertificates;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ProtocolVersion, PushInfo, RedisError,
    RedisResult,
};
use session_core::BoxError;
use tokio::time::timeout;

use super::greeting::{self, Part};
use crate::redis::credentials::{Provider, RedisCredentials};
use crate::redis::error::NotConnected;

/// The number of commands that may wait to be written. Further callers wait.
const QUEUE: usize = 1024;

/// A function that takes a connection's push messages, while it is read from.
pub(in crate::redis) type TakePush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// The options for connecting to servers.
#[derive(Clone)]
pub(in crate::redis) struct Connector {
    pub(in crate::redis) connect_timeout: Duration,
    /// Asked for the credentials of each new connection, if they are not those of the connection info.
    pub(in crate::redis) credentials: Option<Provider>,
    #[cfg(feature = "redis-tls")]
    pub(in crate::redis) certificates: TlsCertificates,
}

impl Connector {
    /// Creates the driver's client of a server, which connects to nothing yet.
    pub(in crate::redis) fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        #[cfg(feature = "redis-tls")]
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::build_with_tls(info, self.certificates.clone());
        }
        Client::open(info)
    }

    /// Connects to the server of `info`, if it can play this `part`. With `take_push`, by RESP3.
    pub(in crate::redis) async fn connect_to(
        &self,
        info: ConnectionInfo,
        part: Part,
        take_push: Option<TakePush>,
    ) -> Result<Login, NotConnected> {
        #[cfg(feature = "redis-tls")]
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            super::tls::install_crypto_provider();
        }
        let (info, renew_at) = match &self.credentials {
            Some(provider) if part != Part::Sentinel => self.with_credentials(info, provider).await?,
            _ => (info, None),
        };
        let info = match take_push {
            Some(_) => {
                let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
                info.set_redis_settings(settings)
            }
            None => info,
        };
        let address = info.addr().to_string();
        let client = self.client(info).map_err(|error| NotConnected::driver(&address, error))?;
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // `Server` limits the wait for a reply, for connections of the application, too.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        if let Some(take_push) = take_push {
            config = config.set_push_sender(move |push| {
                take_push(push);
                Ok::<(), ()>(())
            });
        }
        let connecting = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let greeting = greeting::ask(&mut connection, part).await?;
            Ok((connection, greeting))
        };
        let (connection, greeting) = within(self.connect_timeout, address.clone(), connecting).await?;
        greeting.check(part, &address)?;
        Ok(Login { connection, renew_at })
    }

    /// Returns `info` with the provider's credentials, and when the connection is to be replaced.
    async fn with_credentials(
        &self,
        info: ConnectionInfo,
        provider: &Provider,
    ) -> Result<(ConnectionInfo, Option<Instant>), NotConnected> {
        let asked = timeout(self.connect_timeout, provider()).await;
        let credentials =
            asked.unwrap_or_else(|_| Err(Arc::from(BoxError::from("it did not answer in time"))));
        let RedisCredentials { username, password, valid_for } =
            credentials.map_err(NotConnected::Credentials)?;
        let mut settings = info.redis_settings().clone().set_password(password);
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        let renew_at = valid_for.and_then(|valid_for| Instant::now().checked_add(valid_for / 5 * 4));
        Ok((info.set_redis_settings(settings), renew_at))
    }
}

/// A connection to a server, after the login.
#[derive(Clone)]
pub(in crate::redis) struct Login {
    pub(in crate::redis) connection: MultiplexedConnection,
    /// The instant from which on another connection is to be made, with new credentials.
    renew_at: Option<Instant>,
}

impl Login {
    /// Returns `true` if the credentials will soon expire.
    pub(super) fn is_to_be_renewed(&self) -> bool {
        self.renew_at.is_some_and(|renew_at| Instant::now() >= renew_at)
    }
}

/// Returns `info` with another address.
pub(super) fn with_address(info: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let address = match info.addr() {
        ConnectionAddr::TcpTls { insecure, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: None }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.clone().set_addr(address)
}

/// Waits until `connecting` to `address` is done, but not longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    address: String,
    connecting: impl Future<Output = RedisResult<T>>,
) -> Result<T, NotConnected> {
    let connected = timeout(limit, connecting).await.unwrap_or_else(|_| Err(timed_out()));
    connected.map_err(|error| NotConnected::Driver { address, error })
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
