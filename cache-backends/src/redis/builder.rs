use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::ready;
use percent_encoding::percent_decode_str;
#[cfg(feature = "redis-cluster")]
use redis::ConnectionAddr;
use redis::aio::ConnectionLike;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{ConnectionInfo, IntoConnectionInfo, RedisError};
use session_core::BoxError;

use super::RedisCache;
#[cfg(feature = "redis-tls")]
use super::connect::Certificates;
#[cfg(feature = "redis-cluster")]
use super::connect::Cluster;
use super::connect::{
    ApplicationConnection, Connection, Connector, Lines, MakeConnection, Part, Sentinels, Server, Servers,
};
use super::credentials::{self, Provider, RedisCredentials};
use super::notices::Channels;
use crate::url::{self, Url};
use crate::{ConnectError, scheme};

/// A builder of a [`RedisCache`].
// The setters of key prefix and timeouts stand in both caches' builders, because what their documentation says differs.
#[derive(Clone)]
#[must_use]
pub struct RedisCacheBuilder {
    source: Source,
    key_prefix: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    sentinel_username: Option<String>,
    sentinel_password: Option<String>,
    credentials: Option<Provider>,
    #[cfg(feature = "redis-tls")]
    certificates: Certificates,
}

#[derive(Clone)]
enum Source {
    Url(String),
    Connection(Arc<dyn ApplicationConnection>),
}

/// The role of a URL's hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hosts {
    Server,
    Cluster,
    Sentinels,
}

/// The time after which TCP notices that a server has vanished.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why changes cannot be reported.
const NOT_BY_CONNECTION: &str = "a connection of the application's cannot report changes to a near cache; name the \
     server by a URL";

impl RedisCacheBuilder {
    pub(super) fn new() -> Self {
        Self {
            source: Source::Url("redis://127.0.0.1:6379/".into()),
            key_prefix: "session:".into(),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_millis(500),
            sentinel_username: None,
            sentinel_password: None,
            credentials: None,
            #[cfg(feature = "redis-tls")]
            certificates: Certificates::default(),
        }
    }

