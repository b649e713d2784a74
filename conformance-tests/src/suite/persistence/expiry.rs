//! Expired sessions are absent, by the caller's clock.

use std::time::{Duration, Instant, SystemTime};

use session_core::{ExpiryWrite, Persistence, Record, RecordWrite, Timestamp};

use super::{
    HOUR, MICRO, MINUTE, NOW, PersistenceFixture, alone, another_record, assert_refused, insert, key, load,
    record,
};
use crate::suite::case::cases;

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    expired_session_is_not_found => "A row whose `expires_at` is not after `now` is absent",
    expiries_are_compared_as_instants => "A row whose `expires_at` is not after `now` is absent",
    expired_session_is_not_updated => "A session that is absent or expired is never written",
    expired_session_is_not_touched => "A session that is absent or expired stays so",
    expired_session_is_not_renamed => "A row whose `expires_at` is not after `now` is absent",
    expired_session_is_absent_even_when_a_version_is_expected => "A session that is absent or expired is never written",
    expiry_is_judged_by_the_callers_clock => "`now` is the caller's.",
    clock_of_the_database_shows_the_present => "Returns what the database's own clock shows, to the millisecond or better",
    clock_of_the_database_advances_within_a_second => "Returns what the database's own clock shows, to the millisecond or better",
}

pub async fn expired_session_is_not_found(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let row = insert(&db, &key, &record("1{}")).await;
    let end = row.expires_at();
    assert_eq!(
        load(&db, &key, end - MICRO).await,
        Some(row.clone()),
        "the session is found until its expiry"
    );
    assert_eq!(load(&db, &key, end).await, None, "a session that expires now is absent");
    assert_eq!(load(&db, &key, end + MICRO).await, None);
    assert_eq!(load(&db, &key, Timestamp::MAX).await, None);
    assert_eq!(load(&db, &key, end - MICRO).await, Some(row), "a load that finds it expired removes nothing");
}

/// The instants are in another order as numbers without their fraction, as text of several kinds, or in 32
/// bits.
pub async fn expiries_are_compared_as_instants(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    let instants = [
        -2_000_000,
        -1_000_000,
        -1,
        0,
        9_000_000,
        10_000_000,
        999_999_999_000_000,
        1_000_000_000_000_000,
        1_600_000_000_000_000,
        1_600_000_000_000_001,
        1_600_000_000_500_000,
        1_600_000_001_000_000,
        // The same day at 9 and at 10 o'clock, and the next one at 1.
        1_600_160_400_000_000,
        1_600_164_000_000_000,
        1_600_218_000_000_000,
        2_147_483_648_000_000,
        4_294_967_296_000_000,
    ]
    .map(Timestamp::from_micros);
    for ends_at in instants {
        let key = key();
        insert(&db, &key, &Record::new("1{}".into(), ends_at - HOUR, ends_at)).await;
        for now in instants {
            let found = load(&db, &key, now).await.is_some();
            assert_eq!(found, now < ends_at, "a session that ends at {ends_at:?}, loaded at {now:?}");
        }
        db.delete(&key).await.expect("the database answers");
    }
}

pub async fn expired_session_is_not_updated(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
        let key = key();
        let row = insert(&db, &key, &record("1{}")).await;
        for expected in [None, Some(row.version())] {
            for late in [row.expires_at(), row.expires_at() + HOUR] {
                let living = Record::new("2{}".into(), late, late + HOUR);
                let write = RecordWrite::new(&living).with_expected(expected).with_expiry(expiry);
                assert_refused!(db.update(&key, write, late).await, NotFound);
            }
        }
        assert_eq!(load(&db, &key, NOW).await, Some(row), "the row is left as it is");
    }
}

