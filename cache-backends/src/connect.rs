use std::sync::Arc;

use session_core::DynCache;

use crate::Inspect;

/// Why no cache could be made from a URL or from a builder. Shows no URL, because passwords are in them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL begins with something that no cache is known for.
    #[error(
        "no cache is known for URLs that begin with {scheme:?}; known are redis, rediss, redis+unix, redis+cluster, \
         rediss+cluster, redis+sentinel, rediss+sentinel, the same with valkey, memcache and moka"
    )]
    UnknownScheme {
        /// What it begins with.
        scheme: String,
    },
    /// The cache is known, but this program was built without it.
    #[error("{scheme}:// needs the feature {feature:?} of cache-backends; enable it in Cargo.toml")]
    FeatureDisabled {
        /// What the URL begins with.
        scheme: String,
        /// The cargo feature to enable.
        feature: &'static str,
    },
    /// The URL or an option is wrong.
    #[error("the cache's configuration is invalid: {0}")]
    Config(String),
}

/// The cache that `url` names. Connects to nothing yet.
///
/// | URL | feature | options as parameters |
/// |---|---|---|
/// | `moka://` | `moka` | `max_bytes` |
/// | `redis://…`, `redis+unix://…` | `redis` | see `RedisCacheBuilder::url` |
/// | `redis+sentinel://host:port,host:port/service` | `redis` | the same |
/// | `rediss://…`, `rediss+sentinel://…` | `redis-tls` | the same |
/// | `redis+cluster://…` | `redis-cluster` | the same |
/// | `memcache://…` | `memcached` | see `MemcachedCacheBuilder::url` |
///
/// ```
/// # #[cfg(feature = "moka")] {
/// let cache = cache_backends::connect("moka://?max_bytes=33554432")?;
/// # }
/// # Ok::<(), cache_backends::ConnectError>(())
/// ```
///
/// # Errors
///
/// [`ConnectError`], which names the feature that is missing.
pub fn connect(url: &str) -> Result<Arc<dyn DynCache>, ConnectError> {
    let cache = connect_to_inspect(url)?;
    Ok(cache)
}

/// As [`connect`], for an operator's program: what comes back can also be [inspected](Inspect).
///
/// # Errors
///
/// As [`connect`].
pub fn connect_to_inspect(url: &str) -> Result<Arc<dyn Inspect>, ConnectError> {
    let Some((scheme, _)) = url.split_once("://") else {
        return Err(ConnectError::Config("a URL looks like redis://127.0.0.1:6379/".into()));
    };
    match scheme {
        #[cfg(feature = "moka")]
        "moka" => Ok(Arc::new(crate::moka::MokaCache::builder().read(crate::url::Url::parse(url)?)?.build())),
        #[cfg(feature = "memcached")]
        "memcache" | "memcached" => {
            Ok(Arc::new(crate::memcached::MemcachedCache::builder().url(url).build()?))
        }
        #[cfg(feature = "redis")]
        _ if feature_of(scheme).is_some_and(|feature| feature.starts_with("redis")) => {
            Ok(Arc::new(crate::redis::RedisCache::builder().url(url).build()?))
        }
        _ => Err(feature_of(scheme).map_or_else(
            || ConnectError::UnknownScheme { scheme: scheme.into() },
            |feature| ConnectError::FeatureDisabled { scheme: scheme.into(), feature },
        )),
    }
}

/// The cargo feature that URLs with this beginning need.
fn feature_of(scheme: &str) -> Option<&'static str> {
    match scheme.replacen("valkey", "redis", 1).as_str() {
        "moka" => Some("moka"),
        "memcache" | "memcached" => Some("memcached"),
        "redis" | "redis+unix" | "redis+sentinel" => Some("redis"),
        "rediss" | "rediss+sentinel" => Some("redis-tls"),
        "redis+cluster" | "rediss+cluster" => Some("redis-cluster"),
        _ => None,
    }
}
