//! The contract of [`Rotations`], case by case, beyond that of [`Persistence`](session_core::Persistence).

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::sync::Arc;

use session_core::{
    MaskedKey, Persistence, PersistenceError, Rotation, Rotations, SchemaProblem, StoredKey, Timestamp,
};

use crate::suite::case::{cases, skip};
use crate::suite::concurrent::at_once;
use crate::suite::persistence::{
    HOUR, MICRO, MINUTE, NOW, RotationsFixture, THEN, alone, insert, key, load, record,
};

/// The reason for which cases that begin without a table are skipped.
const NO_TABLE_OF_ITS_OWN: &str = "the fixture cannot open a table that is not made yet";

cases! {
    /// Returns all cases of this layer.
    for RotationsFixture:
    note_is_found_whole_on_every_node => "Every node finds the notes of every other node.",
    expired_note_is_not_found => "Notes that have expired at `now` are not found.",
    no_more_notes_than_the_limit_are_found => "Returns at most `limit` notes about the key `old`",
    noted_keys_are_compared_byte_for_byte => "The keys are compared byte for byte.",
    notes_that_expire_first_come_first => "Notes that expire first come first.",
    second_note_of_two_keys_prolongs_the_first => "A note with the same two keys that is there already keeps the key that it reveals",
    note_leaves_sessions_alone => "Sessions are neither needed nor changed.",
    notes_expired_at_an_instant_or_before_are_removed => "[`Persistence::delete_expired`] also removes notes that expired at `before` or earlier",
    no_more_notes_than_the_limit_are_removed_in_a_call => "[`Persistence::delete_expired`] also removes notes that expired at `before` or earlier",
    node_that_uses_no_notes_removes_expired_ones => "It does so whether or not a store uses the notes",
    expired_sessions_are_removed_without_a_table_of_notes => "It does so whether or not a store uses the notes",
    table_of_notes_can_be_made_again => "Creating it again changes nothing; several nodes may create it at once.",
    several_nodes_can_make_the_table_of_notes_at_once => "Creating it again changes nothing; several nodes may create it at once.",
    table_of_notes_needs_no_session_table => "The session table is neither needed nor changed",
    missing_table_of_notes_is_reported_and_not_made => "A missing table of the notes is reported, and not created.",
}

/// Opens a handle to a database that has the table.
async fn open<F: RotationsFixture>(fixture: &F) -> F::Persistence {
    let db = fixture.open().await;
    db.migrate_rotations().await.expect("the table can be made");
    db
}

/// Returns a note that no other case writes, and that expires a minute after [`NOW`].
fn note(old: &StoredKey) -> Rotation {
    let masked: Vec<u8> = (0..32).map(|_| fastrand::u8(..)).collect();
    Rotation::new(*old, key(), NOW + MINUTE).with_masked_key(MaskedKey::from_bytes(&masked))
}

/// Returns a note like [`note`] that expires at an instant.
fn note_until(old: &StoredKey, expires_at: Timestamp) -> Rotation {
    Rotation::new(*old, key(), expires_at)
}

async fn write(db: &impl Rotations, note: &Rotation) {
    db.note_rotation(note).await.expect("a note can be written");
}

async fn find(db: &impl Rotations, old: &StoredKey, now: Timestamp) -> Vec<Rotation> {
    find_some(db, old, now, 100).await
}

/// Returns the notes in the order of their new keys.
async fn find_some(db: &impl Rotations, old: &StoredKey, now: Timestamp, limit: u32) -> Vec<Rotation> {
    let mut found = db.rotations(old, now, limit).await.expect("the database answers");
    found.sort_by(by_new_key);
    found
}

fn by_new_key(one: &Rotation, other: &Rotation) -> std::cmp::Ordering {
    one.new.as_bytes().cmp(other.new.as_bytes())
}

/// Returns the notes in the order in which [`find`] returns them.
fn sorted<const N: usize>(mut notes: [Rotation; N]) -> [Rotation; N] {
    notes.sort_by(by_new_key);
    notes
}

pub async fn note_is_found_whole_on_every_node(fixture: &impl RotationsFixture) {
    let (here, there, old) = (open(fixture).await, open(fixture).await, key());
    assert_eq!(find(&here, &old, NOW).await, []);
    let notes = sorted([note(&old), note(&old).with_masked_key(None), note(&old)]);
    for note in &notes {
        write(&here, note).await;
    }
    write(&here, &note(&key())).await;
    for node in [&here, &there] {
        assert_eq!(find(node, &old, NOW).await, notes);
    }
}

pub async fn expired_note_is_not_found(fixture: &impl RotationsFixture) {
    let (db, old) = (open(fixture).await, key());
    let (short, long) = (note(&old), note_until(&old, NOW + HOUR));
    write(&db, &short).await;
    write(&db, &long).await;
    assert_eq!(find(&db, &old, short.expires_at - MICRO).await.len(), 2);
    for late in [short.expires_at, short.expires_at + MICRO] {
        assert_eq!(find(&db, &old, late).await, std::slice::from_ref(&long));
    }
}

