use std::sync::Arc;

use session_core::DynCache;

use crate::url::Url;
use crate::{ConnectError, Inspect, scheme};

/// Creates the cache that `url` names. Connects to nothing yet.
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
/// Returns [`ConnectError`] if the URL is wrong, or if it needs a cargo feature that is disabled, which the
/// error names.
pub fn connect(url: &str) -> Result<Arc<dyn DynCache>, ConnectError> {
    let cache = connect_to_inspect(url)?;
    Ok(cache)
}

/// Creates the cache that `url` names, for an operator's program: the cache can also be [inspected](Inspect).
///
/// # Errors
///
/// Returns the errors of [`connect`].
pub fn connect_to_inspect(url: &str) -> Result<Arc<dyn Inspect>, ConnectError> {
    let parsed = Url::parse(url)?;
    match scheme::feature_of(parsed.scheme) {
        #[cfg(feature = "moka")]
        Some("moka") => Ok(Arc::new(crate::moka::MokaCache::builder().read(parsed)?.build())),
        #[cfg(feature = "memcached")]
        Some("memcached") => Ok(Arc::new(crate::memcached::MemcachedCache::builder().url(url).build()?)),
        // Its builder says which of the other two features is disabled.
        #[cfg(feature = "redis")]
        Some("redis" | "redis-tls" | "redis-cluster") => {
            Ok(Arc::new(crate::redis::RedisCache::builder().url(url).build()?))
        }
        Some(feature) => Err(ConnectError::FeatureDisabled { scheme: parsed.scheme.into(), feature }),
        None => Err(ConnectError::UnknownScheme { scheme: parsed.scheme.into() }),
    }
}
