//! A session that has ended stays so.

use std::time::Duration;

use session_cached_db::Error;
use session_core::{Expiry, Timestamp};

use super::{PairFixture, assert_gone, cookie, every_node, login, nodes, open, reach_every_node, subject};
use crate::suite::case::cases;

cases! {
    /// Returns the cases of this part.
    for PairFixture:
    logout_is_final,
    running_request_cannot_bring_an_ended_session_back,
    rotated_key_opens_nothing,
    ended_session_cannot_be_rotated,
    logout_everywhere_reaches_every_node,
    logout_everywhere_spares_other_subjects,
    expired_session_is_served_by_no_node,
    shortened_session_ends_on_every_node,
    concurrent_logins_and_logouts_leave_no_session_open,
}

pub async fn logout_is_final(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    assert!(open(&there, &key).await.key().is_some());
    session.flush().await.unwrap();
    for node in [&there, &here, &there] {
        assert_gone(node, &key).await;
    }
}

pub async fn running_request_cannot_bring_an_ended_session_back(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    let mut running = open(&there, &key).await;
    session.flush().await.unwrap();
    running.insert("late", true).unwrap();
    assert!(matches!(running.save().await, Err(Error::SessionGone)));
    assert_gone(&here, &key).await;
    assert_gone(&there, &key).await;
}

pub async fn rotated_key_opens_nothing(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, old) = login(&here).await;
    assert!(open(&there, &old).await.key().is_some());
    session.insert("is_admin", true).unwrap();
    session.cycle_key().await.unwrap();
    let new = cookie(&session);
    assert_ne!(old, new);
    for node in [&here, &there] {
        assert_gone(node, &old).await;
        let found = open(node, &new).await;
        assert_eq!(found.get::<String>("name").unwrap().as_deref(), Some("Ada"));
        assert_eq!(found.get::<bool>("is_admin").unwrap(), Some(true));
    }
}

pub async fn ended_session_cannot_be_rotated(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    let mut running = open(&there, &key).await;
    session.flush().await.unwrap();
    assert!(matches!(running.cycle_key().await, Err(Error::SessionGone)));
    assert_gone(&there, &cookie(&running)).await;
}

pub async fn logout_everywhere_reaches_every_node(fixture: &impl PairFixture) {
    let (here, there) = every_node(fixture).await;
    let subject = subject();
    let mut keys = Vec::new();
    for n in 0..6 {
        let (mut session, _) = login(if n % 2 == 0 { &here } else { &there }).await;
        session.set_subject(&subject).unwrap();
        session.cycle_key().await.unwrap();
        keys.push(cookie(&session));
    }
    assert_eq!(there.list_by_subject(&subject).await.unwrap().len(), 6);
    assert_eq!(here.revoke_subject(&subject).await.unwrap().value, 6);
    for key in &keys {
        assert_gone(&here, key).await;
        assert_gone(&there, key).await;
    }
}

pub async fn logout_everywhere_spares_other_subjects(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut other, _) = login(&here).await;
    other.set_subject(&subject()).unwrap();
    other.save().await.unwrap();
    assert_eq!(there.revoke_subject(&subject()).await.unwrap().value, 0);
    assert!(open(&there, &cookie(&other)).await.key().is_some());
}

pub async fn expired_session_is_served_by_no_node(fixture: &impl PairFixture) {
    let (here, there) = every_node(fixture).await;
    let (mut session, key) = login(&here).await;
    session.set_expiry(Expiry::After(Duration::from_millis(1_500)));
    session.save().await.unwrap();
    let ends_at = session.expires_at();
    while Timestamp::from(std::time::SystemTime::now()) < ends_at {
        open(&there, &key).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_gone(&here, &key).await;
    assert_gone(&there, &key).await;
}

pub async fn shortened_session_ends_on_every_node(fixture: &impl PairFixture) {
    let (here, there) = every_node(fixture).await;
    let (mut session, key) = login(&here).await;
    assert!(open(&there, &key).await.key().is_some());
    session.set_expiry(Expiry::At(Timestamp::from_secs(1)));
    session.save().await.unwrap();
    reach_every_node(fixture).await;
    assert_gone(&here, &key).await;
    assert_gone(&there, &key).await;
}

pub async fn concurrent_logins_and_logouts_leave_no_session_open(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    for _ in 0..5 {
        let (_, key) = login(&here).await;
        let mut requests = Vec::new();
        for n in 0..12 {
            let (node, key) = (if n % 2 == 0 { here.clone() } else { there.clone() }, key.clone());
            requests.push(tokio::spawn(async move {
                let mut session = open(&node, &key).await;
                let done = match n % 4 {
                    0 => session.flush().await,
                    1 => session.cycle_key().await,
                    _ => {
                        session.insert("n", n).unwrap();
                        session.key()?;
                        session.save().await
                    }
                };
                match done {
                    Ok(_) | Err(Error::SessionGone) => {}
                    Err(error) => panic!("{error}"),
                }
                session.key().map(|key| key.expose().to_owned())
            }));
        }
        let mut keys = vec![key];
        for request in requests {
            keys.extend(request.await.unwrap());
        }
        for key in &keys {
            let found = open(&here, key).await;
            let _ = open(&there, key).await;
            if found.key().is_some() {
                // A request that rotated the key before the logout kept the session under a new one. It ends
                // now.
                assert!(
                    open(&there, key).await.key().is_some(),
                    "one node knows the session, and the other does not"
                );
                let mut found = found;
                found.flush().await.unwrap();
            }
            assert_gone(&here, key).await;
            assert_gone(&there, key).await;
        }
    }
}
