use session_core::PersistenceError;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The name of the session table, `sessions` by default: an identifier that every database takes, so that it can stand in the text of a
/// statement. Statements quote it all the same: it may be a word of SQL.
#[derive(Clone, Debug)]
pub(crate) struct TableName(String);

impl TableName {
    /// What leaves room for the suffixes of indexes and of the table that holds the schema's version, in the 63 bytes of
    /// Postgres.
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

    /// The table of Django's sessions.
    #[cfg(feature = "django")]
    pub(crate) fn django() -> Self {
        Self("django_session".to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The table that holds the schema's version.
    pub(crate) fn schema_table(&self) -> String {
        format!("{}_schema", self.0)
    }

    /// `template` with this name for every `{table}`.
    pub(crate) fn fill(&self, template: &str) -> String {
        template.replace("{table}", &self.0)
    }

    /// A statement, its text made once: cloning it copies no text. Safe, because the name is an identifier and the
    /// template is our own.
    pub(crate) fn sql(&self, template: &'static str) -> SqlStr {
        AssertSqlSafe(std::sync::Arc::<str>::from(self.fill(template))).into_sql_str()
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
    fn only_identifiers_are_table_names() {
        for name in ["sessions", "_x", "Order", "a1", &"t".repeat(48)] {
            assert_eq!(TableName::parse(name).unwrap().as_str(), name);
        }
        for name in ["", "1a", "a b", "a\"b", "a;b", "a.b", "ä", "sqlite_x", "SQLite_x", &"t".repeat(49)] {
            assert!(matches!(TableName::parse(name), Err(PersistenceError::Config(_))), "{name:?}");
        }
    }
}
