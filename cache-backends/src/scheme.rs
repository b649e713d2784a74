//! The schemes of cache URLs.

/// Every scheme, and the cargo feature of this crate that it needs. It names the schemes of disabled
/// backends, too.
const SCHEMES: [(&str, &str); 10] = [
    ("redis", "redis"),
    ("rediss", "redis-tls"),
    ("redis+unix", "redis"),
    ("redis+cluster", "redis-cluster"),
    ("rediss+cluster", "redis-cluster"),
    ("redis+sentinel", "redis"),
    ("rediss+sentinel", "redis-tls"),
    ("memcache", "memcached"),
    ("memcached", "memcached"),
    ("moka", "moka"),
];

/// Returns `scheme` with `redis` for `valkey`, which means the same.
pub(crate) fn without_valkey(scheme: &str) -> String {
    scheme.replacen("valkey", "redis", 1)
}

/// Returns the cargo feature that URLs with this scheme need, or `None` if no cache has the scheme.
pub(crate) fn feature_of(scheme: &str) -> Option<&'static str> {
    let scheme = without_valkey(scheme);
    SCHEMES.iter().find(|(known, _)| *known == scheme).map(|(_, feature)| *feature)
}

/// Returns every scheme, for an error message.
pub(crate) fn known() -> String {
    let known = SCHEMES.map(|(scheme, _)| scheme).join(", ");
    format!("{known}, near+ before one of redis, notified+ before moka")
}
