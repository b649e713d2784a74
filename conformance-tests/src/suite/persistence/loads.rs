//! Loading a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use session_core::{Persistence, Record, RecordWrite};
use tokio::sync::Barrier;

use super::{NOW, PersistenceFixture, insert, key, load, nodes, record, replace, subject};
use crate::suite::case::cases;

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    absent_session_is_not_found => "Returns the session under `key`, or `None` if there is none.",
    inserted_session_is_found_on_every_node => "What one call has committed, every later call sees",
    updated_session_is_found_on_every_node => "What one call has committed, every later call sees",
    deleted_session_is_found_on_no_node => "What one call has committed, every later call sees",
    load_sees_everything_committed_before_it => "Reads committed state, in a snapshot",
    load_sees_whole_writes_only => "Every write is one statement",
}

pub async fn absent_session_is_not_found(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    insert(&db, &key(), &record("1{}")).await;
    assert_eq!(load(&db, &key(), NOW).await, None);
}

pub async fn inserted_session_is_found_on_every_node(fixture: &impl PersistenceFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    assert_eq!(load(&there, &key, NOW).await, None);
    let stored = insert(&here, &key, &record("1{}")).await;
    assert_eq!(load(&there, &key, NOW).await, Some(stored.clone()));
    assert_eq!(load(&here, &key, NOW).await, Some(stored));
}

pub async fn updated_session_is_found_on_every_node(fixture: &impl PersistenceFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    insert(&here, &key, &record("0")).await;
    for n in 1..20 {
        let (writer, reader) = if n % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let version = replace(writer, &key, &record(n.to_string()), NOW).await;
        for node in [reader, writer] {
            let found = load(node, &key, NOW).await.expect("it is there");
            assert_eq!((found.payload().as_ref(), found.version()), (n.to_string().as_bytes(), version));
        }
    }
}

pub async fn deleted_session_is_found_on_no_node(fixture: &impl PersistenceFixture) {
    let (here, there) = (fixture.open().await, fixture.open().await);
    for _ in 0..10 {
        let key = key();
        insert(&here, &key, &record("1{}")).await;
        assert!(load(&there, &key, NOW).await.is_some());
        here.delete(&key).await.expect("the database answers");
        for node in [&there, &here] {
            assert_eq!(load(node, &key, NOW).await, None, "a deleted session is found");
        }
    }
}

/// One node writes increasing numbers and publishes the last one. The others must find no lower number.
pub async fn load_sees_everything_committed_before_it(fixture: &impl PersistenceFixture) {
    const LAST: u64 = 60;
    let (nodes, key) = (nodes(fixture).await, key());
    insert(&*nodes[0], &key, &record("0")).await;
    let committed = Arc::new(AtomicU64::new(0));
    let start = Arc::new(Barrier::new(nodes.len()));
    let readers = nodes[1..].iter().map(|node| {
        let (node, committed, start) = (Arc::clone(node), Arc::clone(&committed), Arc::clone(&start));
        tokio::spawn(async move {
            assert!(load(&*node, &key, NOW).await.is_some());
            start.wait().await;
            loop {
                let floor = committed.load(Ordering::SeqCst);
                let found = number(&load(&*node, &key, NOW).await.expect("it is there"));
                assert!(found >= floor, "{floor} was committed before the load began, but it found {found}");
                if floor == LAST {
                    break;
                }
            }
        })
    });
    let readers = readers.collect::<Vec<_>>();
    start.wait().await;
    for n in 1..=LAST {
        replace(&*nodes[0], &key, &record(n.to_string()), NOW).await;
        committed.store(n, Ordering::SeqCst);
    }
    for reader in readers {
        reader.await.expect("no load found an older state than had been committed");
    }
}

fn number(record: &Record) -> u64 {
    std::str::from_utf8(record.payload()).unwrap().parse().unwrap()
}

/// Payload, subject and last use of each write belong together, so they must belong together in every loaded
/// record.
pub async fn load_sees_whole_writes_only(fixture: &impl PersistenceFixture) {
    let (nodes, key) = (nodes(fixture).await, key());
    let of_number = |n: u64| {
        record(n.to_string())
            .with_subject(subject(&n.to_string()))
            .with_last_seen_at(NOW + Duration::from_secs(n))
    };
    insert(&*nodes[0], &key, &of_number(0)).await;
    let writer = {
        let node = Arc::clone(&nodes[0]);
        tokio::spawn(async move {
            for n in 1..60 {
                node.update(&key, RecordWrite::new(&of_number(n)), NOW).await.expect("it is there");
            }
        })
    };
    while !writer.is_finished() {
        for node in &nodes[1..] {
            let found = load(&**node, &key, NOW).await.expect("it is there");
            let n = number(&found);
            let whole = of_number(n);
            assert_eq!(
                (found.subject(), found.last_seen_at()),
                (whole.subject(), whole.last_seen_at()),
                "the loaded record mixes two writes, one of them {n}"
            );
        }
    }
    writer.await.expect("the writer finishes");
}
