//! Connections to a Postgres server.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::postgres::{PgConnectOptions, PgQueryResult};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Postgres, SqlSafeStr as _, SqlStr};

use super::errors::ERRORS;
use crate::sql::connector::{Connector, OpenConnection};
use crate::sql::errors::DriverErrors;
use crate::sql::server::ServerSettings;

/// Opens connections to the server.
pub(crate) struct PostgresConnector(Arc<PgConnectOptions>);

impl PostgresConnector {
    /// Reads `url`. Connections are opened with the timeouts of `settings` as their own.
    pub(super) fn new(url: &str, settings: &ServerSettings) -> Result<Self, PersistenceError> {
        if !["postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(PersistenceError::Config("the URL does not begin with postgres:".to_owned()));
        }
        let options = PgConnectOptions::from_str(url).map_err(|error| ERRORS.parsing(&error))?.options([
            ("statement_timeout", millis(settings.statement_timeout)),
            ("lock_timeout", millis(settings.lock_timeout)),
            // Otherwise one of two writes of a session at the same time would be an error.
            ("default_transaction_isolation", "read committed".to_owned()),
        ]);
        Ok(Self(Arc::new(options)))
    }

    pub(super) fn database(&self) -> Option<String> {
        self.0.get_database().map(str::to_owned)
    }
}

impl Connector for PostgresConnector {
    type Database = Postgres;
    const ERRORS: DriverErrors = ERRORS;
    const IS_REMOTE: bool = true;

    async fn open(&self) -> sqlx::Result<OpenConnection<Self>> {
        Ok(OpenConnection { connection: self.0.connect().await?, server_id: 0 })
    }

    fn rows_affected(done: &PgQueryResult) -> u64 {
        done.rows_affected()
    }
}

/// Returns the statement that begins a transaction with the timeouts of `settings`.
pub(super) fn begin(settings: &ServerSettings) -> SqlStr {
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}",
        millis(settings.statement_timeout),
        millis(settings.lock_timeout)
    );
    // Safe, because these are numbers.
    AssertSqlSafe(begin).into_sql_str()
}

/// Returns a timeout as the server takes it, where zero would mean "for ever".
fn millis(timeout: Duration) -> String {
    timeout.as_millis().clamp(1, i32::MAX as u128).to_string()
}
