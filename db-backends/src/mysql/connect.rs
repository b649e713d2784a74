//! Connections to a MySQL or MariaDB server, and the end of a statement that is abandoned there.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::mysql::{MySqlConnectOptions, MySqlQueryResult};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, MySql, SqlSafeStr as _, SqlStr, query_scalar,
    raw_sql,
};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::errors::ERRORS;
use crate::sql::connector::{Connector, OpenConnection};
use crate::sql::errors::DriverErrors;
use crate::sql::server::ServerSettings;

/// Opens connections to the server.
#[derive(Clone)]
pub(crate) struct MySqlConnector {
    options: Arc<MySqlConnectOptions>,
    /// The statement that is run on every new connection.
    setup: SqlStr,
    acquire_timeout: Duration,
}

impl MySqlConnector {
    /// Reads `url`. Connections are opened with the timeouts of `settings` as their own.
    pub(super) fn new(url: &str, settings: &ServerSettings) -> Result<Self, PersistenceError> {
        let Some(rest) = ["mysql:", "mariadb:"].iter().find_map(|scheme| url.strip_prefix(scheme)) else {
            return Err(PersistenceError::Config("the URL does not begin with mysql:".to_owned()));
        };
        let options = MySqlConnectOptions::from_str(&format!("mysql:{rest}"));
        let options = options.map_err(|error| ERRORS.parsing(&error))?;
        if options.get_database().is_none() {
            return Err(PersistenceError::Config("the URL names no database".to_owned()));
        }
        // Whole seconds, at least one.
        let lock_timeout = settings.lock_timeout.as_secs_f64().ceil().clamp(1.0, 3600.0);
        // MariaDB alone reads what is in /*M! */. Without READ COMMITTED, one of two writes of a session at
        // the same time could be an error, and the reaper would lock the gap behind the expired rows.
        let setup = format!(
            "SET SESSION autocommit = 1, innodb_lock_wait_timeout = {lock_timeout}, lock_wait_timeout = {lock_timeout} \
             /*M! , max_statement_time = {} */; \
             SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            settings.statement_timeout.as_secs_f64().max(0.001)
        );
        Ok(Self {
            options: Arc::new(options),
            // Safe, because these are numbers.
            setup: AssertSqlSafe(setup).into_sql_str(),
            acquire_timeout: settings.acquire_timeout,
        })
    }

    pub(super) fn database(&self) -> Option<String> {
        self.options.get_database().map(str::to_owned)
    }

    /// Tells the server to end the connection with this number, and the statement on it.
    async fn kill(&self, server_id: u64) -> sqlx::Result<()> {
        let mut connection = self.options.connect().await?;
        raw_sql(AssertSqlSafe(format!("KILL {server_id}"))).execute(&mut connection).await?;
        connection.close().await
    }
}

impl Connector for MySqlConnector {
    type Database = MySql;
    const ERRORS: DriverErrors = ERRORS;
    const IS_REMOTE: bool = true;

    async fn open(&self) -> sqlx::Result<OpenConnection<Self>> {
        let mut connection = self.options.connect().await?;
        raw_sql(self.setup.clone()).execute(&mut connection).await?;
        let server_id = query_scalar("SELECT connection_id()").fetch_one(&mut connection).await?;
        Ok(OpenConnection { connection, server_id })
    }

    fn rows_affected(done: &MySqlQueryResult) -> u64 {
        // The number of rows matched, which the driver asks for.
        done.rows_affected()
    }

    fn abandon(&self, abandoned: OpenConnection<Self>) {
        // Without a runtime, and where the KILL fails, the server's timeouts remain.
        if let Ok(runtime) = Handle::try_current() {
            let connector = self.clone();
            runtime.spawn(async move {
                let _ = timeout(connector.acquire_timeout, connector.kill(abandoned.server_id)).await;
                drop(abandoned);
            });
        }
    }
}

/// Begins a transaction. The isolation level holds for the next transaction only.
pub(super) const BEGIN: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
