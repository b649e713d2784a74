//! Connections to a Postgres server.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::postgres::{PgConnectOptions, PgQueryResult, PgSslMode};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions as _, PgConnection, Postgres, Row as _, SqlSafeStr as _,
    SqlStr, raw_sql,
};

use super::errors::ERRORS;
use crate::sql::connector::{Connector, OpenConnection};
use crate::sql::credentials::{Credentials, Provider};
use crate::sql::errors::DriverErrors;
use crate::sql::hosts::{self, HostOptions, Hosts};
use crate::sql::server::ServerSettings;
use crate::sql::session_check::{Report, ServerId, Session, Unfit};

/// Opens connections to the server.
pub(crate) struct PostgresConnector {
    hosts: Hosts<PgConnectOptions>,
    credentials: Option<Provider>,
}

impl PostgresConnector {
    /// Reads `url`. Connections are opened with the timeouts of `settings` as their own.
    pub(super) fn new(url: &str, settings: &ServerSettings) -> Result<Self, PersistenceError> {
        if !["postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(PersistenceError::Config("the URL does not begin with postgres:".to_owned()));
        }
        let mut all = Vec::new();
        for url in hosts::split(url)? {
            let mut options = PgConnectOptions::from_str(&url).map_err(|error| ERRORS.parsing(&error))?;
            if let Some(address) = hosts::without_brackets(options.get_host()).map(str::to_owned) {
                options = options.host(&address);
            }
            all.push(options.options([
                ("statement_timeout", millis(settings.statement_timeout)),
                ("lock_timeout", millis(settings.lock_timeout)),
                // Otherwise one of two writes of a session at the same time would be an error.
                ("default_transaction_isolation", "read committed".to_owned()),
            ]));
        }
        Ok(Self { hosts: Hosts::new(all), credentials: settings.credentials.clone() })
    }

    pub(super) fn database(&self) -> Option<String> {
        self.hosts.all().first()?.get_database().map(str::to_owned)
    }
}

impl Connector for PostgresConnector {
    type Database = Postgres;
    const ERRORS: DriverErrors = ERRORS;
    const IS_REMOTE: bool = true;

    async fn open(&self) -> Result<OpenConnection<Self>, Unfit> {
        let login = ServerSettings::login(self.credentials.as_ref()).await?;
        let open = |mut options: PgConnectOptions| {
            if let Some(Credentials { username, password }) = &login {
                options = options.password(password);
                if let Some(username) = username {
                    options = options.username(username);
                }
            }
            async move {
                let mut connection = options.connect().await?;
                let session = check(&mut connection).await?;
                Ok::<_, Unfit>(OpenConnection::<Self> { connection, session })
            }
        };
        self.hosts.connect(open).await
    }

    async fn check(connection: &mut PgConnection) -> Result<(), Unfit> {
        check(connection).await.map(|_| ())
    }

    fn rows_affected(done: &PgQueryResult) -> u64 {
        done.rows_affected()
    }
}

impl HostOptions for PgConnectOptions {
    fn name(&self) -> Option<(String, u16)> {
        let is_verified = matches!(self.get_ssl_mode(), PgSslMode::VerifyFull);
        let is_socket = self.get_socket().is_some() || self.get_host().starts_with('/');
        (!is_verified && !is_socket).then(|| (self.get_host().to_owned(), self.get_port()))
    }

    fn at(self, address: IpAddr) -> Self {
        self.host(&address.to_string())
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
