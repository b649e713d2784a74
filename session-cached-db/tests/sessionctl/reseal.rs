use std::sync::Arc;

use session_cached_db::CachedDb;
use session_core::{Codec as _, JsonCodec, SealCodec, SealingKey, SealingKeys, SessionData, StoredKey};

use crate::world::{Run, World, interrupt, key_of, save, start};

const OLD: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const NEW: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

fn sealing_with(key: &str) -> SealCodec {
    SealCodec::new(JsonCodec::default(), SealingKeys::new(SealingKey::parse(key).unwrap()))
}

fn reseal(world: &World, keys: &str, more: &[&str]) -> Run {
    let mut command = world.write_command(&["reseal", "--json"]);
    Run::of(command.args(more).env("SESSIONCTL_SEALING_KEYS", keys))
}

pub async fn every_session_is_sealed_with_the_first_key_and_stays_logged_in(world: &World) {
    let store = world.store_with(sealing_with(OLD)).await;
    let mut keys = Vec::new();
    for n in 0..5 {
        keys.push(save(&store, Some("ann"), "n", &n.to_string()).await.1);
    }
    let run = reseal(world, &format!("{NEW},{OLD}"), &["--batch", "2"]).ends_with(0);
    assert_eq!((&run.json()["seen"], &run.json()["written"]), (&5.into(), &5.into()));
    let new = sealing_with(NEW);
    let database = world.database().await;
    for (n, key) in keys.iter().enumerate() {
        let record = database.load_dyn(key, crate::world::now()).await.unwrap().map(Arc::new).unwrap();
        assert_eq!(record.data(key, &new).unwrap().get("n"), Some(format!("\"{n}\"").as_str()));
        assert_eq!(record.subject().unwrap().as_str(), "ann");
        // No cache shows a payload that was sealed with the old key.
        let store = world.store_with(sealing_with(NEW)).await;
        assert!(store.load(key).await.unwrap().is_some());
    }
    let run = reseal(world, &format!("{NEW},{OLD}"), &[]).ends_with(0);
    assert_eq!((&run.json()["seen"], &run.json()["written"]), (&5.into(), &0.into()));
}

pub async fn unreadable_session_is_left_alone_and_reported(world: &World) {
    let database = world.filled(&[("not-sealed".to_owned(), None, 3_600)]).await;
    let store = world.store_with(sealing_with(OLD)).await;
    let (_, key) = save(&store, None, "a", "b").await;
    let rows = async || {
        let rows = database.scan_dyn(None, 10).await.unwrap();
        rows.into_iter().map(|row| (row.key, row.contents.unwrap())).collect::<Vec<_>>()
    };
    let before = rows().await;
    // One session is sealed with a key that is not in the ring, and one is not sealed.
    let run = reseal(world, NEW, &[]).ends_with(1);
    assert_eq!(run.json()["unreadable"].as_array().unwrap().len(), 2);
    assert_eq!(run.json()["written"], 0);
    assert_eq!(rows().await, before);

    let run = reseal(world, &format!("{NEW},{OLD}"), &["--accept-unsealed"]).ends_with(0);
    assert_eq!(run.json()["written"], 2);
    for key in [key, key_of("not-sealed")] {
        let record = database.load_dyn(&key, crate::world::now()).await.unwrap().unwrap();
        assert!(sealing_with(NEW).decode(&key, record.payload()).is_ok());
    }
}

pub async fn reseal_without_keys_is_refused(world: &World) {
    world.filled(&[("not-sealed".to_owned(), None, 3_600)]).await;
    world.write(&["reseal"]).ends_with(2).says("SESSIONCTL_SEALING_KEYS");
    let record = world.database().await.scan_dyn(None, 1).await.unwrap().remove(0).contents.unwrap();
    assert_eq!(
        JsonCodec::default().decode(&key_of("not-sealed"), record.payload()).unwrap(),
        SessionData::new()
    );
}

pub async fn interrupted_run_reports_how_far_it_came_and_can_be_repeated(world: &World) {
    let sessions: Vec<_> = (0..40).map(|n| (format!("session-{n}"), None, 3_600)).collect();
    let database = world.filled(&sessions).await;
    let is_sealed = async |key: &StoredKey| {
        let record = database.load_dyn(key, crate::world::now()).await.unwrap().map(Arc::new).unwrap();
        sealing_with(NEW).decode(key, record.payload()).is_ok()
    };
    let sealed = async || {
        let mut sealed = 0;
        for (key, ..) in &sessions {
            sealed += u64::from(is_sealed(&key_of(key)).await);
        }
        sealed
    };
    let arguments = ["reseal", "--json", "--accept-unsealed", "--batch", "4"];
    let mut command = world.write_command(&arguments);
    command.env("SESSIONCTL_SEALING_KEYS", NEW);
    // Without the interrupt, this takes 20 seconds.
    let child = start(command.args(["--rate", "2"]));
    while sealed().await == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    interrupt(&child);
    let run = Run::new(child.wait_with_output().unwrap()).ends_with(130).says("interrupted");
    let written = sealed().await;
    assert_eq!((&run.json()["written"], &run.json()["interrupted"]), (&written.into(), &true.into()));
    assert!((4..40).contains(&written), "{written}");
    let run = reseal(world, NEW, &["--accept-unsealed"]).ends_with(0);
    assert_eq!(run.json()["written"], 40 - written);
}

pub async fn plain_keys_are_hashed_and_users_stay_logged_in(world: &World) {
    let cookie = "abcdefghijklmnopqrstuvwxyz012345";
    world.filled(&[(cookie.to_owned(), Some("ann"), 3_600)]).await;
    let run = world.write(&["hash-keys", "--key-prefix", "shop:", "--json"]).ends_with(0);
    assert_eq!((&run.json()["seen"], &run.json()["written"]), (&1.into(), &1.into()));
    let store =
        CachedDb::builder(world.cache(), world.database().await).key_prefix("shop:").build().await.unwrap();
    let session = store.open(cookie).await.unwrap();
    assert_eq!(session.subject(), Some("ann"));
    assert!(session.stored_key().unwrap().as_str().starts_with("shop:"));
    // A key that looks hashed is left alone.
    let run = world.write(&["hash-keys", "--key-prefix", "shop:", "--json"]).ends_with(0);
    assert_eq!((&run.json()["seen"], &run.json()["written"]), (&1.into(), &0.into()));
    world.write(&["hash-keys", "--key-prefix", "no prefix"]).ends_with(2).says("key_prefix");
}
