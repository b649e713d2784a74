//! Saves that Postgres reports to other nodes.

use std::time::Duration;

use session_cached_db::db_backends::sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, raw_sql};
use session_cached_db::session_core::Cache;
use session_cached_db::{CachedDb, PostgresPersistence, notified};

use crate::Effort;
use crate::figure::{Aim, IN_FLIGHT, Report, crowd, median};
use crate::sessions::{Stored, create, moka};

/// Number of saves of a round.
const SAVES: usize = 6_400;

const TABLE: &str = "bench_notified";

type Store<C> = CachedDb<C, PostgresPersistence>;

pub(crate) async fn measure(effort: Effort, report: &mut Report) {
    let Ok(url) = std::env::var("CONFORMANCE_POSTGRES_URL") else {
        return report.skip("notify_save", "CONFORMANCE_POSTGRES_URL is not set");
    };
    // A connection for each writer: otherwise their queue would hide that of the commits.
    let db = async || {
        let builder = PostgresPersistence::builder().table(TABLE).max_connections(IN_FLIGHT as u16);
        builder.connect(&url).await.unwrap()
    };
    let notified_store = CachedDb::builder(notified(moka()), db().await).reaper(None).build().await.unwrap();
    // Nodes that hear of every save.
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(CachedDb::builder(notified(moka()), db().await).reaper(None).build().await.unwrap());
    }
    let plain = CachedDb::builder(moka(), db().await).sole_process().reaper(None).build().await.unwrap();
    let mut admin = PgConnection::connect(&url).await.unwrap();
    let fsync: String = raw_sql("SHOW fsync").fetch_one(&mut admin).await.unwrap().get(0);
    let (of_notified, of_plain) = (create(&notified_store, SAVES).await, create(&plain, SAVES).await);
    let (mut ratios, mut rates) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..effort.rounds {
        let (with, without) = (saves(&notified_store, &of_notified).await, saves(&plain, &of_plain).await);
        ratios.push(with / without);
        rates[0].push(SAVES as f64 / with);
        rates[1].push(SAVES as f64 / without);
    }
    let what = "save that Postgres reports to 3 other nodes, 64 writers, against one that it does not report";
    report.add("notify_save", Aim::None, what, ratios);
    let [with, without] = rates.map(|rate| median(&rate));
    eprintln!("notified: {with:.0} saves/s with reports, {without:.0} without, with fsync {fsync}");
    notified_store.close().await;
    let drop_table = format!("DROP TABLE {TABLE}, {TABLE}_schema, {TABLE}_rotations");
    let drop_table = AssertSqlSafe(drop_table);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _ = raw_sql(drop_table).execute(&mut admin).await;
}

/// Returns the time that all writers together take for one save of each session, in seconds.
async fn saves<C: Cache>(store: &Store<C>, sessions: &[Stored]) -> f64 {
    let opened = sessions.iter().map(|session| session.cookie.clone()).collect::<Vec<_>>();
    crowd(&opened, |cookies| {
        let store = store.clone();
        async move {
            for cookie in cookies {
                let mut session = store.open(&cookie).await.unwrap();
                session.insert("field-1", fastrand::u64(..)).unwrap();
                let _ = session.save().await.unwrap();
            }
        }
    })
    .await
}
