//! Reports of written sessions.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use db_backends::postgres::PostgresPersistence;
use db_backends::sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use db_backends::sqlx::{AssertSqlSafe, Connection as _, query, raw_sql};
use session_core::{
    DatabaseChannel, ExpiryWrite, NoticeListener, Persistence, PersistenceError, RecordWrite, StoredKey,
    Timestamp,
};

use crate::pgbouncer::{Mode, PgBouncer};
use crate::proxy::Proxy;
use crate::server::{Kind, LATER, NOW, Server, record};

/// The keys that were reported since they were last taken.
#[derive(Debug, Default)]
struct Heard(Mutex<BTreeSet<String>>);

impl Heard {
    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl NoticeListener for Heard {
    fn changed(&self, key: &StoredKey) {
        self.0.lock().unwrap().insert(key.as_str().to_owned());
    }

    fn all_changed(&self) {
        self.0.lock().unwrap().insert("*".to_owned());
    }

    fn ignored(&self) {
        self.0.lock().unwrap().insert("ignored".to_owned());
    }
}

/// Returns a key that is as long as a hashed one.
fn key(name: &str) -> StoredKey {
    StoredKey::parse(&format!("{name:-<43}")).unwrap()
}

fn keys<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(|name| key(name).as_str().to_owned()).into()
}

async fn connect(server: &Server) -> PostgresPersistence {
    let db = PostgresPersistence::builder().table(&server.table).connect(&server.url).await.unwrap();
    db.migrate().await.unwrap();
    db
}

type Channel = Box<dyn DatabaseChannel>;

async fn try_to_listen(db: &PostgresPersistence) -> Result<(Channel, Arc<Heard>), PersistenceError> {
    let heard = Arc::new(Heard::default());
    let channel = db.notify().unwrap().open_channel(Arc::clone(&heard) as _).await?;
    Ok((channel, heard))
}

async fn listen(db: &PostgresPersistence) -> (Channel, Arc<Heard>) {
    try_to_listen(db).await.unwrap()
}

/// A handle that reports what it writes.
async fn writer(server: &Server) -> PostgresPersistence {
    let db = connect(server).await;
    drop(db.notify().unwrap());
    db
}

/// Makes every write once, and checks after each that it is reported before a later ping ends.
async fn check_every_write(db: &PostgresPersistence, channel: &Channel, heard: &Heard) {
    let (a, b, always) = (key("a"), key("b"), Timestamp::MAX);
    db.insert(&a, &record("1")).await.unwrap();
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), keys(["a"]), "after an insert");
    for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
        db.update(&a, RecordWrite::new(&record("2")).with_expiry(expiry), NOW).await.unwrap();
        channel.ping().await.unwrap();
        assert_eq!(heard.take(), keys(["a"]), "after an update");
    }
    assert!(db.touch(&a, LATER, always, NOW).await.unwrap());
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), keys(["a"]), "after a touch");
    for (old, new, expiry) in [(&a, &b, ExpiryWrite::Extend), (&b, &a, ExpiryWrite::Replace)] {
        db.rename(old, new, RecordWrite::new(&record("3")).with_expiry(expiry), NOW).await.unwrap();
        channel.ping().await.unwrap();
        assert_eq!(heard.take(), keys(["a", "b"]), "after a rename");
    }
    assert!(db.delete(&a).await.unwrap());
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), keys(["a"]), "after a delete");
}

pub async fn every_write_is_reported_before_a_later_ping_ends(server: Server) {
    let (db, other) = (writer(&server).await, connect(&server).await);
    let (channel, heard) = listen(&other).await;
    check_every_write(&db, &channel, &heard).await;
}

pub async fn every_write_over_an_applications_pool_is_reported(server: Server) {
    let other = connect(&server).await;
    let options: PgConnectOptions = server.url.parse().unwrap();
    let pool = PgPoolOptions::new().max_connections(3).connect_with(options).await.unwrap();
    let pooled = PostgresPersistence::builder().table(&server.table).on_pool(pool).unwrap();
    let (_own, _) = listen(&pooled).await;
    let (channel, heard) = listen(&other).await;
    check_every_write(&pooled, &channel, &heard).await;
}