pub async fn no_more_notes_than_the_limit_are_found(fixture: &impl RotationsFixture) {
    let (db, old) = (open(fixture).await, key());
    for _ in 0..5 {
        write(&db, &note(&old)).await;
    }
    for (limit, wanted) in [(0, 0), (1, 1), (4, 4), (5, 5), (6, 5)] {
        assert_eq!(find_some(&db, &old, NOW, limit).await.len(), wanted, "of at most {limit}");
    }
}

pub async fn noted_keys_are_compared_byte_for_byte(fixture: &impl RotationsFixture) {
    let db = open(fixture).await;
    let random = key();
    let with =
        |end: &str| StoredKey::parse(&format!("{}{end}", random.as_str())).expect("it is a stored key");
    let notes = ["a", "A", "aa", "_", "%"].map(|end| note(&with(end)));
    for note in &notes {
        write(&db, note).await;
    }
    for note in &notes {
        assert_eq!(find(&db, &note.old, NOW).await, std::slice::from_ref(note));
    }
    assert_eq!(find(&db, &with("b"), NOW).await, []);
    // So are the new ones: these are different notes.
    let old = key();
    let to = sorted(["x", "X"].map(|end| Rotation::new(old, with(end), NOW + MINUTE)));
    for note in &to {
        write(&db, note).await;
    }
    assert_eq!(find(&db, &old, NOW).await, to);
}

pub async fn notes_that_expire_first_come_first(fixture: &impl RotationsFixture) {
    let (db, old) = (open(fixture).await, key());
    let notes = [3, 1, 4, 2].map(|minutes| note_until(&old, NOW + minutes * MINUTE));
    for note in &notes {
        write(&db, note).await;
    }
    let found = db.rotations(&old, NOW, 3).await.expect("the database answers");
    assert_eq!(found, [1, 3, 0].map(|place| notes[place].clone()));
}

pub async fn second_note_of_two_keys_prolongs_the_first(fixture: &impl RotationsFixture) {
    let (db, old) = (open(fixture).await, key());
    let (hidden, revealed) = (note(&old).with_masked_key(None), note(&old));
    for mut first in [hidden, revealed] {
        write(&db, &first).await;
        for expires_at in [NOW + HOUR, NOW + 2 * MINUTE] {
            let second = Rotation::new(old, first.new, expires_at).with_masked_key(note(&old).masked_key);
            write(&db, &second).await;
            first.expires_at = NOW + HOUR;
            assert!(find(&db, &old, NOW).await.contains(&first));
        }
    }
    assert_eq!(find(&db, &old, NOW).await.len(), 2);
}

pub async fn note_leaves_sessions_alone(fixture: &impl RotationsFixture) {
    let (db, old) = (open(fixture).await, key());
    let note = note(&old);
    let row = insert(&db, &old, &record("1{}")).await;
    write(&db, &note).await;
    assert_eq!(load(&db, &old, NOW).await, Some(row));
    assert_eq!(load(&db, &note.new, NOW).await, None, "a note is no session");
    db.delete(&old).await.expect("the database answers");
    assert_eq!(find(&db, &old, NOW).await, [note], "a session that has ended takes no note along");
}

/// Removes what expired at `before` or earlier, of which no more is said to be left, and returns the number of sessions.
async fn remove(db: &impl Persistence, before: Timestamp) -> u64 {
    let removed = db.delete_expired(before, 100).await.expect("the database answers");
    assert!(!removed.is_unfinished(100), "few have expired");
    removed.count
}

pub async fn notes_expired_at_an_instant_or_before_are_removed(fixture: &impl RotationsFixture) {
    let _alone = alone().await;
    let (db, old) = (open(fixture).await, key());
    remove(&db, THEN + MICRO).await;
    let row = insert(&db, &old, &record("1{}").with_expires_at(THEN + MICRO)).await;
    for expires_at in [THEN - HOUR, THEN, THEN + MICRO] {
        write(&db, &note_until(&old, expires_at)).await;
    }
    assert_eq!(remove(&db, THEN).await, 0, "a note is no session");
    assert_eq!(find(&db, &old, THEN - 2 * HOUR).await.len(), 1);
    assert_eq!(load(&db, &old, THEN).await, Some(row), "a session is no note");
    assert_eq!(remove(&db, THEN + MICRO).await, 1);
    assert_eq!(find(&db, &old, THEN - 2 * HOUR).await, []);
}

