//! Writers of one session at the same time.

use session_cached_db::{Coherence, ConflictPolicy, Error};

use super::{PairFixture, login, nodes, nodes_with, open, reach_every_node};
use crate::suite::case::cases;

cases! {
    /// Returns the cases of this part.
    for PairFixture:
    two_requests_that_change_different_keys_both_win,
    sixty_four_concurrent_saves_all_survive,
    many_writers_on_one_node_cause_no_outage_and_no_conflict,
    modifications_of_one_value_all_count_under_either_policy,
    counter_under_reject_counts_every_acknowledged_save,
    counter_under_last_write_refuses_no_save_and_keeps_the_last,
    last_write_stays_under_last_write,
}

pub async fn two_requests_that_change_different_keys_both_win(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let (mut one, mut other) = (open(&here, &key).await, open(&there, &key).await);
    one.insert("one", 1).unwrap();
    other.insert("other", 2).unwrap();
    one.save().await.unwrap();
    other.save().await.unwrap();
    reach_every_node(fixture).await;
    for node in [&here, &there] {
        let found = open(node, &key).await;
        assert_eq!((found.get("one").unwrap(), found.get("other").unwrap()), (Some(1), Some(2)));
    }
}

pub async fn sixty_four_concurrent_saves_all_survive(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let mut saves = Vec::new();
    for n in 0..64 {
        let mut session = open(if n % 2 == 0 { &here } else { &there }, &key).await;
        session.insert(&format!("key-{n}"), n).unwrap();
        saves.push(tokio::spawn(async move { session.save().await }));
    }
    for save in saves {
        save.await.unwrap().expect("a save of a key that no other save changes succeeds");
    }
    reach_every_node(fixture).await;
    for node in [&here, &there] {
        let found = open(node, &key).await;
        for n in 0..64 {
            assert_eq!(found.get(&format!("key-{n}")).unwrap(), Some(n), "an acknowledged save is lost");
        }
    }
}

pub async fn many_writers_on_one_node_cause_no_outage_and_no_conflict(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let mut crowd = Vec::new();
    for n in 0..64 {
        let mut session = open(&here, &key).await;
        session.insert(&format!("key-{n}"), n).unwrap();
        crowd.push(session);
    }
    let before = here.stats();
    let saves = crowd.into_iter().map(|mut session| tokio::spawn(async move { session.save().await }));
    for save in saves.collect::<Vec<_>>() {
        assert_eq!(save.await.unwrap().expect("it can be saved"), Coherence::Coherent);
    }
    let after = here.stats();
    assert_eq!((after.conflicts, after.degraded_writes), (before.conflicts, before.degraded_writes));
    assert_eq!(
        (after.misses, after.bypasses),
        (before.misses, before.bypasses),
        "a save read the session again"
    );
    for node in [&here, &there] {
        assert_eq!(open(node, &key).await.keys().filter(|key| key.starts_with("key-")).count(), 64);
    }
}

pub async fn modifications_of_one_value_all_count_under_either_policy(fixture: &impl PairFixture) {
    for policy in [ConflictPolicy::LastWrite, ConflictPolicy::Reject] {
        let (here, there) = nodes_with(fixture, policy).await;
        let (_, key) = login(&here).await;
        let mut shoppers = Vec::new();
        for n in 0..10 {
            let node = if n % 2 == 0 { &here } else { &there };
            let mut session = open(node, &key).await;
            session.modify("cart", move |cart: &mut Vec<u32>| cart.push(n)).unwrap();
            session.modify("count", |count: &mut u32| *count += 1).unwrap();
            shoppers.push(tokio::spawn(async move { session.save().await }));
        }
        for shopper in shoppers {
            shopper.await.unwrap().expect("a modification is applied to what another one has left");
        }
        reach_every_node(fixture).await;
        for node in [&here, &there] {
            let found = open(node, &key).await;
            let mut cart: Vec<u32> = found.get("cart").unwrap().unwrap_or_default();
            cart.sort_unstable();
            assert_eq!(cart, (0..10).collect::<Vec<_>>(), "an acknowledged modification is lost");
            assert_eq!(found.get("count").unwrap(), Some(10), "an acknowledged modification is lost");
        }
    }
}

pub async fn counter_under_reject_counts_every_acknowledged_save(fixture: &impl PairFixture) {
    let (here, there) = nodes_with(fixture, ConflictPolicy::Reject).await;
    let (_, key) = login(&here).await;
    let mut counters = Vec::new();
    for n in 0..4 {
        let (node, key) = (if n % 2 == 0 { here.clone() } else { there.clone() }, key.clone());
        counters.push(tokio::spawn(async move {
            let mut counted = 0;
            while counted < 5 {
                let mut session = open(&node, &key).await;
                let count: u32 = session.get("count").unwrap().unwrap_or(0);
                session.insert("count", count + 1).unwrap();
                match session.save().await {
                    Ok(_) => counted += 1,
                    Err(Error::Conflict) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    for counter in counters {
        counter.await.unwrap();
    }
    reach_every_node(fixture).await;
    assert_eq!(open(&there, &key).await.get::<u32>("count").unwrap(), Some(20));
}

pub async fn counter_under_last_write_refuses_no_save_and_keeps_the_last(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let mut counters = Vec::new();
    for n in 0..4 {
        let (node, key) = (if n % 2 == 0 { here.clone() } else { there.clone() }, key.clone());
        counters.push(tokio::spawn(async move {
            let mut last = 0;
            for _ in 0..5 {
                let mut session = open(&node, &key).await;
                let count: u32 = session.get("count").unwrap().unwrap_or(0);
                session.insert("count", count + 1).unwrap();
                session.save().await.expect("nothing is refused");
                last = session.get("count").unwrap().unwrap();
            }
            last
        }));
    }
    let mut lasts = Vec::new();
    for counter in counters {
        lasts.push(counter.await.unwrap());
    }
    reach_every_node(fixture).await;
    let count = open(&here, &key).await.get::<u32>("count").unwrap().unwrap();
    assert!(lasts.contains(&count), "{count} is not the last write of any counter: {lasts:?}");
    assert_eq!(
        open(&there, &key).await.get::<u32>("count").unwrap(),
        Some(count),
        "the nodes see different counts"
    );
}

pub async fn last_write_stays_under_last_write(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let (mut one, mut other) = (open(&here, &key).await, open(&there, &key).await);
    one.insert("theme", "dark").unwrap();
    other.insert("theme", "light").unwrap();
    one.save().await.unwrap();
    other.save().await.unwrap();
    reach_every_node(fixture).await;
    for node in [&here, &there] {
        assert_eq!(open(node, &key).await.get::<String>("theme").unwrap().as_deref(), Some("light"));
    }
}
