//! The schema's version: which one a table has, and what is to be done about it. How a database describes its
//! tables, and how several nodes take turns to migrate them, is its own.
//!
//! The version is kept in a table of ours beside the session table, with one row for every step that was
//! made. So neither the application's `_sqlx_migrations` nor its `PRAGMA user_version` is touched.

use session_core::{PersistenceError, SchemaProblem};
use sqlx::{Database, SqlStr};

use crate::sql::columns::{Column, Kind};
use crate::sql::table::TableName;

/// The result of the check that the tables are as this version needs them.
pub(crate) type SchemaCheck = Result<(), SchemaProblem>;

/// One step of the schema: the statements that lead to it from the version before. They can be repeated.
pub(crate) type Step = &'static [&'static str];

/// The result of a migration: of the statements, and, if these succeeded, of the migration itself.
pub(crate) type Migrated = sqlx::Result<Result<(), PersistenceError>>;

/// The making and describing of tables in one kind of database.
pub(crate) trait Schema: Database + Sized {
    const STEPS: &'static [Step];

    /// The statements that make the table for the notes of rotations, which can be repeated.
    const ROTATIONS: Step;

    /// Returns the type of columns of this kind, as the database describes it.
    fn type_of(kind: Kind) -> &'static str;

    /// Returns the columns of a table: none if there is no such table.
    fn columns(
        connection: &mut Self::Connection,
        table: &str,
    ) -> impl Future<Output = sqlx::Result<Vec<FoundColumn>>> + Send;

    /// Returns the last step in the schema table, which is there.
    fn last_step(
        connection: &mut Self::Connection,
        table: &TableName,
    ) -> impl Future<Output = sqlx::Result<Option<i64>>> + Send;

    /// Checks whether the tables are as this version needs them.
    fn check(
        connection: &mut Self::Connection,
        table: &TableName,
    ) -> impl Future<Output = sqlx::Result<SchemaCheck>> + Send {
        check::<Self>(connection, table)
    }

    /// Runs a statement.
    fn run(connection: &mut Self::Connection, sql: SqlStr) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Makes the steps that are left to make, on one node at a time.
    fn migrate(connection: &mut Self::Connection, table: &TableName)
    -> impl Future<Output = Migrated> + Send;
}

/// A column as the database describes it.
#[derive(Debug)]
pub(crate) struct FoundColumn {
    name: String,
    data_type: String,
    is_nullable: bool,
    is_primary_key: bool,
}

impl From<(String, String, bool, bool)> for FoundColumn {
    fn from((name, data_type, is_nullable, is_primary_key): (String, String, bool, bool)) -> Self {
        Self { name, data_type, is_nullable, is_primary_key }
    }
}

impl FoundColumn {
    /// Returns `true` if the column has this name and this type, and is not nullable.
    pub(crate) fn is_required(&self, name: &str, data_type: &str) -> bool {
        self.name == name && self.data_type.eq_ignore_ascii_case(data_type) && !self.is_nullable
    }
}

/// The description of both tables.
#[derive(Debug)]
struct Found {
    sessions: Vec<FoundColumn>,
    versions: Vec<FoundColumn>,
    /// The last step made.
    version: Option<u32>,
}

impl Found {
    /// Returns `true` if the schema table is there, and is ours.
    fn has_versions(&self) -> bool {
        self.versions.iter().any(|column| column.name == "version" && column.is_primary_key)
    }
}

/// Returns the statements that make the tables from nothing, as text.
pub(crate) fn sql<B: Schema>(table: &TableName) -> String {
    B::STEPS.iter().copied().flatten().map(|statement| table.fill(statement) + ";\n").collect()
}

/// Checks whether the tables are as this version needs them.
pub(crate) async fn check<B: Schema>(
    connection: &mut B::Connection,
    table: &TableName,
) -> sqlx::Result<SchemaCheck> {
    // In this order: a node that makes both makes them visible at once, or the schema table first. So a
    // session table that is seen has its versions.
    let sessions = B::columns(connection, table.as_str()).await?;
    let versions = B::columns(connection, &table.schema_table()).await?;
    let mut found = Found { sessions, versions, version: None };
    if found.has_versions() {
        found.version = B::last_step(connection, table).await?.and_then(|last| last.try_into().ok());
    }
    let needed = u32::try_from(B::STEPS.len()).unwrap_or(u32::MAX);
    Ok(found.check(table, needed, B::type_of))
}

/// Makes the steps that are left to make.
pub(crate) async fn run_steps<B: Schema>(
    connection: &mut B::Connection,
    table: &TableName,
) -> sqlx::Result<SchemaCheck> {
    let done = match check::<B>(connection, table).await? {
        Ok(()) => B::STEPS.len(),
        Err(SchemaProblem::Missing { .. }) => 0,
        Err(SchemaProblem::Outdated { found, .. }) => usize::try_from(found).unwrap_or(usize::MAX),
        Err(problem) => return Ok(Err(problem)),
    };
    let left: Vec<_> = B::STEPS.iter().skip(done).copied().flatten().copied().collect();
    for statement in left {
        B::run(connection, table.sql(statement)).await?;
    }
    Ok(Ok(()))
}

impl Found {
    fn check(&self, table: &TableName, needed: u32, type_of: impl Fn(Kind) -> &'static str) -> SchemaCheck {
        let name = || table.as_str().to_owned();
        let foreign = |table: String, reason: String| Err(SchemaProblem::Foreign { table, reason });

        if !self.versions.is_empty() && !self.has_versions() {
            return foreign(table.schema_table(), "it has no primary key named version".to_owned());
        }
        let version = self.version.unwrap_or(0);
        if version > needed {
            return Err(SchemaProblem::TooNew { table: name(), found: version, known: needed });
        }
        if self.sessions.is_empty() {
            return Err(SchemaProblem::Missing { table: name() });
        }
        if self.versions.is_empty() {
            return foreign(name(), format!("there is no table {} beside it", table.schema_table()));
        }
        let outdated = SchemaProblem::Outdated { table: name(), found: version, needed };
        if (1..needed).contains(&version) {
            return Err(outdated);
        }
        // Columns beyond ours are the application's.
        for column in Column::ALL {
            let (column_name, data_type) = (column.name(), type_of(column.kind()));
            let Some(present) = self.sessions.iter().find(|present| present.name == column_name) else {
                return foreign(name(), format!("it has no column {column_name}"));
            };
            if !present.data_type.eq_ignore_ascii_case(data_type)
                || present.is_nullable != column.is_nullable()
            {
                let null = if column.is_nullable() { "null" } else { "not null" };
                return foreign(name(), format!("its column {column_name} is not {data_type} {null}"));
            }
            if present.is_primary_key != (column == Column::Key) {
                return foreign(name(), "its primary key is not the column key".to_owned());
            }
        }
        // A table without a version: its first migration was cut off.
        if version < needed { Err(outdated) } else { Ok(()) }
    }
}
