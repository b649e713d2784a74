//! Connecting to one server.

use std::time::Duration;

#[cfg(feature = "redis-tls")]
use redis::TlsCertificates;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisError, RedisResult};
use tokio::time::timeout;

use super::error::NotConnected;

/// How many commands may wait to be written; further callers wait.
const QUEUE: usize = 1024;

/// How servers are connected to.
#[derive(Clone)]
pub(super) struct Dial {
    pub(super) connect_timeout: Duration,
    #[cfg(feature = "redis-tls")]
    pub(super) certificates: TlsCertificates,
}

impl Dial {
    /// The client of a server, which connects to nothing yet.
    pub(super) fn client(&self, server: ConnectionInfo) -> RedisResult<Client> {
        #[cfg(feature = "redis-tls")]
        if matches!(server.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::build_with_tls(server, self.certificates.clone());
        }
        Client::open(server)
    }

    /// `server`, but at another address.
    pub(super) fn at(server: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
        let address = match server.addr() {
            ConnectionAddr::TcpTls { insecure, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: None }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        server.clone().set_addr(address)
    }

    pub(super) async fn connect_to(
        &self,
        server: ConnectionInfo,
    ) -> Result<MultiplexedConnection, NotConnected> {
        let name = server.addr().to_string();
        let client = self.client(server).map_err(|error| NotConnected::driver(&name, error))?;
        self.connect(&client).await
    }

    pub(super) async fn connect(&self, client: &Client) -> Result<MultiplexedConnection, NotConnected> {
        #[cfg(feature = "redis-tls")]
        if matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. }) {
            super::tls::choose_cryptography();
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // The link waits no longer, whoever made the connection.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let address = client.get_connection_info().addr().to_string();
        within(self.connect_timeout, address, client.get_multiplexed_async_connection_with_config(&config))
            .await
    }
}

/// Waits until it is connected to `address`, but not longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    address: String,
    connecting: impl Future<Output = RedisResult<T>>,
) -> Result<T, NotConnected> {
    let connected = timeout(limit, connecting).await.unwrap_or_else(|_| Err(too_slow()));
    connected.map_err(|error| NotConnected::Driver { address, error })
}

fn too_slow() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
