//! How the server is reached, and how it is told to end a statement.

use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlQueryResult};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, MySql, SqlSafeStr as _, SqlStr, query_scalar,
    raw_sql,
};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::DIALECT;
use crate::sql::connections::{Link, Numbered};
use crate::sql::error::Dialect;

/// How to reach the server.
#[derive(Clone)]
pub(crate) struct MySqlLink {
    options: Arc<MySqlConnectOptions>,
    /// What a new connection is told.
    settings: SqlStr,
    patience: Duration,
}

impl MySqlLink {
    pub(super) fn new(
        options: MySqlConnectOptions,
        statement_timeout: Duration,
        lock_timeout: Duration,
        patience: Duration,
    ) -> Self {
        // Whole seconds, at least one. Otherwise one of two writes of a session at the same time could be an error, and
        // the reaper would lock the gap behind the expired rows.
        let lock_timeout = lock_timeout.as_secs_f64().ceil().clamp(1.0, 3600.0);
        // What stands in /*M! is for MariaDB only.
        let settings = format!(
            "SET SESSION autocommit = 1, innodb_lock_wait_timeout = {lock_timeout}, lock_wait_timeout = {lock_timeout} \
             /*M! , max_statement_time = {} */; \
             SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            statement_timeout.as_secs_f64().max(0.001)
        );
        // Safe, because these are numbers.
        Self { options: Arc::new(options), settings: AssertSqlSafe(settings).into_sql_str(), patience }
    }

    /// Has the server end the connection with this number, and what it does.
    async fn kill(&self, number: u64) -> sqlx::Result<()> {
        let mut connection = self.options.connect().await?;
        raw_sql(AssertSqlSafe(format!("KILL {number}"))).execute(&mut connection).await?;
        connection.close().await
    }
}

impl Link for MySqlLink {
    type Database = MySql;
    const DIALECT: Dialect = DIALECT;
    const IS_REMOTE: bool = true;

    async fn open(&self) -> sqlx::Result<Numbered<Self>> {
        let mut connection = self.options.connect().await?;
        raw_sql(self.settings.clone()).execute(&mut connection).await?;
        let number = query_scalar("SELECT connection_id()").fetch_one(&mut connection).await?;
        Ok(Numbered { connection, number })
    }

    fn rows_affected(done: &MySqlQueryResult) -> u64 {
        // Of those matched: the driver asks for that.
        done.rows_affected()
    }

    fn give_up(&self, abandoned: Numbered<Self>) {
        // Without a runtime, and where this fails, the timeouts are left.
        if let Ok(runtime) = Handle::try_current() {
            let link = self.clone();
            runtime.spawn(async move {
                let _ = timeout(link.patience, link.kill(abandoned.number)).await;
                drop(abandoned);
            });
        }
    }
}
