use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::ready;
use percent_encoding::percent_decode_str;
use redis::aio::ConnectionLike;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisError};

use super::RedisCache;
use super::link::{Connect, Connection, Given, Link};
#[cfg(feature = "redis-tls")]
use super::tls::Certificates;
use crate::ConnectError;
use crate::url::{self, Url};

/// Describes a [`RedisCache`].
#[derive(Clone)]
#[must_use]
pub struct RedisCacheBuilder {
    source: Source,
    key_prefix: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    #[cfg(feature = "redis-tls")]
    certificates: Certificates,
}

#[derive(Clone)]
enum Source {
    Url(String),
    Connection(Arc<dyn Given>),
}

/// How many commands may wait to be written; further callers wait.
const QUEUE: usize = 1024;

/// A server that has vanished without a word is noticed after this long.
const SILENCE: Duration = Duration::from_secs(10);

impl RedisCacheBuilder {
    pub(super) fn new() -> Self {
        Self {
            source: Source::Url("redis://127.0.0.1:6379/".into()),
            key_prefix: "session:".into(),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_millis(500),
            #[cfg(feature = "redis-tls")]
            certificates: Certificates::default(),
        }
    }

    /// Where the server is. Default `redis://127.0.0.1:6379/`.
    ///
    /// | URL | |
    /// |---|---|
    /// | `redis://[user:password@]host[:port]/[database]` | TCP |
    /// | `rediss://…` | TLS; needs the feature `redis-tls` |
    /// | `redis+unix:///path/to/socket[?db=1&user=…&pass=…]` | Unix socket |
    /// | `redis+cluster://[user:password@]host:port,host:port/` | cluster; needs the feature `redis-cluster` |
    /// | `rediss+cluster://…` | cluster with TLS; needs both |
    ///
    /// `valkey` may be written for `redis`. Passwords are percent-encoded. The other options can be parameters:
    /// `key_prefix`, `connect_timeout_ms`, `response_timeout_ms`, and, as paths of files, `root_certificates`,
    /// `client_certificate` and `client_key`. They win over what the builder was told.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.source = Source::Url(url.into());
        self
    }

    /// Uses a connection that the application has, instead of a URL.
    ///
    /// It must reconnect by itself, like the driver's `ConnectionManager`, and must not repeat commands by itself, so a
    /// cluster's must come from a client built with `retries(0)`. This is also the way to a master that Sentinel names.
    pub fn connection(mut self, connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        self.source = Source::Connection(Arc::new(connection));
        self
    }

    /// What stands in front of every key in Redis. Default `session:`. Applications that share a Redis must have
    /// different ones: whoever holds a session of the one would be let into the other.
    pub fn key_prefix(mut self, key_prefix: impl Into<String>) -> Self {
        self.key_prefix = key_prefix.into();
        self
    }

    /// How long it may take to connect. Default 1 s.
    pub const fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// How long an answer may take. Default 500 ms.
    pub const fn response_timeout(mut self, response_timeout: Duration) -> Self {
        self.response_timeout = response_timeout;
        self
    }

    /// Trusts these certification authorities, PEM-encoded, instead of the system's.
    #[cfg(feature = "redis-tls")]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.root = Some(pem.into());
        self
    }

    /// Shows the server this certificate, with its key, both PEM-encoded.
    #[cfg(feature = "redis-tls")]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificates.client = Some((certificate.into(), key.into()));
        self
    }

    /// The cache. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] when the URL or an option is wrong, or needs a feature that is not enabled.
    pub fn build(mut self) -> Result<RedisCache, ConnectError> {
        let (connect, address): (Connect, _) = match self.source.clone() {
            Source::Url(url) => self.by_url(Url::parse(&url)?)?,
            Source::Connection(given) => {
                let connect = move || ready(Ok(Connection::Given(given.clone()))).boxed();
                (Box::new(connect), "the application's connection".to_owned())
            }
        };
        let link = Link::new(connect, address, self.connect_timeout, self.response_timeout);
        Ok(RedisCache::new(link, self.key_prefix))
    }

    fn by_url(&mut self, url: Url<'_>) -> Result<(Connect, String), ConnectError> {
        let scheme = url.scheme.replacen("valkey", "redis", 1);
        let (driver_scheme, cluster) = match scheme.as_str() {
            "redis+cluster" => ("redis", true),
            "rediss+cluster" => ("rediss", true),
            "redis" | "rediss" | "redis+unix" => (scheme.as_str(), false),
            _ => return Err(ConnectError::UnknownScheme { scheme: url.scheme.into() }),
        };
        let tls = driver_scheme == "rediss";
        let needs = [
            (tls, cfg!(feature = "redis-tls"), "redis-tls"),
            (cluster, cfg!(feature = "redis-cluster"), "redis-cluster"),
        ];
        if let Some((_, _, feature)) = needs.into_iter().find(|(needed, enabled, _)| *needed && !enabled) {
            return Err(ConnectError::FeatureDisabled { scheme: url.scheme.into(), feature });
        }
        let query = self.take_parameters(url)?;
        let credentials = url.credentials.map(|credentials| format!("{credentials}@")).unwrap_or_default();
        let servers = url.hosts.split(',').map(|host| {
            let url = format!("{driver_scheme}://{credentials}{host}{}{query}", url.path);
            let server = url.into_connection_info().map_err(invalid)?;
            Ok(server.set_tcp_settings(tcp_settings()))
        });
        let mut servers = servers.collect::<Result<Vec<_>, ConnectError>>()?;
        let address = servers.iter().map(|server| server.addr().to_string()).collect::<Vec<_>>().join(",");
        let connect = if cluster {
            self.cluster(servers, tls)?
        } else {
            match (servers.pop(), servers.is_empty()) {
                (Some(server), true) => self.server(server, tls)?,
                _ => {
                    return Err(ConnectError::Config(
                        "several hosts are a cluster: write redis+cluster://".into(),
                    ));
                }
            }
        };
        Ok((connect, address))
    }

    /// Takes the parameters that are this builder's own, and gives back the others for the driver.
    fn take_parameters(&mut self, url: Url<'_>) -> Result<String, ConnectError> {
        let mut query = String::new();
        for (name, value) in url.parameters() {
            let decoded = || percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "key_prefix" => self.key_prefix = decoded(),
                "connect_timeout_ms" => {
                    self.connect_timeout = url::millis(name, value)?;
                }
                "response_timeout_ms" => {
                    self.response_timeout = url::millis(name, value)?;
                }
                #[cfg(feature = "redis-tls")]
                "root_certificates" => self.certificates.root = Some(file(name, &decoded())?),
                #[cfg(feature = "redis-tls")]
                "client_certificate" => {
                    self.certificates.client.get_or_insert_default().0 = file(name, &decoded())?;
                }
                #[cfg(feature = "redis-tls")]
                "client_key" => self.certificates.client.get_or_insert_default().1 = file(name, &decoded())?,
                "db" | "user" | "pass" | "protocol" => {
                    query.push(if query.is_empty() { '?' } else { '&' });
                    query.push_str(name);
                    query.push('=');
                    query.push_str(value);
                }
                _ => {
                    return Err(url.unknown_parameter(
                        "key_prefix, connect_timeout_ms, response_timeout_ms, root_certificates, client_certificate, \
                         client_key, db, user, pass and protocol",
                    ));
                }
            }
        }
        Ok(query)
    }

    fn server(&self, server: ConnectionInfo, tls: bool) -> Result<Connect, ConnectError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // The link waits no longer, whoever made the connection.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        #[cfg(feature = "redis-tls")]
        let client = if tls {
            Client::build_with_tls(server, self.certificates.for_driver()?)
        } else {
            Client::open(server)
        };
        #[cfg(not(feature = "redis-tls"))]
        let client = Client::open(server);
        let client = client.map_err(invalid)?;
        Ok(Box::new(move || {
            let (client, config) = (client.clone(), config.clone());
            let connect = async move {
                prepare(tls);
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Server)
            };
            connect.boxed()
        }))
    }

    #[cfg(feature = "redis-cluster")]
    fn cluster(&self, servers: Vec<ConnectionInfo>, tls: bool) -> Result<Connect, ConnectError> {
        let builder = redis::cluster::ClusterClient::builder(servers)
            .retries(0)
            .connection_timeout(self.connect_timeout)
            .response_timeout(self.response_timeout)
            .tcp_settings(tcp_settings());
        #[cfg(feature = "redis-tls")]
        let builder = if tls { builder.certs(self.certificates.for_driver()?) } else { builder };
        let client = builder.build().map_err(invalid)?;
        Ok(Box::new(move || {
            let client = client.clone();
            let connect = async move {
                prepare(tls);
                client.get_async_connection().await.map(Connection::Cluster)
            };
            connect.boxed()
        }))
    }

    #[cfg(not(feature = "redis-cluster"))]
    fn cluster(&self, _: Vec<ConnectionInfo>, _: bool) -> Result<Connect, ConnectError> {
        Err(ConnectError::FeatureDisabled { scheme: "redis+cluster".into(), feature: "redis-cluster" })
    }
}

fn prepare(tls: bool) {
    #[cfg(feature = "redis-tls")]
    if tls {
        super::tls::choose_cryptography();
    }
    #[cfg(not(feature = "redis-tls"))]
    debug_assert!(!tls, "refused while the URL was read");
}

impl fmt::Debug for RedisCacheBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URL: a password may be in it.
        f.debug_struct("RedisCacheBuilder")
            .field("key_prefix", &self.key_prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .finish_non_exhaustive()
    }
}

fn tcp_settings() -> TcpSettings {
    // Commands are small and somebody waits for each, so none of them waits for more to send.
    let settings = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 5));
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(SILENCE);
    settings
}

#[cfg(feature = "redis-tls")]
fn file(name: &str, path: &str) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path)
        .map_err(|error| ConnectError::Config(format!("{name}: {path} cannot be read: {error}")))
}

/// The driver's words about a URL quote neither it nor the password.
#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
fn invalid(error: RedisError) -> ConnectError {
    ConnectError::Config(error.to_string())
}
