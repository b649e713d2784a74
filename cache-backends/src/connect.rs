/// Why no cache could be made from a URL or from a builder. Shows no URL, because passwords are in them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL begins with something that no cache is known for.
    #[error(
        "no cache is known for URLs that begin with {scheme:?}; known are redis, rediss, redis+unix, redis+cluster, \
         rediss+cluster, valkey, valkeys, valkey+unix, memcache and moka"
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
