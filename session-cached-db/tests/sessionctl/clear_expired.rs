use std::time::{Duration, Instant};

use crate::world::{Run, World, interrupt, start};

/// Adds `count` sessions that expired an hour ago, one that has just expired, and three live ones.
async fn with_expired(world: &World, count: usize) {
    let expired = (0..count).map(|n| (format!("expired-{n}"), None, -3_600));
    let live = (0..3).map(|n| (format!("live-key-{n}"), None, 3_600));
    // A node whose clock is behind may still show this one.
    let just_now = ("just-expired".to_owned(), None, -1);
    let sessions: Vec<_> = expired.chain(live).chain([just_now]).collect();
    world.filled(&sessions).await;
}

pub async fn expired_sessions_are_deleted_in_batches_and_others_stay(world: &World) {
    with_expired(world, 25).await;
    let run = world.run(&["clear-expired", "--batch", "10", "--json"]).ends_with(0);
    assert_eq!((&run.json()["expired"], &run.json()["deleted"]), (&25.into(), &25.into()));
    assert_eq!(world.rows().await, 4);
    world.run(&["clear-expired"]).ends_with(0).says("Deleted 0 sessions.");
}

pub async fn dry_run_only_counts(world: &World) {
    with_expired(world, 7).await;
    world.run(&["clear-expired", "--dry-run"]).ends_with(0).says("7 sessions would be deleted.");
    assert_eq!(world.rows().await, 11);
}

pub async fn interrupted_run_stops_after_its_batch_and_reports_how_far_it_came(world: &World) {
    with_expired(world, 500).await;
    // Without the interrupt, this takes 50 seconds.
    let child = start(&mut world.command(&["clear-expired", "--batch", "10", "--rate", "10", "--json"]));
    while world.rows().await == 504 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    interrupt(&child);
    let run = Run::new(child.wait_with_output().unwrap()).ends_with(130);
    let left = world.rows().await;
    assert_eq!(run.json()["interrupted"], true);
    assert_eq!(run.json()["deleted"], 504 - left);
    assert!((4..504).contains(&left) && (504 - left).is_multiple_of(10), "{left}");
    run.says("run it again");
    world.run(&["clear-expired"]).ends_with(0);
    assert_eq!(world.rows().await, 4);
}

pub async fn rate_limits_the_speed_of_deletion(world: &World) {
    with_expired(world, 30).await;
    let began = Instant::now();
    world.run(&["clear-expired", "--batch", "10", "--rate", "20"]).ends_with(0).says("Deleted 30 sessions.");
    // There is no wait after the last batch, which was not full.
    assert!(began.elapsed() >= Duration::from_millis(1_000), "{:?}", began.elapsed());
}

pub async fn failed_run_reports_how_far_it_came(world: &World) {
    with_expired(world, 500).await;
    let child = start(&mut world.command(&["clear-expired", "--batch", "10", "--rate", "10"]));
    while world.rows().await == 504 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.sql(r#"DROP TABLE "{t}""#).await;
    let run = Run::new(child.wait_with_output().unwrap()).ends_with(4).says("0 sessions had been deleted");
    assert_eq!(run.stdout, "");
}
