//! The name of the session table.

use std::sync::Arc;

use session_core::PersistenceError;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The name of the session table, `sessions` by default. It is an identifier in every database, so it can
/// stand in the text of a statement. Statements quote it all the same, because it may be a word of SQL.
#[derive(Clone, Debug)]
pub(crate) struct TableName(String);

impl TableName {
    /// Leaves room for the suffixes of the indexes and of the schema table in the 63 bytes of a Postgres
    /// identifier.
    const MAX_LEN: usize = 48;

    pub(crate) fn parse(text: &str) -> Result<Self, PersistenceError> {
        let mut bytes = text.bytes();
        let starts_well = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        let is_identifier = starts_well && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let is_reserved = text.to_ascii_lowercase().starts_with("sqlite_");
        if !is_identifier || text.len() > Self::MAX_LEN || is_reserved {
            return Err(PersistenceError::Config(format!(
                "the table name must be 1 to {} characters of [A-Za-z0-9_], not beginning with a digit or sqlite_",
                Self::MAX_LEN
            )));
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn parse_or_default(text: Option<&str>) -> Result<Self, PersistenceError> {
        text.map_or_else(|| Ok(Self::default()), Self::parse)
    }

    /// Returns the name of Django's session table.
    #[cfg(feature = "django")]
    pub(crate) fn django() -> Self {
        Self("django_session".to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the table that holds the schema's version.
    pub(crate) fn schema_table(&self) -> String {
        format!("{}_schema", self.0)
    }

    /// Returns the name of the table that holds the notes of rotations.
    pub(crate) fn rotations_table(&self) -> String {
        format!("{}_rotations", self.0)
    }

    /// Returns the name under which the keys that are written in the table are reported.
    pub(crate) fn notices_channel(&self) -> String {
        format!("notices_{}", self.0)
    }

    /// Returns `template` with this name in place of every `{table}`.
    pub(crate) fn fill(&self, template: &str) -> String {
        template.replace("{table}", &self.0)
    }

    /// Returns a statement that can be cloned without copying its text. The text is safe: the name is an
    /// identifier, and every template is text of this crate.
    pub(crate) fn sql(&self, template: &str) -> SqlStr {
        AssertSqlSafe(Arc::<str>::from(self.fill(template))).into_sql_str()
    }
}

impl Default for TableName {
    fn default() -> Self {
        Self("sessions".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_name_must_be_an_identifier() {
        for name in ["sessions", "_x", "Order", "a1", &"t".repeat(48)] {
            assert_eq!(TableName::parse(name).unwrap().as_str(), name);
        }
        for name in ["", "1a", "a b", "a\"b", "a;b", "a.b", "ä", "sqlite_x", "SQLite_x", &"t".repeat(49)] {
            assert!(matches!(TableName::parse(name), Err(PersistenceError::Config(_))), "{name:?}");
        }
    }
}
