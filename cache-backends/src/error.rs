/// An error while creating a cache from a URL or from a builder. Shows no URL, because it may contain a
/// password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No cache has URLs with this scheme.
    #[error(
        "no cache is known for URLs that begin with {scheme:?}; known are {}, and valkey for redis",
        crate::scheme::known()
    )]
    UnknownScheme {
        /// The scheme of the URL.
        scheme: String,
    },
    /// The cache is known, but this program was built without it.
    #[error("{scheme}:// needs the feature {feature:?} of cache-backends; enable it in Cargo.toml")]
    FeatureDisabled {
        /// The scheme of the URL.
        scheme: String,
        /// The cargo feature to enable.
        feature: &'static str,
    },
    /// The URL or an option is wrong.
    #[error("the cache's configuration is invalid: {0}")]
    Config(String),
}

/// An error with the address of its server.
#[cfg(feature = "_server")]
#[derive(Debug, thiserror::Error)]
#[error("{address}: {error}")]
pub(crate) struct At {
    pub(crate) address: String,
    #[source]
    pub(crate) error: session_core::BoxError,
}
