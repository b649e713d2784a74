use session_core::{Record, RecordWrite, Timestamp};

use crate::world::{Run, World, now, save};

/// Returns `true` if there is a cache to check. Without one, asserts that the command says so.
async fn has_cache(world: &World) -> bool {
    if !world.has_cache() {
        world.filled(&[]).await;
        world.run(&["check"]).ends_with(2).says("SESSIONCTL_CACHE_URL");
    }
    world.has_cache()
}

pub async fn agreeing_cache_is_reported_and_not_changed(world: &World) {
    if !has_cache(world).await {
        return;
    }
    let store = world.store().await;
    let (_, cached) = save(&store, None, "a", "b").await;
    assert!(store.load(&cached).await.unwrap().is_some());
    let expires_at = now() + std::time::Duration::from_secs(3_600);
    let uncached = crate::world::key_of("never-loaded-before");
    let record = Record::new("{}".into(), now(), expires_at);
    world.database().await.insert_dyn(&uncached, &record).await.unwrap();

    let before = world.cache().get_dyn(&cached).await.unwrap();
    let report = world.run(&["check", "--batch", "1", "--json"]).ends_with(0).json();
    for (name, number) in [("checked", 2), ("agree", 1), ("not_cached", 1), ("in_flight", 0)] {
        assert_eq!(report[name], number, "{report}");
    }
    assert_eq!(world.cache().get_dyn(&cached).await.unwrap(), before);
    assert_eq!(world.cache().get_dyn(&uncached).await.unwrap(), None);

    let mut elsewhere = world.command(&["check"]);
    elsewhere.env("SESSIONCTL_CACHE_URL", format!("{}-not-this", world.cache_url.as_ref().unwrap()));
    Run::of(&mut elsewhere).ends_with(0).says("key_prefix");

    // A touch is not cached, which is not a disagreement.
    world
        .database()
        .await
        .touch_dyn(&cached, now() + std::time::Duration::from_secs(90 * 86_400), Timestamp::MAX, now())
        .await
        .unwrap();
    world.run(&["check"]).ends_with(0);
}

pub async fn outdated_session_in_the_cache_is_reported(world: &World) {
    if !has_cache(world).await {
        return;
    }
    let store = world.store().await;
    let (_, key) = save(&store, None, "a", "b").await;
    let (_, other) = save(&store, None, "a", "b").await;
    for key in [key, other] {
        assert!(store.load(&key).await.unwrap().is_some());
    }
    // Another program writes to the table past the cache.
    let database = world.database().await;
    let record = database.load_dyn(&key, now()).await.unwrap().unwrap();
    let changed = Record::new("{}".into(), record.created_at(), record.expires_at());
    database.update_dyn(&key, RecordWrite::new(&changed), now()).await.unwrap();
    let report = world.run(&["check", "--json"]).ends_with(1).json();
    assert_eq!(report["agree"], 1, "{report}");
    assert_eq!(report["disagree"][0]["stored_key"], key.as_str(), "{report}");
    world.run(&["check"]).ends_with(1).says("another version").does_not_say("\x1b");
}

pub async fn ended_session_in_the_cache_is_reported_by_its_key(world: &World) {
    if !has_cache(world).await {
        return;
    }
    let store = world.store().await;
    let (_, key) = save(&store, None, "a", "b").await;
    assert!(store.load(&key).await.unwrap().is_some());
    assert!(world.database().await.delete_dyn(&key).await.unwrap());
    // A cache does not list its keys.
    assert_eq!(world.run(&["check", "--json"]).ends_with(0).json()["checked"], 0);
    world.run(&["check", key.as_str()]).ends_with(1).says("no such session");
}
