//! The cost of a cache in trouble: reads of the database, and never a failed request or a wrong session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cache_backends::redis::driver::aio::MultiplexedConnection;
use cache_backends::redis::driver::{Client, FromRedisValue, cmd};
use conformance_tests::proxy::Mode;
use db_backends::sqlite::SqlitePersistence;
use memcache::exp::{Get, MetaClient, MutationStatus, Set, Ttl};
use session_cached_db::{CacheHealth, CachedDb, Stats};
use session_core::{DynCache, KeyForm, KeyPrefix, SessionKey, StoredKey};

use crate::{Link, Links};

pub type Store = CachedDb<Arc<dyn DynCache>, SqlitePersistence>;

/// The deadline of a cache call: long enough that a busy machine is no outage, and short enough for an
/// outage.
const DEADLINE: Duration = Duration::from_millis(500);

const PROBE_INTERVAL: Duration = Duration::from_millis(50);

pub async fn store(cache_url: &str) -> Store {
    store_over(cache_url, "sqlite::memory:").await
}

async fn store_over(cache_url: &str, database_url: &str) -> Store {
    let cache = cache_backends::connect(cache_url).unwrap();
    let db = SqlitePersistence::connect(database_url).await.unwrap();
    CachedDb::builder(cache, db)
        .reaper(None)
        .cache_timeout(DEADLINE)
        .probe_interval(PROBE_INTERVAL)
        .build()
        .await
        .unwrap()
}

pub async fn login(store: &Store) -> String {
    let mut session = store.new_session();
    session.insert("n", 0).unwrap();
    session.save().await.unwrap();
    session.key().unwrap().expose().to_owned()
}

/// Makes a request, which reads a number and writes a greater one. Nothing may fail or get lost.
pub async fn request(store: &Store, cookie: &str) -> u32 {
    let mut session = store.open(cookie).await.expect("no request fails");
    let n = session.get::<u32>("n").unwrap().expect("the session is there") + 1;
    session.insert("n", n).unwrap();
    session.save().await.expect("no request fails");
    n
}

pub async fn read(store: &Store, cookie: &str) -> Option<u32> {
    store.open(cookie).await.expect("no request fails").get("n").unwrap()
}

const fn reads(stats: Stats) -> u64 {
    stats.misses + stats.bypasses
}

