use std::time::Duration;

use session_core::State;

use crate::world::{Run, World, bare, interrupt, save, start};

pub async fn session_is_ended_at_once_for_every_node(world: &World) {
    let store = world.store().await;
    let (session, key) = save(&store, None, "a", "b").await;
    let (_, other) = save(&store, None, "a", "b").await;
    // The session is cached now, if there is a cache.
    let cookie = session.key().unwrap().expose().to_owned();
    assert!(store.load(&key).await.unwrap().is_some());
    let run = world.write(&["revoke", key.as_str(), "--json"]).ends_with(0);
    assert_eq!(run.json()["revoked"], 1);
    assert_eq!(run.json()["may_be_shown"], !world.has_cache());
    assert!(store.load(&key).await.unwrap().is_none());
    assert!(store.open(&cookie).await.unwrap().stored_key().is_none());
    assert!(store.load(&other).await.unwrap().is_some());
    // Neither a value nor a fence is left in the cache.
    let left = world.cache().get_dyn(&key).await.unwrap();
    assert!(!left.is_some_and(|entry| !matches!(entry.state, State::Lease)));
}

pub async fn exactly_the_sessions_of_a_subject_are_ended(world: &World) {
    let store = world.store().await;
    let (_, one) = save(&store, Some("ann"), "a", "b").await;
    let (_, two) = save(&store, Some("ann"), "a", "b").await;
    let (_, other) = save(&store, Some("bob"), "a", "b").await;
    world.write(&["revoke", "--subject", "ann"]).ends_with(0).says("Ended 2 sessions.");
    for key in [one, two] {
        assert!(store.load(&key).await.unwrap().is_none());
    }
    assert!(store.load(&other).await.unwrap().is_some());
    world.write(&["revoke", "--subject", "ann"]).ends_with(0).says("Ended 0 sessions.");
    world.write(&["revoke", "--subject", &"x".repeat(256)]).ends_with(2);
}

pub async fn all_sessions_are_ended_only_with_yes(world: &World) {
    let store = world.store().await;
    let mut keys = Vec::new();
    for _ in 0..5 {
        keys.push(save(&store, None, "a", "b").await.1);
    }
    world.write(&["revoke", "--all"]).ends_with(2).says("--yes");
    assert_eq!(world.rows().await, 5);
    world.write(&["revoke", "--all", "--yes", "--batch", "2"]).ends_with(0).says("Ended 5 sessions.");
    for key in keys {
        assert!(store.load(&key).await.unwrap().is_none());
    }
}

pub async fn revoking_without_a_cache_needs_no_cache_option(world: &World) {
    let store = world.store().await;
    let (_, key) = save(&store, None, "a", "b").await;
    let without_cache = || {
        let mut command = bare(&["revoke", key.as_str()]);
        command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
        command
    };
    Run::of(&mut without_cache()).ends_with(2).says("--no-cache").says("max_cache_age");
    assert_eq!(world.rows().await, 1);
    let mut with_moka = without_cache();
    Run::of(with_moka.env("SESSIONCTL_CACHE_URL", "moka://")).ends_with(2).says("own process");
    assert_eq!(world.rows().await, 1);
    Run::of(without_cache().arg("--no-cache")).ends_with(0).says("may show them");
    assert_eq!(world.rows().await, 0);
}

pub async fn key_without_a_session_is_reported(world: &World) {
    let store = world.store().await;
    let (_, key) = save(&store, None, "a", "b").await;
    let run = world.write(&["revoke", "never-was-there", key.as_str(), "--json"]).ends_with(1);
    assert_eq!((&run.json()["revoked"], &run.json()["not_found"]), (&1.into(), &1.into()));
    assert_eq!(world.rows().await, 0);
}

pub async fn interrupted_run_leaves_the_other_sessions_unchanged(world: &World) {
    let sessions: Vec<_> = (0..100).map(|n| (format!("session-{n}"), None, 3_600)).collect();
    world.filled(&sessions).await;
    // Without the interrupt, this takes 50 seconds.
    let child = start(&mut world.write_command(&["revoke", "--all", "--yes", "--rate", "2", "--json"]));
    while world.rows().await == 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    interrupt(&child);
    let run = Run::new(child.wait_with_output().unwrap()).ends_with(130).says("interrupted");
    let left = world.rows().await;
    assert!((1..100).contains(&left), "{left}");
    assert_eq!(run.json()["revoked"], 100 - left);
}

/// Each end waits until no node shows the session: for a second, and not for a second each.
pub async fn ends_wait_for_other_nodes_side_by_side(world: &World) {
    let Some(cache_url) = &world.cache_url else { return };
    let names: Vec<_> = (0..24).map(|n| (format!("session-{n}"), None, 3_600)).collect();
    world.filled(&names).await;
    let mut command = bare(&["revoke", "--all", "--yes"]);
    command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
    command.env("SESSIONCTL_CACHE_URL", format!("near+{cache_url}&freshness_bound_ms=1000"));
    let begun = std::time::Instant::now();
    Run::of(&mut command).ends_with(0).says("Ended 24 sessions.");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(12), "{took:?}");
}