pub async fn no_more_notes_than_the_limit_are_removed_in_a_call(fixture: &impl RotationsFixture) {
    let _alone = alone().await;
    let (db, old) = (open(fixture).await, key());
    remove(&db, THEN).await;
    for _ in 0..5 {
        write(&db, &note_until(&old, THEN)).await;
    }
    for (is_unfinished, left) in [(true, 3), (true, 1), (false, 0), (false, 0)] {
        let removed = db.delete_expired(THEN, 2).await.expect("the database answers");
        assert_eq!((removed.is_unfinished(2), removed.count), (is_unfinished, 0));
        assert_eq!(find(&db, &old, THEN - HOUR).await.len(), left, "of five");
    }
}

pub async fn node_that_uses_no_notes_removes_expired_ones(fixture: &impl RotationsFixture) {
    let _alone = alone().await;
    let (here, there, old) = (open(fixture).await, fixture.open().await, key());
    write(&here, &note_until(&old, THEN)).await;
    // The grace was turned off, and the node started again.
    remove(&there, THEN).await;
    assert_eq!(find(&here, &old, THEN - HOUR).await, []);
}

pub async fn expired_sessions_are_removed_without_a_table_of_notes(fixture: &impl RotationsFixture) {
    let nodes = fixture.open_before_migration().await;
    let [db, other, ..] = &nodes[..] else { return skip(NO_TABLE_OF_ITS_OWN) };
    db.migrate().await.expect("the session table can be made");
    for made in [false, true] {
        insert(db, &key(), &record("1{}").with_expires_at(THEN)).await;
        assert_eq!(remove(db, THEN).await, 1);
        if !made {
            // Another node has the grace, and this one knows nothing of it.
            other.migrate_rotations().await.expect("the table can be made");
        }
    }
    // Once the table is there, what is in it is removed as well.
    let old = key();
    write(other, &note_until(&old, THEN)).await;
    remove(db, THEN).await;
    assert_eq!(find(other, &old, THEN - HOUR).await, []);
}

pub async fn table_of_notes_can_be_made_again(fixture: &impl RotationsFixture) {
    let (db, old) = (open(fixture).await, key());
    let note = note(&old);
    write(&db, &note).await;
    for _ in 0..2 {
        db.migrate_rotations().await.expect("the table can be made again");
        assert_eq!(find(&db, &old, NOW).await, std::slice::from_ref(&note), "a note is gone");
    }
    db.check_rotations().await.expect("the table is as before");
    assert!(!db.rotations_sql().trim().is_empty(), "applications that run their own migrations need it");
}

pub async fn several_nodes_can_make_the_table_of_notes_at_once(fixture: &impl RotationsFixture) {
    let nodes = fixture.open_before_migration().await.into_iter().map(Arc::new).collect::<Vec<_>>();
    let Some(first) = nodes.first() else { return skip(NO_TABLE_OF_ITS_OWN) };
    first.migrate().await.expect("the session table can be made");
    at_once(&nodes, nodes.len(), |db, _| async move {
        db.migrate_rotations().await.expect("several nodes can make the table at once");
    })
    .await;
    let note = note(&key());
    write(&**first, &note).await;
    for node in &nodes {
        node.check_rotations().await.expect("the table is made");
        assert_eq!(
            find(&**node, &note.old, NOW).await,
            std::slice::from_ref(&note),
            "all nodes made the same table"
        );
    }
}

pub async fn table_of_notes_needs_no_session_table(fixture: &impl RotationsFixture) {
    let Some(db) = fixture.open_before_migration().await.into_iter().next() else {
        return skip(NO_TABLE_OF_ITS_OWN);
    };
    db.migrate_rotations().await.expect("the table can be made");
    let note = note(&key());
    write(&db, &note).await;
    match db.check_schema().await {
        Err(PersistenceError::Schema(SchemaProblem::Missing { .. })) => {}
        other => panic!("there is no session table, but the check returns {other:?}"),
    }
    db.migrate().await.expect("the session table can be made beside it");
    db.check_schema().await.expect("the session table is as it should be");
    assert_eq!(find(&db, &note.old, NOW).await, [note]);
}

pub async fn missing_table_of_notes_is_reported_and_not_made(fixture: &impl RotationsFixture) {
    let Some(db) = fixture.open_before_migration().await.into_iter().next() else {
        return skip(NO_TABLE_OF_ITS_OWN);
    };
    db.migrate().await.expect("the session table can be made");
    let is_missing = |error: &PersistenceError| {
        matches!(error, PersistenceError::Schema(SchemaProblem::MissingRotations { .. }))
    };
    for _ in 0..2 {
        let checked = db.check_rotations().await;
        assert!(
            checked.as_ref().is_err_and(is_missing),
            "there is no table, but the check returns {checked:?}"
        );
        let noted = db.note_rotation(&note(&key())).await;
        assert!(noted.as_ref().is_err_and(is_missing), "there is no table, but a note returns {noted:?}");
    }
    db.check_schema().await.expect("nothing else needs the table");
    db.migrate_rotations().await.expect("the table can be made");
    db.check_rotations().await.expect("the table is made");
}
