//! Connections to a MySQL or MariaDB server, and the end of a statement that is abandoned there.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;

use session_core::PersistenceError;
use sqlx::mysql::{MySqlConnectOptions, MySqlQueryResult, MySqlRow, MySqlSslMode};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions as _, Executor as _, MySql, MySqlConnection, Row as _,
    SqlSafeStr as _, SqlStr, raw_sql,
};

use super::error::ERRORS;
use crate::sql::connector::{Connector, OpenConnection};
use crate::sql::error::DriverErrors;
use crate::sql::hosts::{self, HostOptions};
use crate::sql::route::{Ends, Route};
use crate::sql::server::ServerSettings;
use crate::sql::session_check::{Report, ServerId, Session, Unfit};

/// Opens connections to the server.
pub(crate) struct MySqlConnector {
    route: Arc<Route<MySqlConnectOptions>>,
    /// The statement that is run on every new connection.
    setup: SqlStr,
}

impl MySqlConnector {
    /// Reads `url`. Connections are opened with the timeouts of `settings` as their own.
    pub(super) fn new(url: &str, settings: &ServerSettings) -> Result<Self, PersistenceError> {
        let Some(rest) = ["mysql:", "mariadb:"].iter().find_map(|scheme| url.strip_prefix(scheme)) else {
            return Err(PersistenceError::Config("the URL does not begin with mysql:".to_owned()));
        };
        let mut all = Vec::new();
        for url in hosts::split(&format!("mysql:{rest}"))? {
            all.push(options(&url, settings)?);
        }
        // Whole seconds, at least one.
        let lock_timeout = settings.lock_timeout.as_secs_f64().ceil().clamp(1.0, 3600.0);
        // MariaDB alone reads what is in /*M! */. Strict, so that no value is cut off in silence. Without READ COMMITTED, one of two writes of a session at
        // the same time could be an error, and the reaper would lock the gap behind the expired rows.
        let setup = format!(
            "SET SESSION autocommit = 1, innodb_lock_wait_timeout = {lock_timeout}, lock_wait_timeout = {lock_timeout}, \
             sql_mode = concat(@@sql_mode, ',STRICT_TRANS_TABLES') /*M! , max_statement_time = {} */; \
             SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; {REPORT}",
            settings.statement_timeout.as_secs_f64().max(0.001)
        );
        Ok(Self {
            route: Route::new(all, settings.credentials.clone(), settings.acquire_timeout),
            // Safe, because these are numbers.
            setup: AssertSqlSafe(setup).into_sql_str(),
        })
    }

    pub(super) fn database(&self) -> Option<String> {
        self.route.hosts().first()?.get_database().map(str::to_owned)
    }
}

impl Connector for MySqlConnector {
    type Database = MySql;
    const ERRORS: DriverErrors = ERRORS;
    const IS_REMOTE: bool = true;

    async fn open(&self) -> Result<OpenConnection<Self>, Unfit> {
        let open = |options: MySqlConnectOptions| {
            let setup = self.setup.clone();
            async move {
                let mut connection = options.connect().await?;
                let report = reported(&mut connection, setup).await?;
                must_be_primary(&report)?;
                if report.is_on("wsrep_on") {
                    connection.execute(raw_sql(SYNC_WAIT)).await?;
                }
                let connection_id = report.get("connection_id").to_owned();
                let session = Session { server: server_of(&report), group: group_of(&report), connection_id };
                Ok::<_, Unfit>(OpenConnection::<Self> { connection, session })
            }
        };
        self.route.open(open).await
    }

    async fn check(connection: &mut MySqlConnection, _: bool) -> Result<Option<ServerId>, Unfit> {
        must_be_primary(&reported(connection, SqlStr::from_static(ROLE)).await?).map(|()| None)
    }

    fn rows_affected(done: &MySqlQueryResult) -> u64 {
        // The number of rows matched, which the driver asks for.
        done.rows_affected()
    }

    fn abandon(&self, abandoned: OpenConnection<Self>) {
        self.route.abandon(abandoned);
    }
}

impl Ends for MySqlConnector {
    async fn end(connection: &mut MySqlConnection, session: &Session) -> Result<bool, Unfit> {
        let report = reported(connection, SqlStr::from_static(REPORT)).await?;
        if !server_of(&report).is_same(&session.server) {
            return Ok(false);
        }
        // Safe, because a server's own name for a connection is a number.
        let kill = format!("KILL {}", session.connection_id);
        raw_sql(AssertSqlSafe(kill)).execute(connection).await?;
        Ok(true)
    }
}

/// Makes a node of a Galera cluster read and change rows only when it has applied what the other nodes have
/// committed. Without 1, a load sees an old row; without 2, an update or a delete finds no row that it matches.
const SYNC_WAIT: &str = "SET SESSION wsrep_sync_wait = @@session.wsrep_sync_wait | 3";