/// Waits until the session is read without the database.
pub async fn hits_again(store: &Store, cookie: &str, expected: u32) {
    let begun = Instant::now();
    loop {
        let before = store.stats();
        assert_eq!(read(store, cookie).await, Some(expected), "an old session was served");
        if store.stats().hits > before.hits {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the cache is not hit again: {:?}", store.stats());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Checks that a logout while the cache is in trouble still holds afterwards.
pub async fn logs_out(store: &Store, cookie: &str) {
    let mut session = store.open(cookie).await.expect("no request fails");
    session.flush().await.expect("no request fails");
    assert_eq!(read(store, cookie).await, None);
}

async fn down_at_the_start(link: &Link) {
    link.proxy.set(Mode::Reset);
    let store = store(&link.url).await;
    let (cookie, ended) = (login(&store).await, login(&store).await);
    assert_eq!(request(&store, &cookie).await, 1);
    logs_out(&store, &ended).await;
    link.proxy.set(Mode::Pass);
    hits_again(&store, &cookie, 1).await;
    assert_eq!(read(&store, &ended).await, None);
}

pub async fn redis_that_is_down_at_the_start_is_used_when_it_is_up(links: &Links) {
    down_at_the_start(links.only()).await;
}

pub async fn memcached_that_is_down_at_the_start_is_used_when_it_is_up(links: &Links) {
    down_at_the_start(links.only()).await;
}

async fn goes_down(link: &Link) {
    let store = store(&link.url).await;
    let (cookie, ended) = (login(&store).await, login(&store).await);
    hits_again(&store, &cookie, 0).await;
    link.proxy.set(Mode::Reset);
    for n in 1..=5 {
        assert_eq!(request(&store, &cookie).await, n);
    }
    logs_out(&store, &ended).await;
    assert!(link.proxy.injected() > 0, "no fault had an effect");
    link.proxy.set(Mode::Pass);
    hits_again(&store, &cookie, 5).await;
    assert_eq!(read(&store, &ended).await, None);
}

pub async fn redis_that_goes_down_fails_no_request(links: &Links) {
    goes_down(links.only()).await;
}

pub async fn memcached_that_goes_down_fails_no_request(links: &Links) {
    goes_down(links.only()).await;
}

async fn never_answers(link: &Link) {
    let store = store(&link.url).await;
    let (cookie, ended) = (login(&store).await, login(&store).await);
    hits_again(&store, &cookie, 0).await;
    link.proxy.set(Mode::Hold);
    let begun = Instant::now();
    assert_eq!(read(&store, &cookie).await, Some(0));
    // The request waits for one call of the cache, with room for a busy machine.
    assert!(begun.elapsed() < DEADLINE * 4, "it took {:?}", begun.elapsed());
    assert_eq!(request(&store, &cookie).await, 1);
    logs_out(&store, &ended).await;
    // The answers of the meantime arrive now, late.
    link.proxy.set(Mode::Pass);
    hits_again(&store, &cookie, 1).await;
    assert_eq!(read(&store, &ended).await, None);
}

pub async fn silent_redis_delays_a_request_by_its_deadline_only(links: &Links) {
    never_answers(links.only()).await;
}

pub async fn silent_memcached_delays_a_request_by_its_deadline_only(links: &Links) {
    never_answers(links.only()).await;
}

async fn torn(link: &Link) {
    let store = store(&link.url).await;
    let cookie = login(&store).await;
    hits_again(&store, &cookie, 0).await;
    let mut n = 0;
    for bytes in [0, 1, 3, 10, 40, 90] {
        let before = link.proxy.injected();
        link.proxy.set(Mode::Cut(bytes));
        assert_eq!(read(&store, &cookie).await, Some(n));
        n = request(&store, &cookie).await;
        assert!(link.proxy.injected() > before, "no reply was torn");
        link.proxy.set(Mode::Pass);
        hits_again(&store, &cookie, n).await;
    }
    assert_eq!(n, 6);
}

pub async fn torn_reply_of_redis_is_no_session(links: &Links) {
    torn(links.only()).await;
}

pub async fn torn_reply_of_memcached_is_no_session(links: &Links) {
    torn(links.only()).await;
}

pub async fn redis(link: &Link) -> MultiplexedConnection {
    Client::open(link.direct.as_str()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

pub async fn ask<T: FromRedisValue>(redis: &mut MultiplexedConnection, words: &[&str]) -> T {
    let mut command = cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async(redis).await.unwrap()
}

/// Checks that, while the cache refuses writes until `restore`, hits are still hits, and writes go to the
/// database alone.
async fn refuses_writes(link: &Link, refuse: &[&str], restore: &[&str]) {
    let (store, mut redis) = (store(&link.url).await, redis(link).await);
    let (kept, changed, ended) = (login(&store).await, login(&store).await, login(&store).await);
    for cookie in [&kept, &changed, &ended] {
        hits_again(&store, cookie, 0).await;
    }
    ask::<()>(&mut redis, refuse).await;
    let before = store.stats();
    for _ in 0..20 {
        assert_eq!(read(&store, &kept).await, Some(0));
    }
    assert_eq!(reads(store.stats()), reads(before), "a hit read the database");
    assert_eq!(request(&store, &changed).await, 1);
    logs_out(&store, &ended).await;
    // A session that the cache does not have, and cannot store.
    let new = login(&store).await;
    assert_eq!(read(&store, &new).await, Some(0));
    ask::<()>(&mut redis, restore).await;
    for (cookie, expected) in [(&kept, 0), (&changed, 1), (&new, 0)] {
        hits_again(&store, cookie, expected).await;
    }
    assert_eq!(read(&store, &ended).await, None);
}

pub async fn full_redis_still_serves_hits(links: &Links) {
    let (full, roomy) = (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]);
    refuses_writes(links.only(), &full, &roomy).await;
}

/// Checks that the store has left the cache, without a call for each request.
async fn is_left(link: &Link, store: &Store, health: CacheHealth) {
    let cookie = login(store).await;
    let (connections, errors) = (link.proxy.connections(), store.stats().cache_errors);
    let begun = Instant::now();
    for n in 1..=100 {
        assert_eq!(request(store, &cookie).await, n);
    }
    // A request that uses the cache makes four calls.
    let probes = 10 + u64::try_from(begun.elapsed().as_millis() / PROBE_INTERVAL.as_millis()).unwrap();
    assert!(link.proxy.connections() - connections <= probes, "it connects for each request");
    let errors = store.stats().cache_errors - errors;
    assert!(errors <= probes, "it calls the cache for each request: {errors} calls failed");
    assert!(store.stats().breaker_openings >= 1);
    assert_eq!(store.ping().await.unwrap().cache, health);
}

/// Checks that a store leaves a cache that refuses every call, says once what to do, and comes back when `mend` has mended
/// that. A password of the URL is shown by nothing.
async fn refused_cache_is_left(
    links: &Links,
    url: &str,
    advice: &str,
    password: Option<&str>,
    mend: Option<&[&str]>,
    redis: &mut MultiplexedConnection,
) {
    links.take_logged("cache_unusable");
    let store = store(url).await;
    let (cookie, ended) = (login(&store).await, login(&store).await);
    assert_eq!(request(&store, &cookie).await, 1);
    logs_out(&store, &ended).await;
    is_left(links.only(), &store, CacheHealth::Unusable).await;
    assert_eq!(store.stats().hits, 0);
    let told = links.take_logged("cache_unusable");
    assert!(told.len() == 1 && told[0].starts_with("WARN"), "{told:?}");
    assert!(told[0].contains(advice), "{told:?} does not say {advice}");
    if let Some(password) = password {
        assert!(!format!("{store:?} {told:?}").contains(password));
    }
    if let Some(mend) = mend {
        ask::<()>(redis, mend).await;
        hits_again(&store, &cookie, 1).await;
        assert_eq!(read(&store, &ended).await, None);
        assert_eq!(store.ping().await.unwrap().cache, CacheHealth::Up);
    }
}

pub async fn wrong_password_costs_the_cache_and_no_session(links: &Links) {
    let link = links.only();
    let url = link.url.replace("sessions:conformance@", "sessions:wr0ng@");
    assert_ne!(url, link.url);
    let mend = ["ACL", "SETUSER", "sessions", ">wr0ng"];
    let advice = "check the user and the password";
    refused_cache_is_left(links, &url, advice, Some("wr0ng"), Some(&mend), &mut redis(link).await).await;
}

/// The password is changed, and everyone who had logged in with the former one is sent away. It is read again where
/// the new one is written.
pub async fn expired_password_costs_the_cache_until_the_new_one_is_there(links: &Links) {
    let (link, mut redis) = (links.only(), redis(links.only()).await);
    ask::<()>(&mut redis, &["ACL", "SETUSER", "app", "on", ">first", "~session:*", "+@all"]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "first").unwrap();
    let url = link.url.replace("sessions:conformance@", "app@");
    let store = store(&format!("{url}?password_file={}", file.display())).await;
    let (kept, ended) = (login(&store).await, login(&store).await);
    hits_again(&store, &kept, 0).await;
    links.take_logged("cache_unusable");
    ask::<()>(&mut redis, &["ACL", "SETUSER", "app", "resetpass", ">second"]).await;
    ask::<()>(&mut redis, &["CLIENT", "KILL", "USER", "app"]).await;
    assert_eq!(request(&store, &kept).await, 1);
    logs_out(&store, &ended).await;
    is_left(link, &store, CacheHealth::Unusable).await;
    let told = links.take_logged("cache_unusable");
    assert!(told.len() == 1 && told[0].contains("check the user and the password"), "{told:?}");
    std::fs::write(&file, "second").unwrap();
    hits_again(&store, &kept, 1).await;
    assert_eq!(read(&store, &ended).await, None);
    assert_eq!(store.ping().await.unwrap().cache, CacheHealth::Up);
}

pub async fn forbidden_commands_of_redis_cost_the_cache_and_no_session(links: &Links) {
    let (link, mut redis) = (links.only(), redis(links.only()).await);
    for (rights, mended, advice) in [
        (vec!["-eval", "-evalsha"], vec!["+eval", "+evalsha"], "+eval +evalsha"),
        (vec!["-set"], vec!["+set"], "+set"),
        (vec!["-get"], vec!["+get"], "+get"),
        (vec!["resetkeys", "~another:*"], vec!["~session:*"], "the cache's prefix"),
        // Without these, version and role are not known.
        (vec!["-@all", "+get", "+set", "+evalsha"], vec!["+eval", "+del"], "+eval"),
    ] {
        ask::<()>(
            &mut redis,
            &[&["ACL", "SETUSER", "app", "reset", "on", ">pw", "~session:*", "+@all"], &*rights].concat(),
        )
        .await;
        ask::<()>(&mut redis, &["SCRIPT", "FLUSH"]).await;
        let url = link.url.replace("sessions:conformance@", "app:pw@");
        let mend = [&["ACL", "SETUSER", "app"], &*mended].concat();
        refused_cache_is_left(links, &url, advice, Some("pw@"), Some(&mend), &mut redis).await;
    }
}

/// Another server in the same container, which the file of its settings has left without a command.
pub async fn renamed_commands_of_redis_cost_the_cache_and_no_session(links: &Links) {
    let certificate = links.only().direct.split_once("root_certificates=").unwrap().1;
    let directory = certificate.split_once("/ca.pem").unwrap().0.to_owned();
    for (number, commands) in [&["EVAL", "EVALSHA"][..], &["GET"], &["SET"]].into_iter().enumerate() {
        let renamed: String =
            commands.iter().map(|command| format!(" --rename-command {command} RENAMED_{command}")).collect();
        let socket = format!("/tls/renamed-{number}.sock");
        let start = format!(
            "redis-server --save '' --port 0 --unixsocket {socket} --unixsocketperm 777 --daemonize yes{renamed}; \
             until redis-cli -s {socket} PING; do sleep 0.1; done"
        );
        links.run("redis-tls", &start).await;
        let url = format!("redis+unix://{}", socket.replace("/tls", &directory));
        let mut redis = Client::open(url.trim_start_matches("redis+"))
            .unwrap()
            .get_multiplexed_async_connection()
            .await
            .unwrap();
        refused_cache_is_left(links, &url, "Redis 7.0 or newer", None, None, &mut redis).await;
    }
}

pub async fn wrong_database_of_redis_costs_the_cache_and_no_session(links: &Links) {
    let link = links.only();
    // The number is no secret: clocks, ports and tokens in the store's Debug may contain it by chance.
    let url = format!("{}999", link.url);
    refused_cache_is_left(links, &url, "database", None, None, &mut redis(link).await).await;
}

/// Fails over behind one name: the old master lives on as a replica, and new connections reach the new one.
pub async fn redis_that_became_a_replica_is_left_for_the_new_master(links: &Links) {
    let (old, new) = (links.get("redis"), links.get("valkey"));
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("sessions.db").display());
    let (here, elsewhere) = (store_over(&old.url, &database).await, store_over(&old.url, &database).await);
    let (kept, ended) = (login(&here).await, login(&here).await);
    for store in [&here, &elsewhere] {
        hits_again(store, &kept, 0).await;
    }
    // A replica of a server that does not exist, so it keeps its entries.
    ask::<()>(&mut redis(old).await, &["REPLICAOF", "127.0.0.1", "1"]).await;
    old.proxy.lead_to(crate::address(&new.direct));
    let begun = Instant::now();
    assert_eq!(request(&here, &kept).await, 1);
    logs_out(&here, &ended).await;
    let of_requests = begun.elapsed();
    assert!(of_requests < Duration::from_secs(2), "it took {of_requests:?}");
    hits_again(&here, &kept, 1).await;
    eprintln!("two requests in {of_requests:?}, hits again after {:?}", begun.elapsed());
    hits_again(&elsewhere, &kept, 1).await;
    assert_eq!(read(&elsewhere, &ended).await, None);
    let degraded = here.stats().degraded_writes;
    assert_eq!(request(&here, &kept).await, 2);
    assert_eq!(read(&elsewhere, &kept).await, Some(2), "the replica was read");
    assert_eq!(here.stats().degraded_writes, degraded);
}

/// There is no new master, so the replica is all that the name leads to.
pub async fn replica_of_redis_is_not_read(links: &Links) {
    let (link, mut redis) = (links.only(), redis(links.only()).await);
    let store = store(&link.url).await;
    let (kept, ended) = (login(&store).await, login(&store).await);
    hits_again(&store, &kept, 0).await;
    ask::<()>(&mut redis, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let before = store.stats();
    for n in 1..=5 {
        assert_eq!(request(&store, &kept).await, n);
    }
    logs_out(&store, &ended).await;
    assert_eq!(store.stats().hits, before.hits, "the replica was read");
    links.take_logged("cache_breaker_opened");
    is_left(link, &store, CacheHealth::Down).await;
    ask::<()>(&mut redis, &["REPLICAOF", "NO", "ONE"]).await;
    hits_again(&store, &kept, 5).await;
    assert_eq!(read(&store, &ended).await, None);
}

pub async fn flushed_scripts_are_sent_again(links: &Links) {
    let (store, mut redis) = (store(&links.only().url).await, redis(links.only()).await);
    let cookie = login(&store).await;
    for n in 1..=3 {
        ask::<()>(&mut redis, &["SCRIPT", "FLUSH"]).await;
        assert_eq!(request(&store, &cookie).await, n);
        let before = store.stats();
        assert_eq!(read(&store, &cookie).await, Some(n));
        assert_eq!(store.stats().hits, before.hits + 1, "the save left no entry");
    }
    assert_eq!(store.stats().cache_errors, 0);
}

pub async fn foreign_values_in_redis_are_no_sessions(links: &Links) {
    let (store, mut redis) = (store(&links.only().url).await, redis(links.only()).await);
    let (cookie, other) = (login(&store).await, login(&store).await);
    hits_again(&store, &cookie, 0).await;
    hits_again(&store, &other, 0).await;
    let keys: Vec<String> = ask(&mut redis, &["KEYS", "*"]).await;
    assert_eq!(keys.len(), 2);
    for (strange, n) in [(["SET", "KEY", "something else"], 0), (["LPUSH", "KEY", "a list"], 1)] {
        for key in &keys {
            ask::<()>(&mut redis, &["DEL", key]).await;
            ask::<()>(&mut redis, &[strange[0], key, strange[2]]).await;
        }
        assert_eq!(read(&store, &cookie).await, Some(n));
        assert_eq!(request(&store, &cookie).await, n + 1);
        hits_again(&store, &cookie, n + 1).await;
    }
    // The entry of one session is not served under another key.
    let bytes: Vec<u8> = cmd("GET").arg(key_of(&keys, &cookie)).query_async(&mut redis).await.unwrap();
    let (): () = cmd("SET").arg(key_of(&keys, &other)).arg(bytes).query_async(&mut redis).await.unwrap();
    assert_eq!(read(&store, &other).await, Some(0), "the session of another key was served");
}

/// Returns the cache key of `cookie`.
fn key_of<'a>(keys: &'a [String], cookie: &str) -> &'a str {
    let stored = stored(cookie);
    keys.iter().find(|key| key.ends_with(stored.as_str())).unwrap()
}

pub fn stored(cookie: &str) -> StoredKey {
    StoredKey::derive(&SessionKey::parse(cookie).unwrap(), KeyForm::Hashed, &KeyPrefix::NONE).unwrap()
}

pub async fn foreign_values_in_memcached_are_no_sessions(links: &Links) {
    let store = store(&links.only().url).await;
    let cookie = login(&store).await;
    hits_again(&store, &cookie, 0).await;
    let address = links.only().direct.trim_start_matches("memcache://").to_owned();
    let client = MetaClient::builder().connect_async(address).await.unwrap();
    let name = format!("session:{}", stored(&cookie).as_str());
    assert!(
        client.run(Get::new(name.clone())).await.unwrap().value.is_some(),
        "the cache has another name for it"
    );
    let done =
        client.run(Set::new(name, b"something else").ttl(Ttl::from(Duration::from_secs(60)))).await.unwrap();
    assert_eq!(done.status, MutationStatus::Applied);
    assert_eq!(read(&store, &cookie).await, Some(0));
    assert_eq!(request(&store, &cookie).await, 1);
    hits_again(&store, &cookie, 1).await;
}
