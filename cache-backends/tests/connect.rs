//! Creating caches by URL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use cache_backends::{ConnectError, connect};

/// URLs, the feature that each needs, and whether the features are enabled.
const KNOWN: [(&str, &str, bool); 13] = [
    ("moka://?max_bytes=1000000", "moka", cfg!(feature = "moka")),
    ("memcache://a,b:11212", "memcached", cfg!(feature = "memcached")),
    ("redis://127.0.0.1/", "redis", cfg!(feature = "redis")),
    ("valkey://user:s3cr3t@host:7000/1?key_prefix=a:", "redis", cfg!(feature = "redis")),
    ("redis+unix:///run/redis.sock?db=1", "redis", cfg!(feature = "redis")),
    ("redis+sentinel://:s3cr3t@a:26379,b/mymaster", "redis", cfg!(feature = "redis")),
    ("valkey+sentinel://a/mymaster/1?sentinel_password=s3cr3t", "redis", cfg!(feature = "redis")),
    ("rediss+sentinel://:s3cr3t@a/mymaster", "redis-tls", cfg!(feature = "redis-tls")),
    ("rediss://:s3cr3t@host/", "redis-tls", cfg!(feature = "redis-tls")),
    ("valkeys://host/", "redis-tls", cfg!(feature = "redis-tls")),
    ("redis+cluster://:s3cr3t@a:7000,b:7000/", "redis-cluster", cfg!(feature = "redis-cluster")),
    ("valkey+cluster://a/", "redis-cluster", cfg!(feature = "redis-cluster")),
    (
        "rediss+cluster://a/",
        if cfg!(feature = "redis-cluster") { "redis-tls" } else { "redis-cluster" },
        cfg!(all(feature = "redis-tls", feature = "redis-cluster")),
    ),
];

#[test]
fn url_creates_its_cache_or_the_error_names_the_missing_feature() {
    for (url, feature, enabled) in KNOWN {
        match connect(url) {
            Ok(cache) => {
                assert!(enabled, "{url} needs {feature}");
                let shown = format!("{cache:?} {:?}", cache.properties_dyn());
                assert!(!shown.contains("s3cr3t"), "{shown}");
            }
            Err(error) => {
                assert!(!enabled, "{url}: {error}");
                let ConnectError::FeatureDisabled { scheme, feature: needed } = &error else {
                    panic!("{error}")
                };
                assert!(url.starts_with(scheme));
                assert!(error.to_string().contains(&format!("{needed:?}")), "{error}");
                // If two features are missing, the error names one of them.
                assert!(*needed == feature || *needed == "redis-tls", "{url} needs {feature}: {error}");
                assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
            }
        }
    }
}

#[test]
fn unknown_scheme_is_refused_without_showing_the_url() {
    let error = connect("mongodb://user:s3cr3t@host/").unwrap_err();
    assert_eq!(error, ConnectError::UnknownScheme { scheme: "mongodb".into() });
    assert!(error.to_string().contains("mongodb"), "{error}");
    assert!(!error.to_string().contains("s3cr3t"), "{error}");
    assert!(matches!(connect("redis").unwrap_err(), ConnectError::Config(_)));
}

#[test]
fn error_of_an_unknown_scheme_lists_every_known_one() {
    let error = connect("mongodb://host/").unwrap_err().to_string();
    for (url, ..) in KNOWN.iter().filter(|(url, ..)| !url.starts_with("valkey")) {
        let scheme = url.split("://").next().unwrap();
        assert!(error.contains(scheme), "{error} does not list {scheme}");
    }
    assert!(error.contains("valkey"), "{error}");
}

#[cfg(all(feature = "near", feature = "redis"))]
#[test]
fn near_url_has_the_options_of_both_caches() {
    for url in [
        "near+redis://:s3cr3t@host/?max_bytes=1000000&key_prefix=a:&freshness_bound_ms=50",
        "near+valkey://host/",
        "near+redis+sentinel://:s3cr3t@a,b/mymaster",
        #[cfg(feature = "redis-cluster")]
        "near+redis+cluster://a,b/",
    ] {
        let cache = connect(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        let bound = cache.near_dyn().expect("a near cache").freshness_bound().as_millis();
        assert_eq!(bound, if url.contains("bound") { 50 } else { 100 });
        assert_eq!(cache.properties_dyn().name, "redis");
        assert!(!format!("{cache:?}").contains("s3cr3t"));
    }
    for (url, reason) in [
        ("near+redis://host/?freshness_bound_ms=soon", "whole number"),
        ("near+redis://host/?max_byte=1", "unknown parameter"),
        ("near+memcache://host/", "reports no changes"),
        ("near+moka://", "in this one"),
    ] {
        let error = connect(url).unwrap_err();
        assert!(matches!(&error, ConnectError::Config(text) if text.contains(reason)), "{url}: {error}");
    }
    let error = connect("near+mongodb://host/").unwrap_err();
    assert_eq!(error, ConnectError::UnknownScheme { scheme: "near+mongodb".into() });
}

#[cfg(not(feature = "near"))]
#[test]
fn near_url_names_the_missing_feature() {
    let error = connect("near+redis://host/").unwrap_err();
    assert_eq!(error, ConnectError::FeatureDisabled { scheme: "near+redis".into(), feature: "near" });
}

#[cfg(feature = "moka")]
#[test]
fn moka_url_has_parameters_only() {
    assert_eq!(connect("moka://?max_bytes=1000000").unwrap().properties_dyn().max_entry_bytes, 1_000_000);
    assert_eq!(connect("moka://").unwrap().properties_dyn().max_entry_bytes, 64 << 20);
    for url in ["moka://host", "moka:///path", "moka://?max_bytes=much", "moka://?max=1"] {
        assert!(matches!(connect(url), Err(ConnectError::Config(_))), "{url}");
    }
}

#[cfg(feature = "moka")]
#[tokio::test]
async fn inspect_of_moka_reports_no_server() {
    assert_eq!(cache_backends::connect_to_inspect("moka://").unwrap().inspect().await.unwrap(), []);
}
