//! Spans and events: their names are stable, and they identify sessions only by a keyed hash.

use session_core::{Persistence as _, RecordWrite, Runtime as _};

use crate::common::{DAY, Fault, Log, World, key_of};

#[tokio::test]
async fn spans_cover_calls_of_others_but_not_in_process_hits() {
    let world = World::new().await;
    let log = Log::listen();
    let mut session = world.saved([("x", 1)]).await;
    session.insert("x", 2).unwrap();
    session.save().await.unwrap();
    session.cycle_key().await.unwrap();
    let spans = || -> Vec<String> {
        let lines = log.lines().into_iter().filter(|line| line.starts_with("span "));
        lines.map(|line| line.split(" session=").next().unwrap().to_owned()).collect()
    };
    let write = |operation| format!("span session_write operation=\"{operation}\"");
    assert_eq!(spans(), ["create", "save", "rename"].map(write));
    world.reopen(&session).await;
    assert_eq!(spans().len(), 3, "a hit in the process has no span");
    let later = world.runtime.now() + DAY;
    world.store.touch(session.stored_key().unwrap(), later).await.unwrap();
    world.reopen(&session).await;
    session.flush().await.unwrap();
    assert_eq!(spans()[3..], [write("touch"), "span session_load".to_owned(), write("delete")]);
}

#[tokio::test]
async fn log_shows_no_key_payload_or_subject_and_sessions_can_be_followed() {
    let world = World::shared_with(|builder| builder.log_key(*b"the log's key")).await;
    let log = Log::listen();
    let mut session = world.saved([("number", 471_147)]).await;
    session.log_in("ada@example.org").await.unwrap();
    session.insert("number", 471_147).unwrap();
    session.save().await.unwrap();
    world.store.open("0123456789012345678901234567890123456789012").await.unwrap();
    // Provoke the events with the most detail: an unreadable payload, and a cache that cannot be reached.
    let stored = *session.stored_key().unwrap();
    let record = world.db.sqlite.load(&stored, world.runtime.now()).await.unwrap().unwrap();
    let broken = session_core::Record::new(
        bytes::Bytes::from_static(b"1{\"number\":471147"),
        record.created_at(),
        record.expires_at(),
    );
    world.db.sqlite.update(&stored, RecordWrite::new(&broken), world.runtime.now()).await.unwrap();
    world.cache.plant(&stored, None).await;
    world.unreadable(&session).await;
    world.cache.calls.fail_all(Fault::NoAnswer);
    let mut other = world.saved([("number", 471_147)]).await;
    other.flush().await.unwrap();

    let lines = log.lines();
    let text = lines.join("\n");
    for secret in [key_of(&session), stored.as_str().to_owned(), "ada@example.org".into(), "471147".into()] {
        assert!(!text.contains(&secret), "{secret} is in the log:\n{text}");
    }
    let name_in = |line: &String| {
        let rest = line.split(" session=").nth(1)?;
        Some(rest.split_whitespace().next()?.trim_matches('"').to_owned())
    };
    let unreadable = lines.iter().find(|line| line.contains("payload_unreadable")).and_then(name_in).unwrap();
    assert!(
        unreadable.len() == 16 && unreadable.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{unreadable}"
    );
    let of_it = lines.iter().filter(|line| name_in(line).is_some_and(|name| name == unreadable));
    let saves = of_it.filter(|line| line.starts_with("span session_write operation=\"save\"")).count();
    assert_eq!(saves, 1, "the session cannot be followed:\n{text}");
}
