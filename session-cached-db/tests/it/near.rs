//! The reports about a near cache.

use std::time::Duration;

use session_core::{CacheError, NearEvent};

use crate::common::{Log, TestCache, World, in_memory};

#[tokio::test]
async fn reports_of_no_session_are_counted_and_logged_at_a_bounded_rate() {
    let cache = TestCache::new().near(Duration::from_millis(100));
    let world = World::over(cache, in_memory().await, None, |builder| builder).await;
    let observer = world.cache.observer.lock().unwrap().clone().unwrap();
    let log = Log::listen();
    let report = || (0..500).for_each(|_| observer.note(NearEvent::Ignored));
    report();
    assert_eq!(world.store.stats().near_ignored, 500);
    assert_eq!(log.events("near_report_ignored").len(), 10);
    world.runtime.advance(Duration::from_secs(10));
    report();
    assert_eq!(world.store.stats().near_ignored, 1_000);
    let logged = log.events("near_report_ignored");
    assert_eq!(logged.len(), 20);
    assert!(logged[10].contains("suppressed=490"), "{}", logged[10]);
}

#[tokio::test]
async fn channel_that_cannot_be_opened_is_logged_once_until_one_is_open() {
    let cache = TestCache::new().near(Duration::from_millis(100));
    let world = World::over(cache, in_memory().await, None, |builder| builder).await;
    let observer = world.cache.observer.lock().unwrap().clone().unwrap();
    let log = Log::listen();
    let forbidden = CacheError::Unusable("the user may not track keys; grant it +client|tracking".into());
    for _ in 0..3 {
        for _ in 0..100 {
            observer.note(NearEvent::NotOpened(&forbidden));
        }
        observer.note(NearEvent::Opened);
        observer.note(NearEvent::Lost(&forbidden));
    }
    let failed = log.events("near_channel_failed");
    assert_eq!(failed.len(), 3);
    assert!(failed[0].starts_with("WARN") && failed[0].contains("grant it"), "{}", failed[0]);
    assert_eq!(log.events("near_channel_opened").len(), 3);
    assert_eq!(log.events("near_channel_lost").len(), 3);
}