pub async fn write_that_changes_nothing_is_not_reported(server: Server) {
    let (db, other) = (writer(&server).await, connect(&server).await);
    let (a, b) = (key("a"), key("b"));
    db.insert(&a, &record("1")).await.unwrap();
    let (channel, heard) = listen(&other).await;
    assert!(matches!(db.insert(&a, &record("2")).await, Err(PersistenceError::AlreadyExists)));
    db.update(&b, RecordWrite::new(&record("2")), NOW).await.unwrap_err();
    db.rename(&b, &a, RecordWrite::new(&record("2")), NOW).await.unwrap_err();
    assert!(!db.touch(&a, LATER, Timestamp::from_secs(0), NOW).await.unwrap());
    assert!(!db.delete(&b).await.unwrap());
    db.load(&a, NOW).await.unwrap();
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), keys([]));
}

/// Every role of the database can listen, and what is shorter than a hashed key may be a key that opens its session.
pub async fn key_that_may_be_a_sessions_own_is_not_told(server: Server) {
    let (db, other) = (writer(&server).await, connect(&server).await);
    let (plain, hashed) = (StoredKey::parse("k3jx0a5e2mq8wz7rt1yv9pb4dn6cshfg").unwrap(), key("hashed"));
    let (channel, heard) = listen(&other).await;
    let any = || BTreeSet::from(["*".to_owned()]);
    db.insert(&plain, &record("1")).await.unwrap();
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), any(), "after an insert");
    db.rename(&plain, &hashed, RecordWrite::new(&record("2")), NOW).await.unwrap();
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), &any() | &keys(["hashed"]), "after a rename");
}

/// More than fit into one report.
pub async fn each_of_many_reaped_sessions_is_reported(server: Server) {
    let (db, other) = (writer(&server).await, connect(&server).await);
    let names: Vec<String> = (0..250).map(|n| format!("{n:0>64}")).collect();
    for name in &names {
        db.insert(&StoredKey::parse(name).unwrap(), &record("1").with_expires_at(NOW)).await.unwrap();
    }
    db.insert(&key("lives"), &record("1")).await.unwrap();
    let (channel, heard) = listen(&other).await;
    assert_eq!(db.delete_expired(NOW, 1_000).await.unwrap().count, 250);
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), names.into_iter().collect());
    assert_eq!(db.delete_expired(NOW, 1_000).await.unwrap().count, 0);
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), keys([]));
}

pub async fn handle_does_not_hear_itself_and_listens_once(server: Server) {
    let (db, other) = (connect(&server).await, writer(&server).await);
    let source = db.notify().unwrap();
    let refused = db.notify().unwrap_err();
    assert!(refused.contains("connect once for each store"), "{refused}");
    let heard = Arc::new(Heard::default());
    let channel = source.open_channel(Arc::clone(&heard) as _).await.unwrap();
    db.insert(&key("own"), &record("1")).await.unwrap();
    other.insert(&key("others"), &record("1")).await.unwrap();
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), keys(["others"]));
    drop(channel);
    let (channel, heard) = listen(&db).await;
    other.delete(&key("own")).await.unwrap();
    channel.ping().await.unwrap();
    assert_eq!(heard.take(), keys(["own"]));
}

/// Beside two noisy writers.
pub async fn confirmed_writes_are_reported_before_a_ping_ends(server: Server) {
    let (db, other) = (Arc::new(writer(&server).await), connect(&server).await);
    let (channel, heard) = listen(&other).await;
    for name in ["noise-0", "noise-1"] {
        let (db, noise) = (Arc::clone(&db), key(name));
        db.insert(&noise, &record("0")).await.unwrap();
        tokio::spawn(
            async move { while db.update(&noise, RecordWrite::new(&record("1")), NOW).await.is_ok() {} },
        );
    }
    let a = key("a");
    db.insert(&a, &record("0")).await.unwrap();
    for n in 0..500 {
        heard.take();
        db.update(&a, RecordWrite::new(&record("1")), NOW).await.unwrap();
        channel.ping().await.unwrap();
        assert!(heard.take().contains(a.as_str()), "write {n} was not reported");
    }
}

/// The next ping after a cut, and every later one, fails.
pub async fn channel_that_was_cut_fails_every_call(server: Server) {
    let proxy = Proxy::to(server.address()).await;
    let through = server.through(&proxy);
    let (db, other) = (writer(&server).await, connect(&through).await);
    let (channel, heard) = listen(&other).await;
    proxy.cut();
    let begun = Instant::now();
    while channel.ping().await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the cut is not noticed");
    }
    db.insert(&key("a"), &record("1")).await.unwrap();
    channel.ping().await.unwrap_err();
    assert_eq!(heard.take(), keys([]));
}

