use session_core::{Codec as _, JsonCodec, SealCodec, SealingKey, SealingKeys, SessionData};

use crate::world::{Run, World, interrupt, key_of, save, start};

pub async fn stats_count_sessions_subjects_and_bytes(world: &World) {
    let empty = JsonCodec::default().encode(&key_of("session-0"), &SessionData::new()).unwrap().len();
    let key = |n: i64| format!("session-{n}");
    let mut sessions = vec![(key(0), None, 3_600), (key(1), Some("gone"), -5)];
    sessions.extend((2..5).map(|n| (key(n), Some("ann"), 3_600)));
    sessions.extend((5..7).map(|n| (key(n), Some("bob\u{9b}2J"), 3_600)));
    world.filled(&sessions).await;
    let run = world.run(&["stats", "--json", "--batch", "2", "--top", "1"]).ends_with(0);
    let stats = run.json();
    for (name, number) in [
        ("sessions", 6),
        ("expired", 1),
        ("without_subject", 1),
        ("subjects", 2),
        ("payload_bytes", 7 * empty),
        ("largest_payload_bytes", empty),
    ] {
        assert_eq!(stats[name], number, "{name}: {stats}");
    }
    assert_eq!(stats["top_subjects"], serde_json::json!([{"subject": "ann", "sessions": 3}]));
    // Control characters in a subject do not reach the terminal.
    world.run(&["stats"]).ends_with(0).says("bob\\u{9b}2J").does_not_say("\u{9b}");
}

pub async fn sessions_of_a_subject_are_listed_latest_first(world: &World) {
    let store = world.store().await;
    let (_, first) = save(&store, Some("ann"), "device", "phone").await;
    let (_, second) = save(&store, Some("ann"), "device", "s3cr3t").await;
    let (_, other) = save(&store, Some("bob"), "device", "tablet").await;
    let run = world.run(&["list", "--subject", "ann", "--json"]).ends_with(0).does_not_say("s3cr3t");
    let keys: Vec<_> = run.json().as_array().unwrap().iter().map(|line| line["stored_key"].clone()).collect();
    assert_eq!(keys, [second.as_str(), first.as_str()]);
    let text = world.run(&["list", "--subject", "ann"]).ends_with(0).does_not_say(other.as_str()).stdout;
    assert!(text.starts_with("stored key") && text.contains(first.as_str()), "{text}");
    world.run(&["list", "--subject", "carol"]).ends_with(0).says("No sessions.");
    world.run(&["list", "--subject", ""]).ends_with(2);
}

pub async fn payload_is_shown_only_with_reveal(world: &World) {
    let store = world.store().await;
    let (_, key) = save(&store, Some("ann"), "note", "s3cr3t").await;
    let key = key.as_str();
    world.run(&["show", key]).ends_with(0).says("ann").says(key).does_not_say("s3cr3t");
    world.run(&["show", key, "--json"]).ends_with(0).does_not_say("s3cr3t");
    world.run(&["show", key, "--reveal"]).ends_with(0).says("note  \"s3cr3t\"");
    let json = world.run(&["show", key, "--reveal", "--json"]).ends_with(0).json();
    assert_eq!(json["payload"]["note"], "s3cr3t");
    assert_eq!((&json["subject"], &json["stored_key"]), (&"ann".into(), &key.into()));
    assert!(json["expires_at"].as_str().unwrap().ends_with('Z'), "{json}");
}

pub async fn missing_session_is_reported(world: &World) {
    world.filled(&[("it-is-over".to_owned(), None, -1)]).await;
    for key in ["never-was-there", "it-is-over"] {
        world.run(&["show", key]).ends_with(1).says("no session");
    }
    world.run(&["show", "no key at all"]).ends_with(2);
}

pub async fn sealed_payload_is_shown_only_with_its_key(world: &World) {
    let text = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let keys = SealingKeys::new(SealingKey::parse(text).unwrap());
    let store = world.store_with(SealCodec::new(JsonCodec::default(), keys)).await;
    let (_, key) = save(&store, None, "note", "s3cr3t").await;
    let arguments = ["show", key.as_str(), "--reveal"];
    world.run(&arguments).ends_with(1).says("cannot be read").does_not_say("s3cr3t");
    let mut command = world.command(&arguments);
    Run::of(command.env("SESSIONCTL_SEALING_KEYS", text)).ends_with(0).says("s3cr3t");
    let file = world.dir.path().join("keys");
    std::fs::write(&file, format!("{text}\n")).unwrap();
    let mut command = world.command(&arguments);
    Run::of(command.arg("--sealing-keys-file").arg(file)).ends_with(0).says("s3cr3t");
    let mut command = world.command(&arguments);
    Run::of(command.env("SESSIONCTL_SEALING_KEYS", "s3cr3t")).ends_with(2).does_not_say("s3cr3t");
}

pub async fn text_output_is_aligned_and_without_colours(world: &World) {
    let sessions: Vec<_> = (0..1_234).map(|n| (format!("session-{n}"), Some("ann"), 3_600)).collect();
    world.filled(&sessions).await;
    let run = world.run(&["stats"]).ends_with(0).says("1,234").does_not_say("\x1b");
    let ends: Vec<_> = run.stdout.lines().take(7).map(|line| line.chars().count()).collect();
    assert!(ends.iter().all(|end| *end == ends[0]), "{}", run.stdout);
}

pub async fn interrupted_read_only_command_ends_at_once(world: &World) {
    let sessions: Vec<_> = (0..100).map(|n| (format!("session-{n}"), Some("ann"), 3_600)).collect();
    world.filled(&sessions).await;
    // Without the interrupt, this takes 100 seconds.
    let child = start(&mut world.command(&["stats", "--batch", "1", "--rate", "1"]));
    interrupt(&child);
    let run = Run::new(child.wait_with_output().unwrap()).ends_with(130).says("interrupted");
    assert_eq!(run.stdout, "");
}