pub async fn expired_session_is_not_touched(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let row = insert(&db, &key, &record("1{}")).await;
    for late in [row.expires_at(), row.expires_at() + HOUR] {
        assert_refused!(db.touch(&key, late + HOUR, Timestamp::MAX, late).await, NotFound);
    }
    assert_eq!(load(&db, &key, NOW).await, Some(row.clone()), "the row is left as it is");
    let touched = db.touch(&key, row.expires_at(), Timestamp::MAX, row.expires_at() - MICRO).await;
    touched.expect("the session has not expired a moment before");
}

pub async fn expired_session_is_not_renamed(fixture: &impl PersistenceFixture) {
    let (db, old, new) = (fixture.open().await, key(), key());
    let row = insert(&db, &old, &record("1{}")).await;
    for expected in [None, Some(row.version())] {
        for late in [row.expires_at(), row.expires_at() + HOUR] {
            let living = Record::new("2{}".into(), late, late + HOUR);
            let write = RecordWrite::new(&living).with_expected(expected).with_expiry(ExpiryWrite::Replace);
            let renamed = db.rename(&old, &new, write, late).await;
            assert_refused!(renamed, NotFound);
            assert_eq!(load(&db, &new, late).await, None);
        }
    }
    assert_eq!(load(&db, &old, NOW).await, Some(row), "the row is left as it is");
}

pub async fn expired_session_is_absent_even_when_a_version_is_expected(fixture: &impl PersistenceFixture) {
    let (db, old) = (fixture.open().await, key());
    let row = insert(&db, &old, &record("1{}")).await;
    let (late, expiry) = (row.expires_at(), ExpiryWrite::Extend);
    let changed = super::replace(&db, &old, &row, NOW).await;
    assert_ne!(row.version(), changed);
    let expected = Some(row.version());
    let record = another_record();
    let write = RecordWrite::new(&record).with_expected(expected).with_expiry(expiry);
    assert_refused!(db.update(&old, write, late).await, NotFound);
    let record = another_record();
    let write = RecordWrite::new(&record).with_expected(expected).with_expiry(expiry);
    assert_refused!(db.rename(&old, &key(), write, late).await, NotFound);
}

/// A session lives from beginning to end in each of three centuries.
pub async fn expiry_is_judged_by_the_callers_clock(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    for years in [-61, 0, 130, 1_000] {
        let now = Timestamp::from_secs(years * 365 * 86_400);
        let (old, new) = (key(), key());
        let session = Record::new("1{}".into(), now, now + MINUTE);
        let row = insert(&db, &old, &session).await;
        assert_eq!(load(&db, &old, now).await, Some(row), "at {now:?}");
        db.touch(&old, now + HOUR, Timestamp::MAX, now).await.expect("the session has not expired");
        super::replace(&db, &old, &session, now).await;
        let renamed = db.rename(&old, &new, RecordWrite::new(&session), now).await;
        renamed.expect("the session has not expired");
        assert!(load(&db, &new, now).await.is_some());
        let late = now + MINUTE;
        assert_eq!(load(&db, &new, late).await, None, "at {late:?}");
        assert_refused!(db.touch(&new, late + HOUR, Timestamp::MAX, late).await, NotFound);
        db.delete(&new).await.expect("the database answers");
    }
}

/// The time zones of the server, the connection and the process do not matter.
pub async fn clock_of_the_database_shows_the_present(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    let now = db.now().await.expect("the database answers");
    let ours = Timestamp::from(SystemTime::now());
    let apart = now.since(ours).max(ours.since(now));
    assert!(apart < 5 * MINUTE, "the database's clock and this machine's are {apart:?} apart");
}

pub async fn clock_of_the_database_advances_within_a_second(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    let (first, began) = (db.now().await.expect("the database answers"), Instant::now());
    let mut last = first;
    while last == first {
        assert!(began.elapsed() < MINUTE, "the clock stands still");
        tokio::time::sleep(Duration::from_millis(2)).await;
        last = db.now().await.expect("the database answers");
    }
    // A clock of whole seconds would have advanced by one.
    assert!(first < last && last.as_micros().rem_euclid(1_000_000) != 0, "{first:?}, and then {last:?}");
}
