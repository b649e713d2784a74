//! The schema's version: which one a table has, and what is to be done about it. How a database describes its
//! tables, and how several nodes take turns to migrate them, is its own.
//!
//! The version is kept in a table of ours beside the session table. So neither the application's
//! `_sqlx_migrations` nor its `PRAGMA user_version` is touched.
//!
//! A version is a row with its number. The number is negative if programs of older versions can work beside it:
//! they look at the greatest number only, and go on. So nodes of both versions can run side by side, and an
//! older node can start beside a newer table.

use session_core::{PersistenceError, SchemaProblem};
use sqlx::{Database, SqlStr};

use crate::sql::columns::{Column, Kind};
use crate::sql::table::TableName;

/// The version of the tables that this program makes.
const VERSION: u32 = 2;

/// The result of the check that the tables are as this version needs them.
pub(crate) type SchemaCheck = Result<(), SchemaProblem>;

/// The result of a migration: of the statements, and, if these succeeded, of the migration itself.
pub(crate) type Migrated = sqlx::Result<Result<(), PersistenceError>>;

/// A part of the tables as they are to be. The changes of a database, in their order, lead to these tables from
/// those of every older version, and from nothing. Each looks at what is there first, so a migration that was
/// cut off goes on where it was.
#[derive(Clone, Copy)]
pub(crate) enum Change {
    /// Runs a statement that can be repeated.
    Run(&'static str),
    /// Adds a column to a table of an older version. A new table has it.
    Column { name: &'static str, sql: &'static str },
    /// Makes an index.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "sqlite")),
        expect(dead_code, reason = "MySQL makes indexes with the table")
    )]
    Index { name: &'static str, sql: &'static str },
    /// Adds an index to a table of an older version. A new table has it.
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "the others make indexes after the table"))]
    LaterIndex { name: &'static str, sql: &'static str },
    /// Drops an index of an older version.
    OldIndex { name: &'static str, sql: &'static str },
}

/// The making and describing of tables in one kind of database.
pub(crate) trait Schema: Database + Sized {
    const CHANGES: &'static [Change];

    /// The statement that records the version, when all changes are made. Can be repeated.
    const RECORD: &'static str;

    /// The statements that make the table for the notes of rotations, which can be repeated.
    const ROTATIONS: &'static [&'static str];

    /// Returns the type of columns of this kind, as the database describes it.
    fn type_of(kind: Kind) -> &'static str;

    /// Returns the columns of a table: none if there is no such table.
    fn columns(
        connection: &mut Self::Connection,
        table: &str,
    ) -> impl Future<Output = sqlx::Result<Vec<FoundColumn>>> + Send;

    /// Returns the names of the indexes of the session table.
    fn indexes(
        connection: &mut Self::Connection,
        table: &TableName,
    ) -> impl Future<Output = sqlx::Result<Vec<String>>> + Send;

    /// Returns the rows of the schema table, which is there.
    fn versions(
        connection: &mut Self::Connection,
        table: &TableName,
    ) -> impl Future<Output = sqlx::Result<Vec<i64>>> + Send;

    /// Checks whether the tables are as this version needs them.
    fn check(
        connection: &mut Self::Connection,
        table: &TableName,
    ) -> impl Future<Output = sqlx::Result<SchemaCheck>> + Send {
        check::<Self>(connection, table)
    }

    /// Runs a statement.
    fn run(connection: &mut Self::Connection, sql: SqlStr) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Makes the changes that are left to make, on one node at a time.
    fn migrate(connection: &mut Self::Connection, table: &TableName)
    -> impl Future<Output = Migrated> + Send;
}

/// A migration that another node did not finish in time.
#[cfg(feature = "_server")]
#[derive(Debug, thiserror::Error)]
#[error("another node has been migrating the tables for ten minutes; try again when it has finished")]
pub(crate) struct MigratesElsewhere;

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
    schema: Vec<FoundColumn>,
    /// The rows of the schema table.
    versions: Vec<i64>,
}

/// Returns the statements that make the tables from nothing, as text.
pub(crate) fn sql<B: Schema>(table: &TableName) -> String {
    let from_nothing = B::CHANGES.iter().filter_map(|change| match change {
        Change::Run(sql) | Change::Index { sql, .. } => Some(*sql),
        Change::Column { .. } | Change::LaterIndex { .. } | Change::OldIndex { .. } => None,
    });
    from_nothing.chain([B::RECORD]).map(|statement| table.fill(statement) + ";\n").collect()
}

