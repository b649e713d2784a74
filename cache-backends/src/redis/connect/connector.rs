//! Connecting to a server.

use std::time::Duration;

#[cfg(feature = "redis-tls")]
use redis::TlsCertificates;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisError, RedisResult};
use tokio::time::timeout;

use crate::redis::error::NotConnected;

/// The number of commands that may wait to be written. Further callers wait.
const QUEUE: usize = 1024;

/// The options for connecting to servers.
#[derive(Clone)]
pub(in crate::redis) struct Connector {
    pub(in crate::redis) connect_timeout: Duration,
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

    pub(super) async fn connect_to(
        &self,
        info: ConnectionInfo,
    ) -> Result<MultiplexedConnection, NotConnected> {
        let address = info.addr().to_string();
        let client = self.client(info).map_err(|error| NotConnected::driver(&address, error))?;
        self.connect(&client).await
    }

    pub(in crate::redis) async fn connect(
        &self,
        client: &Client,
    ) -> Result<MultiplexedConnection, NotConnected> {
        #[cfg(feature = "redis-tls")]
        if matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. }) {
            super::tls::install_crypto_provider();
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // `Server` limits the wait for a reply, for connections of the application, too.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let address = client.get_connection_info().addr().to_string();
        within(self.connect_timeout, address, client.get_multiplexed_async_connection_with_config(&config))
            .await
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
