//! The figures that a recorder of the crate `metrics` gets.

use std::collections::{BTreeMap, BTreeSet};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use session_cached_db::Stats;

use crate::common::{DAY, Fault, Log, World, key_of};

/// Returns the figures since the last snapshot: name and labels without the store's name, then the value.
fn recorded(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let mut recorded = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        let mut labels: Vec<_> =
            key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
        labels.sort();
        assert!(labels.contains(&("store".to_owned(), "logins".to_owned())), "{key:?}");
        let others = labels.iter().filter(|(name, _)| name != "store").map(|(_, value)| value.as_str());
        let name = [key.name()].into_iter().chain(others).collect::<Vec<_>>().join(" ");
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(values) => values.len() as f64,
        };
        recorded.insert(name, value);
    }
    recorded
}

/// Returns a world whose store reports to the recorder of this thread.
async fn world() -> (World, Snapshotter, impl Drop) {
    let recorder: &'static DebuggingRecorder = Box::leak(Box::new(DebuggingRecorder::new()));
    let guard = metrics::set_default_local_recorder(recorder);
    let world = World::shared_with(|builder| builder.name("logins")).await;
    (world, recorder.snapshotter(), guard)
}

#[tokio::test]
async fn every_counter_equals_that_of_the_stats() {
    let (world, snapshotter, _guard) = world().await;
    let mut session = world.saved([("x", 1)]).await;
    world.reopen(&session).await;
    world.store.open("0123456789012345678901234567890123456789012").await.unwrap();
    let mut other = world.reopen(&session).await;
    other.insert("y", 2).unwrap();
    other.save().await.unwrap();
    session.insert("x", 3).unwrap();
    session.save().await.unwrap();
    world.cache.plant(session.stored_key().unwrap(), None).await;
    world.reopen(&session).await;
    world.runtime.advance(100 * DAY);
    world.store.clear_expired().await.unwrap();

    let Stats { hits, misses, fills, fenced_writes, merges, unknown_keys, reaped, .. } = world.store.stats();
    let recorded = recorded(&snapshotter);
    for (name, count) in [
        ("session_cache_hits_total", hits),
        ("session_cache_misses_total", misses),
        ("session_cache_fills_total", fills),
        ("session_fenced_writes_total", fenced_writes),
        ("session_merges_total", merges),
        ("session_unknown_keys_total", unknown_keys),
        ("session_reaped_total", reaped),
    ] {
        assert!(count > 0, "{name} was not counted");
        assert!((recorded[name] - count as f64).abs() < 0.5, "{name}: {} is not {count}", recorded[name]);
    }
}

#[tokio::test]
async fn gauges_show_an_outage_and_its_end() {
    let (world, snapshotter, _guard) = world().await;
    let log = Log::listen();
    let mut session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::Unreachable);
    for value in 2..10 {
        session.insert("x", value).unwrap();
        session.save().await.unwrap();
    }
    let during = recorded(&snapshotter);
    assert_eq!(during["session_cache_breaker_open"], 1.0);
    assert_eq!(during["session_cache_repair_queue"], 1.0);
    assert!(during["session_cache_errors_total"] > 0.0 && during["session_degraded_writes_total"] > 0.0);
    world.cache_recovers(&log).await;
    let after = recorded(&snapshotter);
    assert_eq!((after["session_cache_breaker_open"], after["session_cache_repair_queue"]), (0.0, 0.0));
    assert_eq!(after["session_cache_repairs_total"], 1.0);
}

#[tokio::test]
async fn every_call_of_a_shared_cache_and_database_is_timed_by_kind() {
    let (world, snapshotter, _guard) = world().await;
    let mut session = world.saved([("x", 1)]).await;
    world.reopen(&session).await;
    session.insert("x", 2).unwrap();
    session.save().await.unwrap();
    session.cycle_key().await.unwrap();
    session.flush().await.unwrap();
    let timed: BTreeSet<_> = recorded(&snapshotter)
        .into_iter()
        .filter(|(name, times)| name.contains("_call_seconds") && *times > 0.0)
        .map(|(name, _)| name.rsplit(' ').next().unwrap().to_owned())
        .collect();
    for operation in ["acquire", "compare_exchange", "insert", "update", "rename", "delete"] {
        assert!(timed.contains(operation), "{operation} is not timed: {timed:?}");
    }
}

#[tokio::test]
async fn no_label_identifies_a_session() {
    let (world, snapshotter, _guard) = world().await;
    let mut session = world.saved([("secret", 4711)]).await;
    session.set_subject("ada@example.org").unwrap();
    session.save().await.unwrap();
    let figures = format!("{:?}", recorded(&snapshotter));
    let stored = session.stored_key().unwrap().as_str().to_owned();
    for secret in [key_of(&session), stored, "ada@example.org".into(), "4711".into()] {
        assert!(!figures.contains(&secret), "{figures}");
    }
}
