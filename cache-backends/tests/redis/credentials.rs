//! Passwords that expire or are rotated.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_backends::redis::{RedisCache, RedisCredentials};
use session_core::{Cache as _, CacheError};

use crate::key;
use crate::server::{Server, error, nil, ok, text};

/// A server with a password, which can be changed, and which a test can log everyone out of.
struct Guarded {
    server: Server,
    password: Arc<Mutex<&'static str>>,
    logins: Arc<Mutex<Vec<Vec<String>>>>,
    refusals: Arc<AtomicUsize>,
}

impl Guarded {
    async fn start(password: &'static str) -> Self {
        let password = Arc::new(Mutex::new(password));
        let (logins, refusals) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicUsize>::default());
        let (wanted, seen, left) = (Arc::clone(&password), Arc::clone(&logins), Arc::clone(&refusals));
        let server = Server::start(move |command| match text(&command[0]).as_str() {
            "AUTH" => {
                let login: Vec<_> = command[1..].iter().map(|argument| text(argument)).collect();
                let is_right = login.last().unwrap() == *wanted.lock().unwrap();
                seen.lock().unwrap().push(login);
                if is_right { ok() } else { error("WRONGPASS invalid username-password pair") }
            }
            _ if left.load(Ordering::SeqCst) > 0 => {
                left.fetch_sub(1, Ordering::SeqCst);
                error("NOAUTH Authentication required.")
            }
            _ => nil(),
        })
        .await;
        Self { server, password, logins, refusals }
    }

    fn logins(&self) -> Vec<Vec<String>> {
        self.logins.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn provider_is_asked_for_each_new_connection() {
    let guarded = Guarded::start("first").await;
    let current = Arc::clone(&guarded.password);
    let cache = RedisCache::builder()
        .url(guarded.server.url())
        .credentials(move || {
            let password = *current.lock().unwrap();
            async move { Ok::<_, io::Error>(RedisCredentials::new(password).with_username("app")) }
        })
        .build()
        .unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(guarded.logins(), [["app", "first"]]);
    // The password changes, and the server demands a login on the open connection.
    *guarded.password.lock().unwrap() = "second";
    guarded.refusals.store(1, Ordering::SeqCst);
    assert!(matches!(cache.get(&key()).await, Err(CacheError::Unusable(_))));
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(guarded.logins(), [["app", "first"], ["app", "second"]]);
}

#[tokio::test]
async fn connection_is_replaced_before_its_credentials_expire() {
    let guarded = Guarded::start("token").await;
    let cache = RedisCache::builder()
        .url(guarded.server.url())
        .credentials(|| async {
            let credentials = RedisCredentials::new("token").with_valid_for(Duration::from_millis(250));
            Ok::<_, io::Error>(credentials)
        })
        .build()
        .unwrap();
    let begun = std::time::Instant::now();
    while guarded.logins().len() < 3 {
        assert_eq!(cache.get(&key()).await.unwrap(), None);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "the connection is not replaced");
    }
    assert!(begun.elapsed() >= Duration::from_millis(400), "it was replaced after {:?}", begun.elapsed());
}

#[tokio::test]
async fn provider_that_fails_or_hangs_makes_the_cache_unavailable() {
    let guarded = Guarded::start("token").await;
    let builder = || {
        let url = guarded.server.url();
        RedisCache::builder().url(url).connect_timeout(Duration::from_millis(50))
    };
    let failing = builder()
        .credentials(|| async { Err::<RedisCredentials, _>(io::Error::other("the vault is sealed")) })
        .build()
        .unwrap();
    let hanging = builder()
        .credentials(|| async {
            std::future::pending::<()>().await;
            Err::<RedisCredentials, _>(io::Error::other("never"))
        })
        .build()
        .unwrap();
    for (cache, reason) in [(failing, "the vault is sealed"), (hanging, "did not answer in time")] {
        let error = cache.get(&key()).await.unwrap_err();
        assert!(matches!(error, CacheError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_eq!(guarded.server.connections(), 0);
}

#[tokio::test]
async fn provider_that_panics_is_asked_again() {
    let guarded = Guarded::start("token").await;
    let asked = Arc::new(AtomicUsize::new(0));
    let cache = RedisCache::builder()
        .url(guarded.server.url())
        .credentials(move || {
            let first = asked.fetch_add(1, Ordering::SeqCst);
            assert!(first > 0, "in the function");
            async move {
                assert!(first > 1, "in its future");
                Ok::<_, io::Error>(RedisCredentials::new("token"))
            }
        })
        .build()
        .unwrap();
    for _ in 0..2 {
        let error = cache.get(&key()).await.unwrap_err();
        assert!(matches!(error, CacheError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("panicked"), "{error}");
    }
    assert_eq!(cache.get(&key()).await.unwrap(), None);
}

#[tokio::test]
async fn password_file_is_read_again_for_each_connection() {
    let directory = std::env::temp_dir().join(format!("cache-backends-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("password");
    std::fs::write(&file, "f/i@r:st\n").unwrap();
    let guarded = Guarded::start("f/i@r:st").await;
    let url = format!("{}?password_file={}", guarded.server.url(), file.display());
    let cache = RedisCache::builder().url(url).build().unwrap();
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    *guarded.password.lock().unwrap() = "second";
    std::fs::write(&file, "second").unwrap();
    guarded.refusals.store(1, Ordering::SeqCst);
    assert!(cache.get(&key()).await.is_err());
    assert_eq!(cache.get(&key()).await.unwrap(), None);
    assert_eq!(guarded.logins(), [["f/i@r:st"], ["second"]]);
    std::fs::remove_dir_all(&directory).unwrap();
    guarded.refusals.store(1, Ordering::SeqCst);
    assert!(cache.get(&key()).await.is_err());
    let error = cache.get(&key()).await.unwrap_err();
    assert!(
        matches!(error, CacheError::Unavailable(_)) && error.to_string().contains("password file"),
        "{error}"
    );
}

#[test]
fn credentials_show_no_password() {
    let credentials = RedisCredentials::new("s3cr3t").with_username("app");
    assert!(!format!("{credentials:?}").contains("s3cr3t"), "{credentials:?}");
    let builder =
        RedisCache::builder().credentials(|| async { Ok::<_, io::Error>(RedisCredentials::new("s3cr3t")) });
    assert!(!format!("{builder:?}").contains("s3cr3t"), "{builder:?}");
}

#[tokio::test]
async fn password_with_reserved_characters_is_sent_as_it_is() {
    let guarded = Guarded::start("p@:/?#[]% ü&=w").await;
    let encoded = "p%40%3A%2F%3F%23%5B%5D%25%20%C3%BC%26%3Dw";
    let url = format!("redis://us%40er:{encoded}@127.0.0.1:{}/", guarded.server.port);
    assert_eq!(RedisCache::builder().url(url).build().unwrap().get(&key()).await.unwrap(), None);
    assert_eq!(guarded.logins(), [["us@er", "p@:/?#[]% ü&=w"]]);
}
