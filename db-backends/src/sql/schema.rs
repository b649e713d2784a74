//! The schema's version: which one a table has, and what is to be done about it. What the databases share; how they look
//! at their tables is their own.
//!
//! The version is kept in a table of ours beside the session table, one row for every step that was made. So neither the
//! application's `_sqlx_migrations` nor its `PRAGMA user_version` is touched.

use session_core::SchemaProblem;

use crate::sql::table::TableName;

/// Whether the tables are as this version needs them.
pub(crate) type Verdict = Result<(), SchemaProblem>;

/// One step of the schema: the statements that lead from the version before to it. They can be repeated.
pub(crate) type Step = &'static [&'static str];

/// A column as the database describes it.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) data_type: String,
    pub(crate) is_nullable: bool,
    pub(crate) is_primary_key: bool,
}

/// What a database says about the two tables. No columns: there is no such table.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) sessions: Vec<Column>,
    pub(crate) versions: Vec<Column>,
    /// The last step made.
    pub(crate) version: Option<u32>,
}

impl Found {
    /// Whether the table of versions is there, and is ours.
    pub(crate) fn has_versions(&self) -> bool {
        self.versions.iter().any(|column| column.name == "version" && column.is_primary_key)
    }
}

/// The columns of the session table, in no order: name, type as the database describes it, whether it may be null.
pub(crate) type Columns = [(&'static str, &'static str, bool); 7];

/// Finds out whether the tables are as this version needs them.
pub(crate) fn judge(table: &TableName, found: &Found, needed: u32, columns: &Columns) -> Verdict {
    let name = || table.as_str().to_owned();
    let foreign = |table: String, reason: String| Err(SchemaProblem::Foreign { table, reason });

    if !found.versions.is_empty() && !found.has_versions() {
        return foreign(table.schema_table(), "it has no primary key named version".to_owned());
    }
    let version = found.version.unwrap_or(0);
    if version > needed {
        return Err(SchemaProblem::TooNew { table: name(), found: version, known: needed });
    }
    if found.sessions.is_empty() {
        return Err(SchemaProblem::Missing { table: name() });
    }
    if found.versions.is_empty() {
        return foreign(name(), format!("there is no table {} beside it", table.schema_table()));
    }
    let outdated = SchemaProblem::Outdated { table: name(), found: version, needed };
    if (1..needed).contains(&version) {
        return Err(outdated);
    }
    // Columns that it has beyond ours are the application's affair.
    for (column, data_type, is_nullable) in columns {
        let Some(present) = found.sessions.iter().find(|present| present.name == *column) else {
            return foreign(name(), format!("it has no column {column}"));
        };
        if !present.data_type.eq_ignore_ascii_case(data_type) || present.is_nullable != *is_nullable {
            let null = if *is_nullable { "null" } else { "not null" };
            return foreign(name(), format!("its column {column} is not {data_type} {null}"));
        }
        if present.is_primary_key != (*column == "key") {
            return foreign(name(), "its primary key is not the column key".to_owned());
        }
    }
    // Here, a table without a version: its first migration was cut off.
    if version < needed { Err(outdated) } else { Ok(()) }
}

/// The statements to be run after this verdict; or why none can be.
pub(crate) fn statements_after(verdict: Verdict, steps: &[Step]) -> Result<Vec<&'static str>, SchemaProblem> {
    let done = match verdict {
        Ok(()) => steps.len(),
        Err(SchemaProblem::Missing { .. }) => 0,
        Err(SchemaProblem::Outdated { found, .. }) => usize::try_from(found).unwrap_or(usize::MAX),
        Err(problem) => return Err(problem),
    };
    Ok(steps.iter().skip(done).copied().flatten().copied().collect())
}