pub async fn pooler_that_passes_no_reports_is_refused_with_the_remedy(server: Server) {
    let bouncer = PgBouncer::before(&server.url, Mode::Transaction, 4, &[]).await;
    let through = crate::pooler::through(&bouncer, &server);
    let (db, other) = (writer(&through).await, connect(&through).await);
    let refused = try_to_listen(&other).await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("pooler in session mode"), "{refused}");
    // A writer may be behind any pooler.
    let direct = connect(&server).await;
    let (channel, heard) = listen(&direct).await;
    check_every_write(&db, &channel, &heard).await;
}

pub async fn pooler_in_session_mode_passes_reports(server: Server) {
    let bouncer = PgBouncer::before(&server.url, Mode::Session, 16, &[]).await;
    let through = crate::pooler::through(&bouncer, &server);
    let (db, other) = (writer(&through).await, connect(&through).await);
    let (channel, heard) = listen(&other).await;
    check_every_write(&db, &channel, &heard).await;
}

pub async fn database_that_cannot_report_says_so(server: Server) {
    let db = server.database().await;
    let refused = db.notify_dyn().map(drop);
    assert_eq!(refused.is_ok(), server.kind == Kind::Postgres, "{refused:?}");
    assert!(refused.err().is_none_or(|reason| reason.contains("as Postgres can")));
}

/// Every role that may connect to the database can notify, too.
pub async fn report_that_names_no_session_is_ignored(server: Server) {
    let (db, other) = (writer(&server).await, connect(&server).await);
    let (channel, heard) = listen(&other).await;
    let mut stranger = PgConnection::connect(&server.url).await.unwrap();
    let name = format!("notices_{}", server.table);
    let strange = [
        String::new(),
        " ".to_owned(),
        "a".to_owned(),
        "tag ".to_owned(),
        "tag \u{1}".to_owned(),
        "tag \u{1}one".to_owned(),
        "tag \u{1}99999999999999999999999".to_owned(),
        "tag schlüssel".to_owned(),
        "tag two\nlines".to_owned(),
        format!("tag {}", "a".repeat(7_990)),
        "é".repeat(3_999),
    ];
    for (n, payload) in strange.iter().enumerate() {
        let notify = query("SELECT pg_notify($1, $2)").bind(&name).bind(payload);
        notify.execute(&mut stranger).await.unwrap();
        channel.ping().await.unwrap();
        // A number that is none of this handle's probes says nothing, and is nothing strange.
        let expected = if payload.contains('\u{1}') { keys([]) } else { ["ignored".to_owned()].into() };
        assert_eq!(heard.take(), expected, "payload {n}");
    }
    // Of a report that is partly strange, the rest counts. A key of another application in the same table is a key.
    let key_of_another = format!("other.{}", "k".repeat(37));
    let partly = format!("tag ü {} {key_of_another} *", key("a").as_str());
    query("SELECT pg_notify($1, $2)").bind(&name).bind(partly).execute(&mut stranger).await.unwrap();
    channel.ping().await.unwrap();
    let rest = ["ignored", "*", &key_of_another].map(str::to_owned);
    assert_eq!(heard.take(), &keys(["a"]) | &rest.into());
    check_every_write(&db, &channel, &heard).await;
}

/// Such a database passes on any bytes, and the driver panics at those that are no text.
pub async fn database_without_an_encoding_is_refused_with_the_remedy(server: Server) {
    let name = format!("bytes_{}", server.table);
    let mut admin = PgConnection::connect(&server.url).await.unwrap();
    let create =
        format!("CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    let (before, _) = server.url.rsplit_once('/').unwrap();
    let within = Server { kind: server.kind, url: format!("{before}/{name}"), table: server.table.clone() };
    let db = connect(&within).await;
    let listening = try_to_listen(&db).await;
    let outcome = match listening {
        Ok((channel, _)) => {
            let mut stranger = PgConnection::connect(&within.url).await.unwrap();
            let notify = format!("NOTIFY notices_{}, E'tag \\377'", within.table);
            raw_sql(AssertSqlSafe(notify)).execute(&mut stranger).await.unwrap();
            channel.ping().await.map_err(|error| format!("the channel is lost: {error}"))
        }
        Err(refused) => Err(refused.to_string()),
    };
    drop(db);
    raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut admin).await.unwrap();
    let refused = outcome.unwrap_err();
    assert!(refused.contains("SQL_ASCII"), "{refused}");
}
