use serde_json::Value;
use session_cached_db::cache_backends::redis::driver as redis;

use crate::world::{Run, World, bare};

fn severities(run: &Run) -> Vec<String> {
    let json = run.json();
    let findings = json["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["severity"].as_str().unwrap().to_owned()).collect()
}

pub async fn healthy_servers_are_reported_as_ok(world: &World) {
    world.filled(&[("session-1".to_owned(), None, 3_600)]).await;
    let run = world.run(&["doctor", "--json"]).ends_with(0);
    let json = run.json();
    let text = |about: &str| {
        let of = |finding: &&Value| finding["about"] == about;
        json["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(of)
            .map(|finding| finding["text"].as_str().unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let (database, cache) =
        if world.has_cache() { ("PostgreSQL 1", "answers") } else { ("SQLite 3", "none was named") };
    assert!(text("database").contains(database), "{json}");
    assert!(text("cache").contains(cache), "{json}");
    assert!(text("table").contains("as this version needs it"), "{json}");
    assert_eq!(text("eviction").is_empty(), !world.has_cache(), "{json}");
    world.run(&["doctor"]).ends_with(0).does_not_say("\x1b");
}

pub async fn worst_finding_decides_the_exit_code(world: &World) {
    let missing = world.run(&["doctor", "--json"]).ends_with(7);
    assert!(severities(&missing).contains(&"problem".to_owned()));

    world.filled(&[("session-1".to_owned(), None, -7_200)]).await;
    world.run(&["doctor"]).ends_with(6).says("does a reaper run");
    world.run(&["clear-expired"]).ends_with(0);
    world.run(&["doctor"]).ends_with(0);

    world.sql(r#"DROP INDEX "{t}_subject_key""#).await;
    let run = world.run(&["doctor", "--json"]).ends_with(6).says("subject");
    assert!(severities(&run).contains(&"warning".to_owned()));

    world.sql(r#"INSERT INTO "{t}_schema" VALUES (7)"#).await;
    world.run(&["doctor"]).ends_with(7).says("schema version 7");
}

pub async fn unreachable_server_is_a_problem_without_its_password(world: &World) {
    let mut command = bare(&["doctor"]);
    command.env("SESSIONCTL_DATABASE_URL", "postgres://user:s3cr3t@127.0.0.1:1/db");
    command.env("SESSIONCTL_CACHE_URL", "redis://:s3cr3t@127.0.0.1:1/");
    let run = Run::of(&mut command).ends_with(7).says("PROBLEM").does_not_say("s3cr3t");
    assert_eq!(run.stdout.lines().filter(|line| line.starts_with("PROBLEM")).count(), 2, "{run:?}");
    // The server that answers is still examined.
    world.filled(&[]).await;
    let mut command = bare(&["doctor"]);
    command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
    command.env("SESSIONCTL_CACHE_URL", "redis://127.0.0.1:1/");
    Run::of(&mut command).ends_with(7).says("as this version needs it");
}

/// A server that lets no one use it as a cache is a problem, and the report says what to do.
pub async fn cache_that_refuses_every_call_is_a_problem(world: &World) {
    let Some(cache_url) = &world.cache_url else { return };
    world.filled(&[]).await;
    let user = world.table.as_str();
    let admin = cache_url.split('?').next().unwrap();
    let client = redis::Client::open(admin).unwrap();
    let mut admin = client.get_connection().unwrap();
    let mut set_user = |rights: &[&str]| {
        let mut command = redis::cmd("ACL");
        command
            .arg("SETUSER")
            .arg(user)
            .arg(&["reset", "on", ">s3cr3t"])
            .arg(format!("~{user}:*"))
            .arg(rights);
        command.query::<()>(&mut admin).unwrap();
    };
    let doctor = |password: &str| {
        let mut command = bare(&["doctor"]);
        command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
        command.env("SESSIONCTL_CACHE_URL", cache_url.replace("://", &format!("://{user}:{password}@")));
        Run::of(&mut command)
    };
    set_user(&["+@all"]);
    doctor("s3cr3t").ends_with(0);
    doctor("wr0ng").ends_with(7).says("check the user and the password").does_not_say("wr0ng");
    for (rights, advice) in [
        (["+@all", "-eval", "-evalsha"], "+eval +evalsha"),
        (["+@all", "-set", "+get"], "+set"),
        (["+@all", "resetkeys", "~another:*"], "the cache's prefix"),
    ] {
        set_user(&rights);
        let run = doctor("s3cr3t").ends_with(7).says(advice).does_not_say("s3cr3t");
        assert_eq!(run.stdout.lines().filter(|line| line.starts_with("PROBLEM")).count(), 1, "{run:?}");
    }
    redis::cmd("ACL").arg("DELUSER").arg(user).query::<()>(&mut admin).unwrap();
}

pub async fn near_cache_is_examined_with_its_channel(world: &World) {
    let Some(cache_url) = &world.cache_url else { return };
    world.filled(&[("session-1".to_owned(), None, 3_600)]).await;
    let near = |bound: &str| {
        let mut command = bare(&["doctor"]);
        command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
        command.env("SESSIONCTL_CACHE_URL", format!("near+{cache_url}&freshness_bound_ms={bound}"));
        Run::of(&mut command)
    };
    near("9000").ends_with(0).says("changes are reported").says("keys for near caches");
    near("10000").ends_with(6).says("below their write_timeout");
    let mut command = bare(&["check"]);
    command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
    command.env("SESSIONCTL_CACHE_URL", format!("near+{cache_url}"));
    Run::of(&mut command).ends_with(0).says("in front of it");
    notified_memory_is_examined_with_its_channel(world);
    // A bound above the age that this program's own store would have.
    let mut command = bare(&["revoke", "--all", "--yes"]);
    command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
    command.env("SESSIONCTL_CACHE_URL", format!("near+{cache_url}&freshness_bound_ms=1500"));
    Run::of(&mut command).ends_with(0);
}

/// Memory that the database tells of changes. A database that can tell none says so.
fn notified_memory_is_examined_with_its_channel(world: &World) {
    let run = |arguments: &[&str]| {
        let mut command = bare(arguments);
        command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
        command.env("SESSIONCTL_CACHE_URL", "notified+moka://?freshness_bound_ms=9000");
        Run::of(&mut command)
    };
    run(&["doctor"]).ends_with(0).says("changes are reported").says("out of reach");
    run(&["check"]).ends_with(0).says("reports changes").says("not compared");
    let json = run(&["check", "--json"]).ends_with(0).json();
    assert!(json["changes_are_reported"] == true && json["freshness_bound_ms"] == 9_000, "{json}");
}

pub async fn memory_that_no_database_tells_is_a_warning(world: &World) {
    if world.has_cache() {
        return;
    }
    world.filled(&[("session-1".to_owned(), None, 3_600)]).await;
    for (command, exit) in [("doctor", 6), ("check", 1)] {
        let mut command = bare(&[command]);
        command.env("SESSIONCTL_DATABASE_URL", &world.database_url);
        command.env("SESSIONCTL_CACHE_URL", "notified+moka://");
        Run::of(&mut command).ends_with(exit).says("as Postgres can");
    }
}
