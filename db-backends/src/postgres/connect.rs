//! Connections to a Postgres server.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::postgres::{PgConnectOptions, PgQueryResult};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions as _, PgConnection, Postgres, Row as _, SqlSafeStr as _,
    SqlStr, raw_sql,
};

use super::errors::ERRORS;
use crate::sql::connector::{Connector, OpenConnection};
use crate::sql::errors::DriverErrors;
use crate::sql::server::ServerSettings;
use crate::sql::session_check::{Report, ServerId, Session, Unfit};

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

    async fn open(&self) -> Result<OpenConnection<Self>, Unfit> {
        let mut connection = self.0.connect().await?;
        let session = check(&mut connection).await?;
        Ok(OpenConnection { connection, session })
    }

    async fn check(connection: &mut PgConnection) -> Result<(), Unfit> {
        check(connection).await.map(|_| ())
    }

    fn rows_affected(done: &PgQueryResult) -> u64 {
        done.rows_affected()
    }
}

/// The question about the server and the session, whose answers are text. A replica's transactions are
/// read-only; those of a primary are where an operator has made them so.
const REPORT: &str = "SELECT pg_is_in_recovery()::text AS is_in_recovery,
                             current_setting('transaction_read_only') AS transaction_read_only,
                             extract(epoch FROM pg_postmaster_start_time())::text AS started_at";

/// Checks that the server takes writes.
async fn check(connection: &mut PgConnection) -> Result<Session, Unfit> {
    let row = raw_sql(REPORT).fetch_one(connection).await?;
    let mut report = Report::default();
    for column in row.columns() {
        report.add(column.name(), row.try_get(column.ordinal())?);
    }
    if report.is_on("is_in_recovery") {
        return Err(Unfit::NotPrimary("is a standby (pg_is_in_recovery)"));
    }
    if report.is_on("transaction_read_only") {
        return Err(Unfit::NotPrimary("has read-only transactions (default_transaction_read_only)"));
    }
    // To the microsecond: no two servers have the same.
    let server = ServerId { name: report.get("started_at").to_owned(), started_at: 0 };
    Ok(Session { server, group: None, connection_id: 0 })
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