/// Checks whether the tables are as this version needs them.
pub(crate) async fn check<B: Schema>(
    connection: &mut B::Connection,
    table: &TableName,
) -> sqlx::Result<SchemaCheck> {
    // In this order: a node that makes both makes them visible at once, or the schema table first. So a
    // session table that is seen has its versions.
    let sessions = B::columns(connection, table.as_str()).await?;
    let schema = B::columns(connection, &table.schema_table()).await?;
    let mut found = Found { sessions, schema, versions: Vec::new() };
    if found.has_versions() {
        found.versions = B::versions(connection, table).await?;
    }
    Ok(found.check(table, B::type_of))
}

/// Makes the changes that are left to make.
pub(crate) async fn make_changes<B: Schema>(
    connection: &mut B::Connection,
    table: &TableName,
) -> sqlx::Result<SchemaCheck> {
    match check::<B>(connection, table).await? {
        Ok(()) => return Ok(Ok(())),
        Err(SchemaProblem::Missing { .. } | SchemaProblem::Outdated { .. }) => {}
        Err(problem) => return Ok(Err(problem)),
    }
    for change in B::CHANGES {
        make_change::<B>(connection, table, *change).await?;
    }
    B::run(connection, table.sql(B::RECORD)).await?;
    Ok(Ok(()))
}

/// Makes a change, unless it is made.
pub(crate) async fn make_change<B: Schema>(
    connection: &mut B::Connection,
    table: &TableName,
    change: Change,
) -> sqlx::Result<()> {
    let (sql, is_made) = match change {
        Change::Run(sql) => (sql, false),
        Change::Column { name, sql } => {
            let columns = B::columns(connection, table.as_str()).await?;
            (sql, columns.iter().any(|column| column.name == name))
        }
        Change::Index { name, sql } | Change::LaterIndex { name, sql } => {
            (sql, has_index::<B>(connection, table, name).await?)
        }
        Change::OldIndex { name, sql } => (sql, !has_index::<B>(connection, table, name).await?),
    };
    if is_made { Ok(()) } else { B::run(connection, table.sql(sql)).await }
}

async fn has_index<B: Schema>(
    connection: &mut B::Connection,
    table: &TableName,
    name: &str,
) -> sqlx::Result<bool> {
    Ok(B::indexes(connection, table).await?.contains(&table.fill(name)))
}

impl Found {
    /// Returns `true` if the schema table is there, and is ours.
    fn has_versions(&self) -> bool {
        self.schema.iter().any(|column| column.name == "version" && column.is_primary_key)
    }

    /// Returns the version of the tables.
    fn version(&self) -> u32 {
        let version = self.versions.iter().map(|version| version.unsigned_abs()).max().unwrap_or(0);
        version.try_into().unwrap_or(u32::MAX)
    }

    /// Returns the version of the oldest program that can work with the tables.
    fn oldest_program(&self) -> u32 {
        let oldest = self.versions.iter().copied().max().unwrap_or(0);
        oldest.max(0).try_into().unwrap_or(u32::MAX)
    }

    fn check(&self, table: &TableName, type_of: impl Fn(Kind) -> &'static str) -> SchemaCheck {
        let name = || table.as_str().to_owned();
        let foreign = |table: String, reason: String| Err(SchemaProblem::Foreign { table, reason });

        if !self.schema.is_empty() && !self.has_versions() {
            return foreign(table.schema_table(), "it has no primary key named version".to_owned());
        }
        let found = self.oldest_program();
        if found > VERSION {
            return Err(SchemaProblem::TooNew { table: name(), found, known: VERSION });
        }
        if self.sessions.is_empty() {
            return Err(SchemaProblem::Missing { table: name() });
        }
        if self.schema.is_empty() {
            return foreign(name(), format!("there is no table {} beside it", table.schema_table()));
        }
        let found = self.version();
        // Columns beyond ours are the application's.
        for column in Column::of_version(found) {
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
        if found < VERSION {
            return Err(SchemaProblem::Outdated { table: name(), found, needed: VERSION });
        }
        Ok(())
    }
}