    /// Sets the URL of the server. Defaults to `redis://127.0.0.1:6379/`.
    ///
    /// | URL | |
    /// |---|---|
    /// | `redis://[user:password@]host[:port]/[database]` | TCP |
    /// | `rediss://…` | TLS; needs the feature `redis-tls` |
    /// | `redis+unix:///path/to/socket[?db=1&user=…&pass=…]` | Unix socket |
    /// | `redis+cluster://[user:password@]host:port,host:port/` | cluster; needs the feature `redis-cluster` |
    /// | `rediss+cluster://…` | cluster with TLS; needs both |
    /// | `redis+sentinel://[user:password@]host[:port],host[:port]/service[/database]` | the master that Redis Sentinel monitors as `service` |
    /// | `rediss+sentinel://…` | the same with TLS, to the sentinels and to the master; needs the feature `redis-tls` |
    ///
    /// The default port of sentinels is 26379. The user and the password before the `@` are those of the
    /// master.
    ///
    /// `valkey` may be written for `redis`. Percent-encode passwords. The other options can be parameters of
    /// the URL: `key_prefix`, `connect_timeout_ms`, `response_timeout_ms`, `sentinel_username`,
    /// `sentinel_password`, and, as paths of files, `password_file`, `root_certificates`, `client_certificate`
    /// and `client_key`. Parameters override the builder's methods.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.source = Source::Url(url.into());
        self
    }

    /// Uses a connection of the application's instead of a URL. It counts as one server.
    ///
    /// The connection must reconnect by itself, like the driver's `ConnectionManager`. It must not repeat
    /// commands by itself, so build a cluster's client with `retries(0)`.
    pub fn connection(mut self, connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        self.source = Source::Connection(Arc::new(connection));
        self
    }

    // `key_prefix`, `connect_timeout` and `response_timeout` stand in the builder for memcached, too: an option is a method of
    // its builder, with documentation and a default of its own.
    /// Sets the prefix of every key in Redis. Defaults to `session:`. Applications that share a server must
    /// have different prefixes: otherwise a session of the one is accepted by the other.
    pub fn key_prefix(mut self, key_prefix: impl Into<String>) -> Self {
        self.key_prefix = key_prefix.into();
        self
    }

    /// Sets the time limit for connecting. Defaults to 1 s.
    ///
    /// With Sentinel, it applies to three steps one after the other: the sentinels name the master, the cache
    /// connects to it, and it answers that it is one.
    pub const fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Sets the time limit for an answer. Defaults to 500 ms.
    pub const fn response_timeout(mut self, response_timeout: Duration) -> Self {
        self.response_timeout = response_timeout;
        self
    }

    /// Sets the user for the sentinels. Defaults to their default user. Needs
    /// [`sentinel_password`](Self::sentinel_password), too.
    pub fn sentinel_username(mut self, username: impl Into<String>) -> Self {
        self.sentinel_username = Some(username.into());
        self
    }

    /// Sets the password for the sentinels, which is separate from the master's. Defaults to none.
    pub fn sentinel_password(mut self, password: impl Into<String>) -> Self {
        self.sentinel_password = Some(password.into());
        self
    }

    /// Asks `provider` for the user and the password of each new connection, to masters and nodes of a cluster: for
    /// tokens and passwords that expire or are rotated. Defaults to those of the URL. `provider` has
    /// [`connect_timeout`](Self::connect_timeout) to answer.
    ///
    /// A connection that is open is not logged in again. The cache replaces it when the server demands a login, and
    /// before the credentials expire ([`RedisCredentials::with_valid_for`]).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use cache_backends::redis::{RedisCache, RedisCredentials};
    ///
    /// # async fn new_token() -> Result<String, std::io::Error> { Ok("token".into()) }
    /// let cache = RedisCache::builder()
    ///     .url("redis://10.0.0.1/")
    ///     .credentials(|| async {
    ///         let token = new_token().await?;
    ///         let credentials = RedisCredentials::new(token).with_username("sessions");
    ///         Ok::<_, std::io::Error>(credentials.with_valid_for(Duration::from_secs(12 * 60 * 60)))
    ///     })
    ///     .build()?;
    /// # Ok::<(), cache_backends::ConnectError>(())
    /// ```
    pub fn credentials<F, Fut, E>(mut self, provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<RedisCredentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.credentials = Some(credentials::provider(provider));
        self
    }

    /// Reads the password from this file for each new connection, so that a rotated one is used without a restart. A
    /// line break at its end is left out. Defaults to the password of the URL.
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials = Some(credentials::file(path.into()));
        self
    }

    /// Sets the certification authorities to trust, PEM-encoded. Defaults to the system's.
    #[cfg(feature = "redis-tls")]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.root = Some(pem.into());
        self
    }

    /// Sets the certificate of this client, and its key, both PEM-encoded. Defaults to none.
    #[cfg(feature = "redis-tls")]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificates.client = Some((certificate.into(), key.into()));
        self
    }

    /// Creates the cache. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// Returns [`ConnectError`] if the URL or an option is wrong, or needs a cargo feature that is disabled.
    pub fn build(mut self) -> Result<RedisCache, ConnectError> {
        let (servers, channels) = match self.source.clone() {
            Source::Url(url) => self.by_url(Url::parse(&url)?)?,
            Source::Connection(connection) => {
                self.check_options_for(Hosts::Server)?;
                if self.credentials.is_some() {
                    return Err(ConnectError::Config(
                        "credentials and password_file are for a URL; a connection has its own login".into(),
                    ));
                }
                let make = move || ready(Ok(Connection::Application(connection.clone()))).boxed();
                (self.one(Box::new(make)), Channels::Refused(NOT_BY_CONNECTION))
            }
        };
        Ok(RedisCache::new(servers, channels, self.key_prefix))
    }

    fn one(&self, make: MakeConnection) -> Servers {
        Servers::one(make, self.response_timeout)
    }

    fn by_url(&mut self, url: Url<'_>) -> Result<(Servers, Channels), ConnectError> {
        let scheme = scheme::without_valkey(url.scheme);
        let (driver_scheme, hosts) = match scheme.as_str() {
            "redis+cluster" => ("redis", Hosts::Cluster),
            "rediss+cluster" => ("rediss", Hosts::Cluster),
            "redis+sentinel" => ("redis", Hosts::Sentinels),
            "rediss+sentinel" => ("rediss", Hosts::Sentinels),
            "redis" | "rediss" | "redis+unix" => (scheme.as_str(), Hosts::Server),
            _ => return Err(ConnectError::UnknownScheme { scheme: url.scheme.into() }),
        };
        let needs = [
            (driver_scheme == "rediss", cfg!(feature = "redis-tls"), "redis-tls"),
            (hosts == Hosts::Cluster, cfg!(feature = "redis-cluster"), "redis-cluster"),
        ];
        if let Some((_, _, feature)) = needs.into_iter().find(|(needed, enabled, _)| *needed && !enabled) {
            return Err(ConnectError::FeatureDisabled { scheme: url.scheme.into(), feature });
        }
        let query = self.take_parameters(url)?;
        self.check_options_for(hosts)?;
        if hosts == Hosts::Sentinels {
            let sentinels = Arc::new(self.sentinels(url, driver_scheme, &query)?);
            let servers = self.one(sentinels.make_connection());
            let make = move |take_push| {
                Arc::clone(&sentinels).connect(Some(take_push)).map(|master| master.map(Lines::one)).boxed()
            };
            return Ok((servers, Channels::By(Box::new(make))));
        }
        let credentials = credentials_of(url);
        let servers = url
            .hosts
            .split(',')
            .map(|host| info(&format!("{driver_scheme}://{credentials}{host}{}{query}", url.path)));
        let mut servers = servers.collect::<Result<Vec<_>, ConnectError>>()?;
        match (hosts, servers.pop()) {
            (Hosts::Server, Some(server)) if servers.is_empty() => {
                let (connector, info) = (self.connector()?, server.clone());
                let make = move |take_push| {
                    let (connector, info) = (connector.clone(), info.clone());
                    let connecting =
                        async move { connector.connect_to(info, Part::Master, Some(take_push)).await };
                    connecting.map(|login| login.map(|login| Lines::one(Connection::Server(login)))).boxed()
                };
                Ok((self.one(self.connects_to(server, Part::Master)?), Channels::By(Box::new(make))))
            }
            (Hosts::Cluster, Some(last)) => self.cluster(&servers, last),
            _ => Err(ConnectError::Config(
                "several hosts are a cluster, or sentinels: write redis+cluster:// or redis+sentinel://"
                    .into(),
            )),
        }
    }

    /// Refuses options that have no meaning for these hosts.
    fn check_options_for(&self, hosts: Hosts) -> Result<(), ConnectError> {
        match (&self.sentinel_username, &self.sentinel_password) {
            (None, None) => Ok(()),
            _ if hosts != Hosts::Sentinels => Err(ConnectError::Config(
                "sentinel_username and sentinel_password are for redis+sentinel:// URLs".into(),
            )),
            (Some(_), None) => {
                Err(ConnectError::Config("sentinel_username needs a sentinel_password".into()))
            }
            (_, Some(_)) => Ok(()),
        }
    }

    /// Reads the parameters that are options of this builder. Returns the others for the driver, as a query
    /// string.
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
                "password_file" => self.credentials = Some(credentials::file(decoded().into())),
                "sentinel_username" => self.sentinel_username = Some(decoded()),
                "sentinel_password" => self.sentinel_password = Some(decoded()),
                "db" | "user" | "pass" if !url.scheme.ends_with("+unix") => {
                    return Err(ConnectError::Config(format!(
                        "db, user and pass are parameters of redis+unix:// URLs; {}:// has user and password before the \
                         hosts, and the database in the path",
                        url.scheme
                    )));
                }
                "db" | "user" | "pass" | "protocol" => {
                    query.push(if query.is_empty() { '?' } else { '&' });
                    query.push_str(name);
                    query.push('=');
                    query.push_str(value);
                }
                _ => {
                    return Err(url.unknown_parameter(
                        "key_prefix, connect_timeout_ms, response_timeout_ms, password_file, sentinel_username, \
                         sentinel_password, root_certificates, client_certificate, client_key, db, user, pass and protocol",
                    ));
                }
            }
        }
        Ok(query)
    }

    fn connector(&self) -> Result<Connector, ConnectError> {
        Ok(Connector {
            connect_timeout: self.connect_timeout,
            credentials: self.credentials.clone(),
            #[cfg(feature = "redis-tls")]
            certificates: self.certificates.for_driver()?,
        })
    }

    /// Returns the function that connects to one server.
    fn connects_to(&self, server: ConnectionInfo, part: Part) -> Result<MakeConnection, ConnectError> {
        let connector = self.connector()?;
        // Refuse wrong options now, and not at the first call.
        connector.client(server.clone()).map_err(invalid)?;
        Ok(Box::new(move || {
            let (connector, server) = (connector.clone(), server.clone());
            async move { connector.connect_to(server, part, None).await.map(Connection::Server) }.boxed()
        }))
    }

    fn sentinels(&self, url: Url<'_>, driver_scheme: &str, query: &str) -> Result<Sentinels, ConnectError> {
        let path = url.path.trim_start_matches('/');
        let (service, database) = path.split_once('/').unwrap_or((path, ""));
        if service.is_empty() || service.contains('#') {
            return Err(ConnectError::Config(format!(
                "a {0}:// URL ends with the name that the sentinels monitor the master under: \
                 {0}://127.0.0.1:26379/mymaster",
                url.scheme
            )));
        }
        let mut sentinels = Vec::new();
        for host in url.hosts.split(',') {
            let port = if has_port(host) { "" } else { ":26379" };
            let mut sentinel = info(&format!("{driver_scheme}://{host}{port}/"))?;
            let mut login = sentinel.redis_settings().clone();
            if let Some(username) = &self.sentinel_username {
                login = login.set_username(username);
            }
            if let Some(password) = &self.sentinel_password {
                login = login.set_password(password);
            }
            sentinel = sentinel.set_redis_settings(login);
            let address = sentinel.addr().to_string();
            sentinels.push((
                address,
                Server::new(self.connects_to(sentinel, Part::Sentinel)?, self.response_timeout),
            ));
        }
        // The sentinels name the address. This one is a placeholder, so that the driver checks the other
        // parts.
        let credentials = credentials_of(url);
        let info = info(&format!("{driver_scheme}://{credentials}127.0.0.1/{database}{query}"))?;
        let service = percent_decode_str(service).decode_utf8_lossy().into_owned();
        Ok(Sentinels { service, sentinels, connector: self.connector()?, info })
    }

    #[cfg(feature = "redis-cluster")]
    fn cluster(
        &self,
        others: &[ConnectionInfo],
        server: ConnectionInfo,
    ) -> Result<(Servers, Channels), ConnectError> {
        let seeds = others.iter().chain([&server]).filter_map(|server| match server.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some((host.clone(), *port))
            }
            _ => None,
        });
        let seeds = seeds.collect();
        let cluster = Arc::new(Cluster::new(seeds, server, self.connector()?, self.response_timeout));
        let servers = Servers::Cluster(Arc::clone(&cluster));
        let make = move |take_push| {
            let cluster = Arc::clone(&cluster);
            async move { cluster.connect_to_all(take_push).await.map(Lines::of_cluster) }.boxed()
        };
        Ok((servers, Channels::By(Box::new(make))))
    }

    #[cfg(not(feature = "redis-cluster"))]
    fn cluster(&self, _: &[ConnectionInfo], _: ConnectionInfo) -> Result<(Servers, Channels), ConnectError> {
        Err(ConnectError::FeatureDisabled { scheme: "redis+cluster".into(), feature: "redis-cluster" })
    }
}

