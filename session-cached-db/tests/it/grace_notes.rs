//! The notes of rotations, which the grace needs: when they are written, found and removed, and what they cost.

use session_cached_db::{BuildError, Error, Schema};
use session_core::{
    MaskedKey, Persistence as _, Rotation, Rotations as _, Runtime as _, SchemaProblem, SessionKey, StoredKey,
};

use crate::common::{Call, Fault, Log, MINUTE, Moment, SECOND, World, each_database, key_of};
use crate::grace::{each_with_grace, opens_nothing, with_grace};

#[tokio::test]
async fn rotation_that_cannot_be_noted_happens_without_a_grace() {
    let log = Log::listen();
    let world = World::with(with_grace).await;
    let mut session = world.saved([("cart", 1)]).await;
    let old = key_of(&session);
    world.db.calls.fail(Call::NoteRotation, Moment::Before, Fault::Unreachable);
    session.renew_key().await.unwrap();
    assert_eq!(log.events("rotation_not_noted").len(), 1);
    assert!(opens_nothing(&world, &old).await);
    assert!(!opens_nothing(&world, &key_of(&session)).await);
}

#[tokio::test]
async fn grace_begins_when_the_key_changes_also_at_a_second_try() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let old = key_of(&session);
        world.db.calls.fail(Call::Rename, Moment::Before, Fault::NoAnswer);
        world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
        assert!(session.renew_key().await.is_err());
        // Longer than the grace of the first try.
        world.runtime.advance(MINUTE);
        session.renew_key().await.unwrap();
        assert_eq!(world.store.open(&old).await.unwrap().key(), session.key());
    })
    .await;
}

#[tokio::test]
async fn without_a_grace_nothing_is_noted_or_asked() {
    each_database(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let (old, mut late) = (key_of(&session), world.reopen(&session).await);
        session.renew_key().await.unwrap();
        assert!(opens_nothing(&world, &old).await);
        late.insert("page", 2).unwrap();
        assert!(matches!(late.save().await, Err(Error::SessionGone)));
        world.store.clear_expired().await.unwrap();
        let calls = [Call::NoteRotation, Call::Rotations, Call::MigrateRotations];
        assert_eq!(calls.map(|call| world.db.calls.count(call)), [0; 3]);
        assert!(world.db.sqlite.check_rotations().await.is_err(), "the table was made");
    })
    .await;
}

#[tokio::test]
async fn grace_costs_a_statement_for_each_rotation_and_each_unknown_key() {
    let world = World::with(with_grace).await;
    let mut session = world.saved([("cart", 1)]).await;
    let key = key_of(&session);
    world.forget_calls();
    session.renew_key().await.unwrap();
    assert_eq!((world.db.calls.count(Call::NoteRotation), world.db.calls.total()), (1, 2));
    world.forget_calls();
    assert!(!opens_nothing(&world, &key_of(&session)).await);
    assert_eq!(world.db.calls.total(), 0);
    assert!(opens_nothing(&world, "unknown-key").await);
    assert_eq!((world.db.calls.count(Call::Rotations), world.db.calls.total()), (1, 2));
    assert!(!opens_nothing(&world, &key).await);
}

#[tokio::test]
async fn database_holds_no_new_key_that_its_reader_can_use() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let (old, now) = (*session.stored_key().unwrap(), world.runtime.now());
        session.renew_key().await.unwrap();
        let notes = world.db.sqlite.rotations(&old, now, 10).await.unwrap();
        let [note] = &notes[..] else { panic!("{notes:?}") };
        let masked = note.masked_key.unwrap();
        assert_ne!(masked.as_bytes(), key_of(&session).as_bytes());
        // The stored form is no key to it.
        for known in [old, note.new] {
            let known = SessionKey::parse(known.as_str()).unwrap();
            assert_ne!(masked.unmask(&note.new, &known).as_ref(), session.key());
        }
        let before = *session.stored_key().unwrap();
        session.cycle_key().await.unwrap();
        let notes = world.db.sqlite.rotations(&before, now, 10).await.unwrap();
        assert_eq!(notes[0].masked_key, None, "not even masked");
    })
    .await;
}

#[tokio::test]
async fn note_of_another_program_leads_nowhere() {
    each_with_grace(async |world| {
        let victim = world.saved([("secret", 7)]).await;
        let mine = SessionKey::generate().unwrap();
        let stored = |key: &SessionKey| world.store.stored_key(key).unwrap();
        let expires_at = world.runtime.now() + MINUTE;
        // It knows the stored key of the victim, and not the session key.
        let (from, to) = (stored(&mine), *victim.stored_key().unwrap());
        let guess = SessionKey::generate().unwrap();
        let masked = MaskedKey::mask(&guess, &to, &mine);
        let note = Rotation::new(from, to, expires_at).with_masked_key(masked);
        world.db.sqlite.note_rotation(&note).await.unwrap();
        assert!(opens_nothing(&world, mine.expose()).await);
    })
    .await;
}

#[tokio::test]
async fn notes_that_have_expired_are_removed_with_the_sessions() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let (old, now) = (*session.stored_key().unwrap(), world.runtime.now());
        session.renew_key().await.unwrap();
        let notes = async |key: StoredKey| world.db.sqlite.rotations(&key, now, 10).await.unwrap().len();
        world.store.clear_expired().await.unwrap();
        assert_eq!(notes(old).await, 1);
        world.runtime.advance(MINUTE);
        let next = *session.stored_key().unwrap();
        session.renew_key().await.unwrap();
        world.store.clear_expired().await.unwrap();
        assert_eq!((notes(old).await, notes(next).await), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn notes_of_a_grace_that_was_turned_off_are_removed() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let (old, now) = (*session.stored_key().unwrap(), world.runtime.now());
        session.renew_key().await.unwrap();
        world.store.close().await;
        let without = world.node().await;
        world.runtime.advance(MINUTE);
        without.clear_expired().await.unwrap();
        assert_eq!(world.db.sqlite.rotations(&old, now, 10).await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn grace_is_bounded_and_needs_its_table() {
    let world = World::new().await;
    for (grace, is_right) in [(0, false), (1, true), (60, true), (61, false)] {
        let built = world.builder().rotation_grace(grace * SECOND).build().await;
        assert_eq!(built.is_ok(), is_right, "{grace}");
        if let Err(error) = built {
            assert!(
                matches!(&error, BuildError::Invalid(text) if text.contains("rotation_grace")),
                "{error}"
            );
        }
    }
    let world = World::new().await;
    let checking = || world.builder().schema(Schema::Check);
    checking().build().await.unwrap();
    match with_grace(checking()).build().await {
        Err(BuildError::Schema(problem @ SchemaProblem::MissingRotations { .. })) => {
            assert!(problem.to_string().contains("migrate_rotations"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    world.db.sqlite.migrate_rotations().await.unwrap();
    with_grace(checking()).build().await.unwrap();
    // A node that knows nothing of it goes on beside it.
    world.db.sqlite.check_schema().await.unwrap();
    world.builder().build().await.unwrap();
}
