//! The report on servers for an operator.

use cache_backends::connect_to_inspect;
use session_core::{CacheError, Timestamp};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

/// Starts a server that answers `stats` and `stats settings` with these texts.
async fn answering(stats: &'static str, settings: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let answer = if line == "stats settings" { settings } else { stats };
                write.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    address
}

#[tokio::test]
async fn inspect_reports_version_clock_memory_and_eviction_of_each_server() {
    let stats = "STAT version 1.6.38\r\nSTAT time 1800000000\r\nSTAT bytes 1000\r\nSTAT limit_maxbytes 2000\r\n\
                 STAT evictions 7\r\nEND\r\n";
    let one = answering(stats, "STAT evictions on\r\nEND\r\n").await;
    let other = answering(stats, "STAT evictions off\r\nEND\r\n").await;
    let cache = connect_to_inspect(&format!("memcache://{one},{other}")).unwrap();
    let mut servers = cache.inspect().await.unwrap();
    servers.sort_by_key(|server| server.eviction.clone());
    let evictions: Vec<_> = servers.iter().map(|server| server.eviction.as_deref().unwrap()).collect();
    assert_eq!(evictions, ["lru", "none"]);
    assert_eq!(servers[0].address.as_deref(), Some(one.as_str()));
    for server in servers {
        assert_eq!(server.version.as_deref(), Some("memcached 1.6.38"));
        assert_eq!(server.clock, Some(Timestamp::from_secs(1_800_000_000)));
        assert_eq!((server.used_bytes, server.max_bytes, server.evicted), (Some(1000), Some(2000), Some(7)));
    }
}

#[tokio::test]
async fn inspect_fails_for_a_server_that_refuses_is_silent_or_is_down() {
    let refusing = answering("ERROR\r\n", "ERROR\r\n").await;
    let error = connect_to_inspect(&format!("memcache://{refusing}")).unwrap().inspect().await.unwrap_err();
    assert!(matches!(error, CacheError::Refused(_)), "{error:?}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let cache = connect_to_inspect(&format!("memcache://{silent}?connect_timeout_ms=50")).unwrap();
    let error = cache.inspect().await.unwrap_err();
    assert!(matches!(error, CacheError::Unavailable(_)), "{error:?}");
    drop(listener);
    let error = cache.inspect().await.unwrap_err();
    assert!(matches!(error, CacheError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn inspect_judges_the_version_of_each_server() {
    for (stats, is_too_old) in [
        ("STAT version 1.6.18\r\nEND\r\n", true),
        ("STAT version 1.5.99\r\nEND\r\n", true),
        ("STAT version 1.6.27\r\nEND\r\n", false),
        ("STAT version 1.10.0\r\nEND\r\n", false),
        ("STAT version 1.6.27_3_gabc\r\nEND\r\n", false),
        ("STAT version 2\r\nEND\r\n", false),
    ] {
        let address = answering(stats, "END\r\n").await;
        let servers = connect_to_inspect(&format!("memcache://{address}")).unwrap().inspect().await.unwrap();
        assert_eq!(servers[0].needed_version.is_some(), is_too_old, "{stats}");
    }
}
