//! Makes the session table, or brings it up to date.

use serde::Serialize;
use session_cached_db::db_backends::Inspect;
use session_cached_db::session_core::{PersistenceError, SchemaProblem};

use crate::args::{Connection, Migrate};
use crate::connect::{Access, any_database};
use crate::exit::{Exit, Failure};
use crate::output::Output;

#[derive(Serialize)]
struct Report {
    /// The state of the table before.
    found: Found,
    /// `true` if the table was made or changed.
    migrated: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Current,
    Missing,
    WithoutRotations,
    Outdated,
}

pub(crate) async fn run(at: &Connection, command: Migrate, output: &Output) -> Result<Exit, Failure> {
    // Look first, without access to write: it may be the wrong database.
    let database = any_database(at, Access::Read).await?;
    if command.sql {
        let rotations = command.rotations.then(|| database.rotations_sql_dyn());
        output.raw((database.schema_sql_dyn() + &rotations.unwrap_or_default()).as_bytes())?;
        return Ok(Exit::Done);
    }
    let found = match state(check(&*database, command.rotations).await) {
        // A missing SQLite file is an empty database: the migration makes it.
        Err(Failure::Database(_)) if database.properties_dyn().name == "SQLite" => Found::Missing,
        found => found?,
    };
    let migrated = !command.dry_run && found != Found::Current;
    if migrated {
        let database = any_database(at, Access::Make).await?;
        database.migrate_dyn().await?;
        if command.rotations {
            database.migrate_rotations_dyn().await?;
        }
    }
    output.show(&Report { found, migrated }, |report| {
        match (report.found, report.migrated) {
            (Found::Current, _) => "The session table is up to date.",
            (Found::Missing, true) => "The session table was made.",
            (Found::Missing, false) => "There is no session table; it would be made.",
            (Found::WithoutRotations, true) => "The table for rotations was made.",
            (Found::WithoutRotations, false) => "There is no table for rotations; it would be made.",
            (Found::Outdated, true) => "The session table was brought up to date.",
            (Found::Outdated, false) => {
                "The session table is of an older version; it would be brought up to date."
            }
        }
        .to_owned()
    })?;
    Ok(Exit::Done)
}

async fn check(database: &dyn Inspect, rotations: bool) -> Result<(), PersistenceError> {
    database.check_schema_dyn().await?;
    if rotations { database.check_rotations_dyn().await } else { Ok(()) }
}

fn state(checked: Result<(), PersistenceError>) -> Result<Found, Failure> {
    match checked {
        Ok(()) => Ok(Found::Current),
        Err(PersistenceError::Schema(SchemaProblem::Missing { .. })) => Ok(Found::Missing),
        Err(PersistenceError::Schema(SchemaProblem::MissingRotations { .. })) => Ok(Found::WithoutRotations),
        Err(PersistenceError::Schema(SchemaProblem::Outdated { .. })) => Ok(Found::Outdated),
        Err(error) => Err(error.into()),
    }
}
