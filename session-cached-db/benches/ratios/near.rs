//! Near caches in front of Redis: hits, writes, and how far other nodes are behind.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use session_cached_db::session_core::{Cache, Record, StoredKey};
use session_cached_db::{CachedDb, NearCache, RedisCache, Session, SqlitePersistence, near};

use crate::Effort;
use crate::figure::{Aim, Report, Times, timed};
use crate::sessions::{SESSIONS, Stored, create, moka, values};
use crate::staleness::{self, BOUND, shared};

/// Number of saves of a round, and of deletes of a measurement.
const SAVES: usize = 200;

type Near = CachedDb<NearCache<RedisCache>, SqlitePersistence>;
type Raw = moka::sync::Cache<StoredKey, Arc<Record>>;

pub(crate) async fn measure(effort: Effort, report: &mut Report) {
    let Ok(url) = std::env::var("CONFORMANCE_REDIS_URL") else {
        return report.skip("near_*", "CONFORMANCE_REDIS_URL is not set");
    };
    let dir = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}/bench.db", dir.path().display());
    let db = async || SqlitePersistence::connect(&database).await.unwrap();
    let far = CachedDb::builder(shared(&url), db().await).reaper(None).build().await.unwrap();
    let node = async || -> Near {
        let cache = near(moka(), shared(&url));
        CachedDb::builder(cache, db().await).reaper(None).build().await.unwrap()
    };
    eprintln!("near: making {SESSIONS} sessions");
    let sessions = create(&far, SESSIONS).await;
    let here = node().await;
    let raw = Raw::new(1 << 20);
    for session in &sessions {
        raw.insert(session.key, far.load(&session.key).await.unwrap().unwrap());
    }
    hits(&here, &far, &raw, &sessions, effort, report).await;
    let what = "save with a near cache on one node, against without one";
    saves("near_save", Aim::AtMost(1.1), what, std::slice::from_ref(&here), &far, &sessions, effort, report)
        .await;
    let nodes = [here.clone(), node().await, node().await, node().await];
    let what = "the same, with four nodes that all have the session in memory";
    saves("near_save_4", Aim::AtMost(1.2), what, &nodes, &far, &sessions, effort, report).await;
    deletes(&here, effort, report).await;
    staleness::measure(&url, effort, report).await;
}

/// Loads until memory has the session. Memory does not answer until a ping was answered.
async fn warm(node: &Near, key: &StoredKey) {
    loop {
        let before = node.stats().near_hits;
        black_box(node.load(key).await.unwrap().unwrap());
        if node.stats().near_hits > before {
            return;
        }
    }
}

async fn hits(
    here: &Near,
    far: &CachedDb<RedisCache, SqlitePersistence>,
    raw: &Raw,
    sessions: &[Stored],
    effort: Effort,
    report: &mut Report,
) {
    for session in sessions {
        warm(here, &session.key).await;
    }
    let (mut hit, mut against_redis) = (Vec::new(), Vec::new());
    let before = here.stats();
    for _ in 0..2 * effort.rounds {
        let raw_time = timed(async {
            for session in sessions {
                black_box(raw.get(&session.key));
            }
        });
        let raw_time = raw_time.await;
        let hit_time = timed(async {
            for session in sessions {
                black_box(here.load(&session.key).await.unwrap());
            }
        });
        let hit_time = hit_time.await;
        hit.push(hit_time / raw_time);

        let mut redis = Times::default();
        for session in &sessions[..1_000] {
            redis.time(async { black_box(far.load(&session.key).await.unwrap()) }).await;
        }
        against_redis.push(redis.median() / (hit_time / sessions.len() as f64));
    }
    let after = here.stats();
    let share = (after.near_hits - before.near_hits) as f64 / (2 * effort.rounds * sessions.len()) as f64;
    assert!(share > 0.99, "memory answered only {share:.3} of the loads");
    let what = "load, hit in the near cache over Redis, against a raw moka get of an Arc";
    report.add("near_hit", Aim::AtMost(1.35), what, hit);
    let what = "load, hit in Redis alone, against a hit in the near cache";
    report.add("near_hit_vs_redis_hit", Aim::AtLeast(100.0), what, against_redis);

    let key = &sessions[0].key;
    warm(here, key).await;
    // Other tasks of this thread allocate now and then, and so does a load while memory is not fresh.
    let least = |work: &dyn Fn()| {
        let counted = (0..5).map(|_| allocation_counter::measure(|| (0..1_000).for_each(|_| work())));
        counted.map(|counted| counted.count_total).min().unwrap_or_default() as f64 / 1_000.0
    };
    let of_moka = least(&|| drop(black_box(raw.get(key))));
    let counted = least(&|| drop(black_box(here.load(key).now_or_never())));
    eprintln!("near: {counted} allocations for each hit, {of_moka} for each get of moka");
    // After so many gets, moka puts them into the order of their use, which allocates.
    let what = "counted, near cache, load to Arc, beyond those of a raw moka get";
    report.add("near_allocations_per_hit", Aim::AtMost(0.0), what, vec![counted - of_moka]);
}

/// Saves through the first of `nodes`, and without a near cache, in turn.
#[allow(clippy::too_many_arguments, reason = "a figure, and its world")]
async fn saves(
    name: &str,
    aim: Aim,
    what: &'static str,
    nodes: &[Near],
    far: &CachedDb<RedisCache, SqlitePersistence>,
    sessions: &[Stored],
    effort: Effort,
    report: &mut Report,
) {
    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let (mut with, mut without) = (Times::default(), Times::default());
        for n in 0..SAVES {
            let [one, other] =
                [2 * n, 2 * n + 1].map(|n| &sessions[(round * 2 * SAVES + n) % sessions.len()]);
            for node in nodes {
                warm(node, &one.key).await;
            }
            save(&nodes[0], &one.cookie, &mut with).await;
            black_box(far.load(&other.key).await.unwrap());
            save(far, &other.cookie, &mut without).await;
        }
        rounds.push(with.median() / without.median());
    }
    report.add(name, aim, what, rounds);
}

async fn save<C: Cache>(store: &CachedDb<C, SqlitePersistence>, cookie: &str, times: &mut Times) {
    let mut session: Session = store.open(cookie).await.unwrap();
    session.insert("field-1", fastrand::u64(..)).unwrap();
    let _ = times.time(session.save()).await.unwrap();
}

async fn deletes(here: &Near, effort: Effort, report: &mut Report) {
    let mut rounds = Vec::new();
    for number in 0..4 * effort.rounds {
        let mut session = here.new_session();
        session.update(values(number)).unwrap();
        let _ = session.save().await.unwrap();
        warm(here, session.stored_key().unwrap()).await;
        let begun = Instant::now();
        let _ = session.flush().await.unwrap();
        rounds.push(begun.elapsed().as_secs_f64() / BOUND.as_secs_f64());
    }
    report.add(
        "near_delete",
        Aim::AtMost(1.1),
        "final delete, against the freshness bound of 100 ms",
        rounds,
    );
}
