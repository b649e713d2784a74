use crate::world::World;

pub async fn table_is_made_once_and_not_by_a_dry_run(world: &World) {
    world.run(&["migrate", "--dry-run"]).ends_with(0).says("would be made");
    world.run(&["stats"]).ends_with(if world.has_cache() { 4 } else { 3 });
    let run = world.run(&["migrate", "--json"]).ends_with(0);
    assert_eq!((&run.json()["found"], &run.json()["migrated"]), (&"missing".into(), &true.into()));
    world.database().await.check_schema_dyn().await.unwrap();
    let run = world.run(&["migrate", "--json"]).ends_with(0);
    assert_eq!((&run.json()["found"], &run.json()["migrated"]), (&"current".into(), &false.into()));

    // Simulate a migration that was cut off.
    world.sql(r#"DELETE FROM "{t}_schema""#).await;
    world.run(&["stats"]).ends_with(4).says("sessionctl migrate");
    world.run(&["migrate", "--dry-run"]).ends_with(0).says("would be brought up to date");
    world.run(&["migrate"]).ends_with(0).says("brought up to date");
    world.run(&["stats"]).ends_with(0);
}

pub async fn table_for_rotations_is_made_on_demand(world: &World) {
    world.run(&["migrate"]).ends_with(0);
    world.run(&["migrate"]).ends_with(0).says("up to date");
    world.run(&["migrate", "--rotations", "--dry-run"]).ends_with(0).says("no table for rotations");
    let sql = world.run(&["migrate", "--rotations", "--sql"]).ends_with(0).stdout;
    assert!(sql.contains("_rotations"), "{sql}");
    world.run(&["migrate", "--rotations"]).ends_with(0).says("table for rotations was made");
    world.database().await.check_rotations_dyn().await.unwrap();
    world.run(&["migrate", "--rotations"]).ends_with(0).says("up to date");
}

pub async fn statements_are_printed_and_not_run(world: &World) {
    let sql = world.run(&["migrate", "--sql"]).ends_with(0).stdout;
    world.run(&["migrate", "--dry-run"]).ends_with(0).says("would be made");
    world.sql(&sql).await;
    world.run(&["migrate"]).ends_with(0).says("up to date");
}
