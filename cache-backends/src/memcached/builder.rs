use std::fmt;
use std::time::Duration;

use memcache::exp::{MetaClientBuilder, Router};
use percent_encoding::percent_decode_str;
use session_core::StoredKey;

use super::MemcachedCache;
use super::connect::{Server, Servers};
use crate::url::{self, Url};
use crate::{ConnectError, scheme};

/// A builder of a [`MemcachedCache`].
// The setters of key prefix and timeouts stand in both caches' builders, because what their documentation says differs.
#[derive(Clone)]
#[must_use]
pub struct MemcachedCacheBuilder {
    servers: Vec<String>,
    url: Option<String>,
    key_prefix: String,
    max_entry_bytes: usize,
    max_connections: usize,
    connect_timeout: Duration,
    response_timeout: Duration,
}

/// The longest key that memcached accepts, in bytes.
const MAX_KEY_LEN: usize = 250;

impl MemcachedCacheBuilder {
    pub(super) fn new() -> Self {
        Self {
            servers: vec!["127.0.0.1:11211".into()],
            url: None,
            key_prefix: "session:".into(),
            max_entry_bytes: (1 << 20) - (1 << 10),
            max_connections: 64,
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_millis(500),
        }
    }

    /// Sets the servers, each as a host with or without a port. Defaults to `127.0.0.1:11211`.
    ///
    /// Their order does not matter, but write each of them in the same way on every node: `localhost` and
    /// `127.0.0.1` are two servers.
    pub fn servers<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.servers = servers.into_iter().map(Into::into).collect();
        self.url = None;
        self
    }

    /// Sets the servers by a URL: `memcache://host:port,host:port`. The other options can be parameters of
    /// it: `key_prefix`, `max_entry_bytes`, `max_connections`, `connect_timeout_ms` and
    /// `response_timeout_ms`. Parameters override the builder's methods.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    // `key_prefix`, `connect_timeout` and `response_timeout` stand in the builder for Redis, too: an option is a method of its
    // builder, with documentation and a default of its own.
    /// Sets the prefix of every key in memcached. Defaults to `session:`. Applications that share a server
    /// must have different prefixes: otherwise a session of the one is accepted by the other.
    pub fn key_prefix(mut self, key_prefix: impl Into<String>) -> Self {
        self.key_prefix = key_prefix.into();
        self
    }

    /// Sets the largest entry that is cached, in bytes. Defaults to 1 MiB less 1 KiB, which a server with the
    /// default of `-I` accepts. Do not set more than the servers accept: a server that receives too large an
    /// item drops the item before.
    pub const fn max_entry_bytes(mut self, max_entry_bytes: usize) -> Self {
        self.max_entry_bytes = max_entry_bytes;
        self
    }

    /// Sets the largest number of connections to each server. Defaults to 64. Further callers wait for a
    /// connection, up to the connect timeout.
    pub const fn max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Sets the time limit for connecting. Defaults to 1 s.
    pub const fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Sets the time limit for an answer. Defaults to 500 ms.
    pub const fn response_timeout(mut self, response_timeout: Duration) -> Self {
        self.response_timeout = response_timeout;
        self
    }

    /// Creates the cache. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// Returns [`ConnectError`] if the URL or an option is wrong.
    pub fn build(mut self) -> Result<MemcachedCache, ConnectError> {
        if let Some(url) = self.url.take() {
            self.read(Url::parse(&url)?)?;
        }
        let longest = MAX_KEY_LEN - StoredKey::MAX_LEN;
        if self.key_prefix.len() > longest || !self.key_prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = format!("key_prefix has at most {longest} printable ASCII characters and no space");
            return Err(ConnectError::Config(text));
        }
        if self.max_connections == 0 {
            return Err(ConnectError::Config("max_connections must not be 0".into()));
        }
        let settings = MetaClientBuilder::new()
            .router(SingleServer)
            .max_connections(Some(self.max_connections))
            .max_idle(self.max_connections)
            .connect_timeout(Some(self.connect_timeout))
            .io_timeout(Some(self.response_timeout));
        let mut servers = self
            .servers
            .iter()
            .map(|server| Ok(Server::new(with_port(server)?, settings.clone(), self.connect_timeout)));
        let Some(first) = servers.next() else {
            return Err(ConnectError::Config("servers must not be empty".into()));
        };
        let servers = Servers { first: first?, others: servers.collect::<Result<_, ConnectError>>()? };
        Ok(MemcachedCache::new(servers, self.key_prefix, self.max_entry_bytes))
    }
}

impl MemcachedCacheBuilder {
    fn read(&mut self, url: Url<'_>) -> Result<(), ConnectError> {
        if scheme::feature_of(url.scheme) != Some("memcached") {
            return Err(ConnectError::UnknownScheme { scheme: url.scheme.into() });
        }
        if url.credentials.is_some() || !matches!(url.path, "" | "/") {
            let text =
                "a memcache:// URL consists of hosts and ports; there are no passwords and no databases";
            return Err(ConnectError::Config(text.into()));
        }
        self.servers = url.hosts.split(',').map(str::to_owned).collect();
        for (name, value) in url.parameters() {
            match name {
                "key_prefix" => self.key_prefix = percent_decode_str(value).decode_utf8_lossy().into_owned(),
                "max_entry_bytes" => self.max_entry_bytes = url::number(name, value)?,
                "max_connections" => self.max_connections = url::number(name, value)?,
                "connect_timeout_ms" => self.connect_timeout = url::millis(name, value)?,
                "response_timeout_ms" => self.response_timeout = url::millis(name, value)?,
                _ => {
                    return Err(url.unknown_parameter(
                        "key_prefix, max_entry_bytes, max_connections, connect_timeout_ms and response_timeout_ms",
                    ));
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for MemcachedCacheBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Do not show the URL, because it may contain a password.
        f.debug_struct("MemcachedCacheBuilder")
            .field("key_prefix", &self.key_prefix)
            .field("max_entry_bytes", &self.max_entry_bytes)
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .finish_non_exhaustive()
    }
}

/// A router for the driver's clients, which have one server each. The driver's own router would hash every
/// key.
struct SingleServer;

impl Router for SingleServer {
    fn route(&self, _key: &[u8], _servers: &[String]) -> usize {
        0
    }
}

/// Adds the default port to `server` if it has none.
fn with_port(server: &str) -> Result<String, ConnectError> {
    let (host, port) = match server.rsplit_once(':') {
        // An IPv6 address ends with a bracket if it has no port. Without brackets, it is refused below.
        Some((host, port)) if !server.ends_with(']') => (host, Some(port)),
        _ => (server, None),
    };
    let valid = !host.is_empty() && port.is_none_or(|port| port.parse::<u16>().is_ok());
    if !valid || (host.contains(':') && !host.ends_with(']')) {
        let text = "a server is a host, or a host:port; an IPv6 address is in brackets";
        return Err(ConnectError::Config(text.into()));
    }
    Ok(format!("{host}:{}", port.unwrap_or("11211")))
}
