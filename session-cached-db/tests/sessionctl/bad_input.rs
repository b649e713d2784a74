use std::process::Stdio;

use crate::world::{Run, World, bare, save};

/// Commands that need the table.
const NEED_THE_TABLE: [&[&str]; 6] = [
    &["stats"],
    &["list", "--subject", "ann"],
    &["show", "some-key"],
    &["clear-expired"],
    &["clear-expired", "--dry-run"],
    &["revoke", "--subject", "ann", "--no-cache"],
];

pub async fn database_without_the_table_is_left_alone(world: &World) {
    world.sql(r#"CREATE TABLE "{t}_other" (id INTEGER)"#).await;
    for command in NEED_THE_TABLE {
        world
            .run(command)
            .ends_with(4)
            .says(&format!("there is no table {}", world.table))
            .says("sessionctl migrate");
    }
    // No table was made, and the SQLite file is in the same mode as before.
    world.run(&["migrate", "--dry-run"]).ends_with(0).says("would be made");
    if !world.has_cache() {
        let header = std::fs::read(world.dir.path().join("sessions.db")).unwrap();
        assert_eq!(header[18], 1, "the file was put into write-ahead mode");
    }
    world.sql(r#"DROP TABLE "{t}_other""#).await;
}

pub async fn foreign_table_is_left_alone(world: &World) {
    world.sql(r#"CREATE TABLE "{t}" (id INTEGER, expires_at BIGINT); INSERT INTO "{t}" VALUES (1, 0)"#).await;
    for command in NEED_THE_TABLE.into_iter().chain([["migrate"].as_slice()]) {
        world.run(command).ends_with(4).says("not a session table");
    }
    // The insert fails only if the table still has its row.
    world.sql(r#"CREATE UNIQUE INDEX "{t}_once" ON "{t}" (id)"#).await;
    assert!(world.try_sql(r#"INSERT INTO "{t}" VALUES (1, 0)"#).await.is_err(), "the row was deleted");
}

pub async fn newer_schema_is_left_alone(world: &World) {
    world.filled(&[("it-is-over".to_owned(), None, -7_200)]).await;
    world.sql(r#"INSERT INTO "{t}_schema" VALUES (7)"#).await;
    for command in NEED_THE_TABLE.into_iter().chain([["migrate"].as_slice()]) {
        world.run(command).ends_with(4).says("schema version 7").says("newer");
    }
    assert_eq!(world.rows().await, 1);
}

pub async fn missing_file_is_not_made(world: &World) {
    let file = world.dir.path().join("missing.db");
    for command in NEED_THE_TABLE.into_iter().chain([["doctor"].as_slice(), &["migrate", "--dry-run"]]) {
        let mut run = bare(command);
        run.env("SESSIONCTL_DATABASE_URL", format!("sqlite://{}", file.display()));
        let code = match command[0] {
            "doctor" => 7,
            "migrate" => 0,
            _ => 3,
        };
        Run::of(&mut run).ends_with(code);
        assert!(!file.exists(), "{command:?} made the file");
    }
}

pub async fn wrong_url_is_refused_without_its_password(world: &World) {
    bare_stats(None).ends_with(2).says("SESSIONCTL_DATABASE_URL");
    bare_stats(Some("")).ends_with(2).says("SESSIONCTL_DATABASE_URL");
    bare_stats(Some("mongodb://u:s3cr3t@h/d")).ends_with(2).says("mongodb").does_not_say("s3cr3t");
    bare_stats(Some("u:s3cr3t@h/d")).ends_with(2).does_not_say("s3cr3t");
    bare_stats(Some("postgres://u:s3cr3t@h/d?tabel=x")).ends_with(2).does_not_say("s3cr3t");
    bare_stats(Some("postgres://u:s3cr3t@127.0.0.1:1/d")).ends_with(3).does_not_say("s3cr3t");
    let mut command = bare(&["--database-url", "postgres://u:s3cr3t@127.0.0.1:1/d", "--help"]);
    Run::of(&mut command).ends_with(0).does_not_say("s3cr3t");
    let mut command = world.command(&["revoke", "some-key"]);
    command.env("SESSIONCTL_CACHE_URL", "mongodb://:s3cr3t@h");
    Run::of(&mut command).ends_with(2).says("mongodb").does_not_say("s3cr3t");
    world.run(&["no-such-command"]).ends_with(2);
    // The help does not show a URL from the environment.
    world.run(&["stats", "--help"]).ends_with(0).does_not_say(&world.table);
}

fn bare_stats(url: Option<&str>) -> Run {
    let mut command = bare(&["stats"]);
    if let Some(url) = url {
        command.env("SESSIONCTL_DATABASE_URL", url);
    }
    Run::of(&mut command)
}

pub async fn unreachable_cache_stops_commands_that_must_fence_it(world: &World) {
    let store = world.store().await;
    let (_, key) = save(&store, Some("ann"), "a", "b").await;
    for command in [
        ["revoke", key.as_str()].as_slice(),
        &["revoke", "--subject", "ann"],
        &["revoke", "--all", "--yes"],
        &["check"],
    ] {
        let mut command = world.command(command);
        command.env("SESSIONCTL_CACHE_URL", "redis://:s3cr3t@127.0.0.1:1/");
        Run::of(&mut command).ends_with(5).says("cache").does_not_say("s3cr3t");
    }
    assert_eq!(world.rows().await, 1);
}

pub async fn closed_output_causes_no_panic_and_undoes_nothing(world: &World) {
    let store = world.store().await;
    let (_, key) = save(&store, Some("ann"), "a", "b").await;
    let closed = |command: &mut std::process::Command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        Run::new(child.wait_with_output().unwrap()).ends_with(141).does_not_say("panicked")
    };
    for command in
        [["stats"].as_slice(), &["list", "--subject", "ann"], &["doctor"], &["completions", "bash"]]
    {
        closed(&mut world.command(command)).says("closed");
    }
    closed(&mut world.write_command(&["revoke", key.as_str()])).says("is done");
    assert_eq!(world.rows().await, 0);
}

pub async fn contradicting_revoke_arguments_are_refused(world: &World) {
    world.filled(&[("session-1".to_owned(), Some("ann"), 3_600)]).await;
    for command in [
        ["revoke", "session-1", "--subject", "ann"].as_slice(),
        &["revoke", "session-1", "--all", "--yes"],
        &["revoke", "--subject", "ann", "--all", "--yes"],
        &["revoke"],
        &["revoke", "--yes"],
    ] {
        world.write(command).ends_with(2);
    }
    assert_eq!(world.rows().await, 1);
}

pub async fn clock_that_is_far_off_stops_commands_that_write(world: &World) {
    world.filled(&[("it-is-over".to_owned(), None, -7_200)]).await;
    if !world.has_cache() {
        // SQLite's clock is this machine's, so it cannot differ.
        world.run(&["clear-expired"]).ends_with(0);
        return;
    }
    world
        .sql(
            "CREATE SCHEMA {t}_clock; CREATE FUNCTION {t}_clock.clock_timestamp() RETURNS timestamptz
             LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$",
        )
        .await;
    let search_path = format!("-c%20search_path={}_clock,public,pg_catalog", world.table);
    let with_clock = |arguments: &[&str]| {
        let mut command = world.command(arguments);
        command.env("SESSIONCTL_DATABASE_URL", format!("{}&options={search_path}", world.database_url));
        Run::of(&mut command)
    };
    for command in [["clear-expired"].as_slice(), &["revoke", "it-is-over"], &["revoke", "--all", "--yes"]] {
        with_clock(command).ends_with(2).says("clock").says("ahead of this machine's");
    }
    assert_eq!(world.rows().await, 1);
    with_clock(&["doctor"]).ends_with(7).says("ahead of this machine's");
    with_clock(&["clear-expired", "--dry-run"]).ends_with(0);
    world.sql("DROP SCHEMA {t}_clock CASCADE").await;
}
