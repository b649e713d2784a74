//! Whether the table is Django's. It is never made or changed here.

use session_core::{PersistenceError, SchemaProblem};
use sqlx::query;

use super::{Column, DjangoBackend, DjangoPersistence};

const COLUMNS: [&str; 3] = ["session_key", "session_data", "expire_date"];

#[expect(private_bounds, reason = "nobody else implements it")]
impl<B: DjangoBackend> DjangoPersistence<B> {
    pub(super) async fn check(&self) -> Result<(), PersistenceError> {
        B::check_connections(&self.db).await?;
        let table = self.db.table.as_str();
        let found = B::bind_text(query(self.sql.columns.clone()), Some(table));
        let found = B::read_all(&self.db, found).await?;
        if found.is_empty() {
            return Err(PersistenceError::Config(format!(
                "there is no table {table} in this database; run `python manage.py migrate sessions` at the Django site"
            )));
        }
        let foreign = |reason| SchemaProblem::Foreign { table: table.to_owned(), reason };
        for (column, data_type) in COLUMNS.into_iter().zip(B::TYPES) {
            let mut present = None;
            for row in &found {
                let text = |index| B::text(row, Column { index, name: "of the table's description" });
                if text(0)? == column {
                    present = Some((text(1)?, text(2)?));
                }
            }
            let Some((present_type, is_primary_key)) = present else {
                return Err(foreign(format!("it has no column {column}")).into());
            };
            if !present_type.eq_ignore_ascii_case(data_type) {
                return Err(foreign(format!("its column {column} is not {data_type}")).into());
            }
            if (is_primary_key == "true") != (column == "session_key") {
                return Err(foreign("its primary key is not the column session_key".to_owned()).into());
            }
        }
        Ok(())
    }
}