/// Returns the server of a URL in the driver's form.
fn info(url: &str) -> Result<ConnectionInfo, ConnectError> {
    Ok(url.into_connection_info().map_err(invalid)?.set_tcp_settings(tcp_settings()))
}

/// Returns the credentials as they stand before the host.
fn credentials_of(url: Url<'_>) -> String {
    url.credentials.map(|credentials| format!("{credentials}@")).unwrap_or_default()
}

/// Returns `true` if a port follows the host, which may be an IPv6 address in brackets.
fn has_port(host: &str) -> bool {
    host.rsplit(']').next().is_some_and(|rest| rest.contains(':'))
}

impl fmt::Debug for RedisCacheBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Do not show the URL, because it may contain a password.
        f.debug_struct("RedisCacheBuilder")
            .field("key_prefix", &self.key_prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .finish_non_exhaustive()
    }
}

fn tcp_settings() -> TcpSettings {
    // Send each command at once instead of waiting for more to send: commands are small, and a caller waits
    // for each.
    let settings = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(TCP_TIMEOUT).with_interval(TCP_TIMEOUT / 5));
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(TCP_TIMEOUT);
    settings
}

#[cfg(feature = "redis-tls")]
fn file(name: &str, path: &str) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path)
        .map_err(|error| ConnectError::Config(format!("{name}: {path} cannot be read: {error}")))
}

/// Passes on the driver's error about a URL, which quotes neither the URL nor the password.
#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
fn invalid(error: RedisError) -> ConnectError {
    ConnectError::Config(error.to_string())
}
