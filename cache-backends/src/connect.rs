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
/// | `near+redis://…`, and `near+` before every other URL of Redis | `near`, and that of the other URL | `max_bytes` of memory, `freshness_bound_ms`, and those of the other URL |
/// | `notified+moka://` | `near` | `max_bytes`, `freshness_bound_ms` |
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
    if let Some(shared) = url.strip_prefix("near+") {
        return connect_near(shared);
    }
    if let Some(memory) = url.strip_prefix("notified+") {
        return connect_notified(memory);
    }
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

/// Creates memory that the database tells of changes.
#[cfg(feature = "near")]
fn connect_notified(url: &str) -> Result<Arc<dyn Inspect>, ConnectError> {
    use crate::url;

    let parsed = Url::parse(url)?;
    check_notified(parsed)?;
    let mut memory = crate::moka::MokaCache::builder();
    let mut bound = None;
    for (name, value) in parsed.parameters() {
        match name {
            "max_bytes" => memory = memory.max_bytes(url::number(name, value)?),
            "freshness_bound_ms" => bound = Some(url::millis(name, value)?),
            _ => return Err(parsed.unknown_parameter("max_bytes, freshness_bound_ms")),
        }
    }
    let cache = crate::near::notified(memory.read(parsed.without_parameters())?.build());
    Ok(Arc::new(match bound {
        Some(bound) => cache.with_freshness_bound(bound),
        None => cache,
    }))
}

#[cfg(not(feature = "near"))]
fn connect_notified(url: &str) -> Result<Arc<dyn Inspect>, ConnectError> {
    check_notified(Url::parse(url)?)?;
    Err(ConnectError::FeatureDisabled { scheme: "notified+moka".into(), feature: "near" })
}

/// Refuses what is no memory of this process.
fn check_notified(url: Url<'_>) -> Result<(), ConnectError> {
    if url.scheme == "moka" {
        return Ok(());
    }
    Err(ConnectError::Config(
        "notified+ is for moka://, which the database tells of changes; near+ is for a cache that processes share".into(),
    ))
}

/// Creates a near cache in front of the cache that `url` names, which has the options of both.
#[cfg(all(feature = "near", feature = "redis"))]
fn connect_near(url: &str) -> Result<Arc<dyn Inspect>, ConnectError> {
    use crate::url;
    use session_core::NoticeSource as _;

    let parsed = Url::parse(url)?;
    check_near(parsed)?;
    let mut memory = crate::moka::MokaCache::builder();
    let mut bound = None;
    let mut rest = url.split('?').next().unwrap_or_default().to_owned();
    for (name, value) in parsed.parameters() {
        match name {
            "max_bytes" => memory = memory.max_bytes(url::number(name, value)?),
            "freshness_bound_ms" => bound = Some(url::millis(name, value)?),
            _ => {
                rest.push(if rest.contains('?') { '&' } else { '?' });
                rest.push_str(name);
                rest.push('=');
                rest.push_str(value);
            }
        }
    }
    let shared = crate::redis::RedisCache::builder().url(rest).build()?;
    if let Some(refusal) = shared.refusal() {
        return Err(ConnectError::Config(refusal.into()));
    }
    let near = crate::near::near(memory.build(), shared);
    Ok(Arc::new(match bound {
        Some(bound) => near.with_freshness_bound(bound),
        None => near,
    }))
}

#[cfg(not(all(feature = "near", feature = "redis")))]
fn connect_near(url: &str) -> Result<Arc<dyn Inspect>, ConnectError> {
    let parsed = Url::parse(url)?;
    check_near(parsed)?;
    let feature = if cfg!(feature = "near") { "redis" } else { "near" };
    Err(ConnectError::FeatureDisabled { scheme: format!("near+{}", parsed.scheme), feature })
}

/// Refuses what cannot report changes.
fn check_near(url: Url<'_>) -> Result<(), ConnectError> {
    match scheme::feature_of(url.scheme) {
        Some("redis" | "redis-tls" | "redis-cluster") => Ok(()),
        Some("moka") => {
            Err(ConnectError::Config("near+ is for a cache that processes share; moka is in this one".into()))
        }
        Some(_) => Err(ConnectError::Config(format!(
            "{}:// cannot have near+ before it: its server reports no changes; Redis and Valkey do",
            url.scheme
        ))),
        None => Err(ConnectError::UnknownScheme { scheme: format!("near+{}", url.scheme) }),
    }
}