/// Reads the URL of one host.
fn options(url: &str, settings: &ServerSettings) -> Result<MySqlConnectOptions, PersistenceError> {
    let mut options = MySqlConnectOptions::from_str(url).map_err(|error| ERRORS.parsing(&error))?;
    if options.get_database().is_none() {
        return Err(PersistenceError::Config("the URL names no database".to_owned()));
    }
    if let Some(address) = hosts::without_brackets(options.get_host()).map(str::to_owned) {
        options = options.host(&address);
    }
    if settings.cleartext_password {
        let is_encrypted = matches!(
            options.get_ssl_mode(),
            MySqlSslMode::Required | MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity
        );
        if !is_encrypted {
            return Err(PersistenceError::Config(
                "cleartext_password needs TLS: set ssl-mode to required, verify_ca or verify_identity"
                    .to_owned(),
            ));
        }
        options = options.enable_cleartext_plugin(true);
    }
    Ok(options)
}

// Reads as in `postgres`: the options of the two drivers have methods of the same names, and no trait of the driver joins them.
impl HostOptions for MySqlConnectOptions {
    fn name(&self) -> Option<(String, u16)> {
        let is_verified = matches!(self.get_ssl_mode(), MySqlSslMode::VerifyIdentity);
        let is_socket = self.get_socket().is_some();
        (!is_verified && !is_socket).then(|| (self.get_host().to_owned(), self.get_port()))
    }

    fn at(self, address: IpAddr) -> Self {
        self.host(&address.to_string())
    }

    fn with_username(self, username: &str) -> Self {
        self.username(username)
    }

    fn with_password(self, password: &str) -> Self {
        self.password(password)
    }
}

macro_rules! role {
    () => {
        "@@global.read_only AS read_only, @@global.innodb_read_only AS innodb_read_only \
         /*!50708 , @@global.super_read_only AS super_read_only */ \
         /*!50720 , @@session.transaction_read_only AS transaction_read_only */ \
         /*M! , @@session.tx_read_only AS transaction_read_only */"
    };
}

/// The settings by which a server takes no writes. MariaDB ignores what is for MySQL 5.7 and later, and MySQL
/// what is in `/*M! */`.
const ROLE: &str = concat!("SELECT ", role!());

/// The questions about the server and the session: their answers are columns, and rows of a name and a value.
const REPORT: &str = concat!(
    "SELECT connection_id() AS connection_id, unix_timestamp() AS now, concat_ws('/', @@hostname, @@port, \
     @@server_id /*!50708 , @@server_uuid */) AS server, ",
    role!(),
    "; SHOW GLOBAL STATUS WHERE Variable_name IN ('Uptime', 'wsrep_ready', 'wsrep_cluster_state_uuid'); \
     SHOW GLOBAL VARIABLES WHERE Variable_name = 'wsrep_on'"
);

/// Asks the server with these statements.
pub(super) async fn reported(connection: &mut MySqlConnection, sql: SqlStr) -> Result<Report, Unfit> {
    let mut report = Report::default();
    // Every value becomes text, whatever type it has.
    let text = |row: &MySqlRow, column: usize| -> sqlx::Result<Option<String>> {
        row.try_get_unchecked::<Option<String>, _>(column)
    };
    for row in connection.fetch_all(raw_sql(sql)).await? {
        if row.try_column("Variable_name").is_ok() {
            report.add(&text(&row, 0)?.unwrap_or_default(), text(&row, 1)?.as_deref());
            continue;
        }
        for column in row.columns() {
            report.add(column.name(), text(&row, column.ordinal())?.as_deref());
        }
    }
    Ok(report)
}

fn must_be_primary(report: &Report) -> Result<(), Unfit> {
    for (setting, reason) in [
        ("super_read_only", "is read-only (super_read_only)"),
        ("read_only", "is read-only (read_only)"),
        ("innodb_read_only", "is read-only (innodb_read_only)"),
        ("transaction_read_only", "has read-only transactions (transaction_read_only)"),
    ] {
        if report.is_on(setting) {
            return Err(Unfit::NotPrimary(reason));
        }
    }
    // Every MariaDB reports that it is not ready for a cluster that it is no node of.
    if report.is_on("wsrep_on") && !report.is_on("wsrep_ready") {
        return Err(Unfit::NotPrimary("is a node that its Galera cluster does not let answer (wsrep_ready)"));
    }
    Ok(())
}

/// Returns the server's identity.
fn server_of(report: &Report) -> ServerId {
    let number = |name| report.get(name).parse::<i64>().unwrap_or_default();
    ServerId { name: report.get("server").to_owned(), started_at: number("now") - number("uptime") }
}

/// Returns the identity of the Galera cluster that the server is a node of, if it is one: all nodes take writes.
fn group_of(report: &Report) -> Option<ServerId> {
    let name = || report.get("wsrep_cluster_state_uuid").to_owned();
    report.is_on("wsrep_on").then(|| ServerId { name: name(), started_at: 0 })
}

/// Begins a transaction. The isolation level holds for the next transaction only.
pub(super) const BEGIN: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
