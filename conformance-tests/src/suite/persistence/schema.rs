//! Making the table.

use std::sync::Arc;

use session_core::{Persistence, PersistenceError, SchemaProblem};

use super::{NOW, PersistenceFixture, insert, key, load, nodes, record};
use crate::suite::case::{cases, skip};
use crate::suite::concurrent::at_once;

/// The reason for which cases that begin without a table are skipped.
const NO_TABLE_OF_ITS_OWN: &str = "the fixture cannot open a table that is not made yet";

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    migrated_table_passes_the_check => "Checks that the table exists and is as this version needs it.",
    second_migration_changes_nothing => "Doing it again changes nothing; several nodes may do it at once.",
    several_nodes_can_migrate_at_once => "Doing it again changes nothing; several nodes may do it at once.",
    several_nodes_can_make_the_table_at_once => "Doing it again changes nothing; several nodes may do it at once.",
    missing_table_is_reported_and_not_made => "Checks that the table exists and is as this version needs it. Changes nothing.",
    schema_sql_is_always_the_same => "Returns the statements that [`migrate`](Self::migrate) runs on an empty database",
    properties_are_always_the_same => "Returns the properties of this database. They are the same at every call.",
}

pub async fn migrated_table_passes_the_check(fixture: &impl PersistenceFixture) {
    for node in nodes(fixture).await {
        node.check_schema().await.expect("the fixture's table is migrated");
    }
}

pub async fn second_migration_changes_nothing(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let row = insert(&db, &key, &record("1{}")).await;
    for _ in 0..2 {
        db.migrate().await.expect("a migration can be repeated");
        assert_eq!(load(&db, &key, NOW).await, Some(row.clone()), "a session is gone");
    }
    db.check_schema().await.expect("the table is as before");
}

pub async fn several_nodes_can_migrate_at_once(fixture: &impl PersistenceFixture) {
    let (nodes, key) = (nodes(fixture).await, key());
    let row = insert(&*nodes[0], &key, &record("1{}")).await;
    at_once(&nodes, 6, |db, _| async move { db.migrate().await.expect("several nodes can migrate at once") })
        .await;
    assert_eq!(load(&*nodes[0], &key, NOW).await, Some(row), "a session is gone");
}

pub async fn several_nodes_can_make_the_table_at_once(fixture: &impl PersistenceFixture) {
    let nodes = fixture.open_before_migration().await.into_iter().map(Arc::new).collect::<Vec<_>>();
    if nodes.is_empty() {
        return skip(NO_TABLE_OF_ITS_OWN);
    }
    at_once(&nodes, nodes.len(), |db, _| async move {
        db.migrate().await.expect("several nodes can migrate at once");
    })
    .await;
    for node in &nodes {
        node.check_schema().await.expect("the table is made");
        let key = key();
        let row = insert(&**node, &key, &record("1{}")).await;
        assert_eq!(load(&*nodes[0], &key, NOW).await, Some(row), "all nodes made the same table");
    }
}

pub async fn missing_table_is_reported_and_not_made(fixture: &impl PersistenceFixture) {
    let Some(db) = fixture.open_before_migration().await.into_iter().next() else {
        return skip(NO_TABLE_OF_ITS_OWN);
    };
    for _ in 0..2 {
        match db.check_schema().await {
            Err(PersistenceError::Schema(SchemaProblem::Missing { .. })) => {}
            other => panic!("there is no table, but the check returns {other:?}"),
        }
    }
    db.migrate().await.expect("the table can be made");
    db.check_schema().await.expect("the table is made");
}

pub async fn schema_sql_is_always_the_same(fixture: &impl PersistenceFixture) {
    let (here, there) = (fixture.open().await, fixture.open().await);
    assert!(!here.schema_sql().trim().is_empty(), "applications that run their own migrations need it");
    assert_eq!(here.schema_sql(), there.schema_sql());
}

pub async fn properties_are_always_the_same(fixture: &impl PersistenceFixture) {
    let (here, there) = (fixture.open().await, fixture.open().await);
    let properties = here.properties();
    insert(&here, &key(), &record("1{}")).await;
    assert_eq!(here.properties(), properties);
    assert_eq!(there.properties(), properties);
}
