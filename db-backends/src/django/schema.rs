//! The check that the table is Django's. It is never made or changed here.

use session_core::{PersistenceError, SchemaProblem};
use sqlx::{SqlStr, query};

use super::statements::{COLUMNS, DjangoBackend, KEY, Statements};
use crate::sql::persistence::SqlPersistence;

pub(super) async fn check<B: DjangoBackend>(
    db: &SqlPersistence<B>,
    sql: &Statements<SqlStr>,
) -> Result<(), PersistenceError> {
    db.check_settings().await?;
    let table = db.table.as_str();
    let found = db.read_all(B::bind_text(query(sql.describe.clone()), Some(table))).await?;
    if found.is_empty() {
        return Err(PersistenceError::Config(format!(
            "there is no table {table} in this database; run `python manage.py migrate sessions` at the Django site"
        )));
    }
    let foreign = |reason| SchemaProblem::Foreign { table: table.to_owned(), reason };
    for (column, data_type) in COLUMNS.into_iter().zip(B::TYPES) {
        let mut present = None;
        for row in &found {
            if B::read_text(row, "name")? == column {
                present = Some((B::read_text(row, "type")?, B::read_text(row, "is_key")?));
            }
        }
        let Some((present_type, is_key)) = present else {
            return Err(foreign(format!("it has no column {column}")).into());
        };
        if !present_type.eq_ignore_ascii_case(data_type) {
            return Err(foreign(format!("its column {column} is not {data_type}")).into());
        }
        if (is_key == "true") != (column == KEY) {
            return Err(foreign("its primary key is not the column session_key".to_owned()).into());
        }
    }
    for row in &found {
        let name = B::read_text(row, "name")?;
        if !COLUMNS.contains(&name) && B::read_text(row, "is_mandatory")? == "true" {
            return Err(foreign(format!(
                "its column {name} is mandatory, so that no session can be added; give it a default, or let it be null"
            ))
            .into());
        }
    }
    Ok(())
}
