//! Connections to a Postgres server, or to a pooler before it.
//!
//! On a connection of our own, the startup message names the settings that bound a statement. A pooler refuses
//! such a message, or drops what is in it: in transaction mode, a client has no connection whose settings
//! could be its own. So the message also names a random number, which the server must report, together with the
//! settings. Where it does not, each statement is a transaction that brings its settings, and none is prepared
//! under a name. That holds in every mode of a pooler in which transactions work at all.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use session_core::PersistenceError;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgQueryResult, PgSslMode};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool,
    Postgres, Row as _, SqlSafeStr as _, SqlStr, query, raw_sql,
};

use super::error::ERRORS;
use crate::sql::connector::{Connector, OpenConnection};
use crate::sql::error::DriverErrors;
use crate::sql::hosts::{self, HostOptions};
use crate::sql::route::{Ends, Route};
use crate::sql::server::ServerSettings;
use crate::sql::session_check::{Report, ServerId, Session, Unfit};

/// Opens connections to the server.
pub(crate) struct PostgresConnector {
    route: Arc<Route<PgConnectOptions>>,
    opening: Arc<Opening>,
}

/// The way to open a connection to one host.
struct Opening {
    settings: [(&'static str, String); 3],
    begin: SqlStr,
    /// The builder says that there is no pooler.
    must_be_direct: bool,
    is_pooled: AtomicBool,
}

/// The name of the setting that holds a connection's random number.
const MARKER: &str = "sessions.connection";

const DROPPED_OPTIONS: &str = "a connection pooler stands before the server, and drops the `options` of the URL, of \
    the pool, or of PGOPTIONS; leave them out, and set them for the role instead, as in ALTER ROLE app SET \
    search_path = app";

const NO_TRANSACTIONS: &str = "the connection pooler before the server does not let a client have a transaction; set \
    pool_mode = transaction or pool_mode = session in PgBouncer";

const DROPPED_SETTINGS: &str = "the connection does not have the timeouts that it was opened with, although the builder \
    says that no pooler stands before the server; leave behind_pooler(false) out, or let the URL lead to the server";

/// The statement that fails in a transaction that is read-only, as all of them are on a standby. The transaction stays
/// open, so a pooler closes its connection to that server when the client's is closed.
macro_rules! guard {
    () => {
        "DO $$BEGIN IF current_setting('transaction_read_only')::boolean THEN \
         RAISE SQLSTATE '25006' USING MESSAGE = 'the server takes no writes'; END IF; END$$"
    };
}

impl PostgresConnector {
    /// Reads `url`. Connections are opened with the timeouts of `settings` as their own.
    pub(super) fn new(url: &str, settings: &ServerSettings) -> Result<Self, PersistenceError> {
        if !["postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(PersistenceError::Config("the URL does not begin with postgres:".to_owned()));
        }
        let mut all = Vec::new();
        for url in hosts::split(url)? {
            let options = PgConnectOptions::from_str(&url).map_err(|error| ERRORS.parsing(&error))?;
            // Poolers refuse extra_float_digits, which the driver would set, and no float is read here.
            let mut options = options.extra_float_digits(None);
            if let Some(address) = hosts::without_brackets(options.get_host()).map(str::to_owned) {
                options = options.host(&address);
            }
            if settings.behind_pooler == Some(true) && options.get_options().is_some() {
                return Err(PersistenceError::Config(DROPPED_OPTIONS.to_owned()));
            }
            all.push(options);
        }
        let opening = Opening {
            settings: [
                ("statement_timeout", millis(settings.statement_timeout)),
                ("lock_timeout", millis(settings.lock_timeout)),
                // Otherwise one of two writes of a session at the same time would be an error.
                ("default_transaction_isolation", "read committed".to_owned()),
            ],
            begin: begin(settings),
            must_be_direct: settings.behind_pooler == Some(false),
            is_pooled: AtomicBool::new(settings.behind_pooler == Some(true)),
        };
        let route = Route::new(all, settings.credentials.clone(), settings.acquire_timeout);
        Ok(Self { route, opening: Arc::new(opening) })
    }

    pub(super) fn database(&self) -> Option<String> {
        self.route.hosts().first()?.get_database().map(str::to_owned)
    }

    pub(super) const fn route(&self) -> &Arc<Route<PgConnectOptions>> {
        &self.route
    }

    pub(super) fn begin(&self) -> SqlStr {
        self.opening.begin.clone()
    }
}

impl Opening {
    /// Opens a connection with these options.
    async fn open(&self, options: PgConnectOptions) -> Result<OpenConnection<PostgresConnector>, Unfit> {
        if !self.is_pooled.load(Ordering::Relaxed)
            && let Some(open) = self.open_direct(&options).await?
        {
            return Ok(open);
        }
        let open = self.open_pooled(&options).await?;
        if !self.is_pooled.swap(true, Ordering::Relaxed) {
            tracing::info!(
                target: "db_backends",
                event = "database_pooler",
                "a connection pooler stands before Postgres; every statement is a transaction with its own settings"
            );
        }
        Ok(open)
    }

    /// Opens a connection that has the settings. Returns `None` if a pooler keeps them from the server.
    async fn open_direct(
        &self,
        options: &PgConnectOptions,
    ) -> Result<Option<OpenConnection<PostgresConnector>>, Unfit> {
        let marker = fastrand::u64(..).to_string();
        let options = options.clone().options(self.settings.clone()).options([(MARKER, &marker)]);
        let mut connection = match options.connect().await {
            Ok(connection) => connection,
            Err(error) if refuses_parameters(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let report = reported_by(&mut connection).await?;
        must_be_primary(&report)?;
        let has_settings = report.get("marker") == marker && self.are_in(&report);
        Ok(has_settings.then(|| OpenConnection { connection, session: session_of(&report) }))
    }

    /// Opens a connection to a pooler, and checks that a transaction has the settings there.
    async fn open_pooled(
        &self,
        options: &PgConnectOptions,
    ) -> Result<OpenConnection<PostgresConnector>, Unfit> {
        if self.must_be_direct {
            return Err(Unfit::Config(DROPPED_SETTINGS.to_owned()));
        }
        if options.get_options().is_some() {
            return Err(Unfit::Config(DROPPED_OPTIONS.to_owned()));
        }
        let mut connection = options.connect().await?;
        // In several messages: a pooler without transactions takes one of several statements.
        let mut transaction = match connection.begin_with(self.begin.clone()).await {
            Ok(transaction) => transaction,
            Err(sqlx::Error::Database(answer)) if refuses_transactions(&*answer) => {
                return Err(Unfit::Config(NO_TRANSACTIONS.to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        let report = reported_by(&mut transaction).await?;
        // In the transaction: if it is left open, the pooler closes its connection to a server that was deposed, where it
        // would use it for the next client otherwise.
        must_be_primary(&report)?;
        transaction.rollback().await?;
        if !self.are_in(&report) {
            return Err(Unfit::Config(NO_TRANSACTIONS.to_owned()));
        }
        // The pooler may run the next transaction on another connection to the server.
        let session = Session { connection_id: String::new(), ..session_of(&report) };
        Ok(OpenConnection { connection, session })
    }

    /// Returns `true` if the settings have their values in `report`.
    fn are_in(&self, report: &Report) -> bool {
        self.settings.iter().all(|(name, value)| report.get(name) == value)
    }
}

impl Connector for PostgresConnector {
    type Database = Postgres;
    const ERRORS: DriverErrors = ERRORS;
    const IS_REMOTE: bool = true;

    async fn open(&self) -> Result<OpenConnection<Self>, Unfit> {
        let open = |options: PgConnectOptions| {
            let opening = Arc::clone(&self.opening);
            async move { opening.open(options).await }
        };
        self.route.open(open).await
    }

    async fn check(connection: &mut PgConnection, is_pooled: bool) -> Result<Option<ServerId>, Unfit> {
        if !is_pooled {
            let report = reported_by(connection).await?;
            must_be_primary(&report)?;
            return Ok(Some(session_of(&report).server));
        }
        let check = concat!("BEGIN; ", guard!(), "; COMMIT");
        match connection.execute(raw_sql(check)).await {
            Ok(_) => Ok(None),
            Err(error) if ERRORS.is_not_primary(&error) => Err(Unfit::NotPrimary(READ_ONLY)),
            Err(error) => Err(error.into()),
        }
    }

    fn is_pooled(&self) -> bool {
        self.opening.is_pooled.load(Ordering::Relaxed)
    }

    fn begin_reading(begin: &SqlStr) -> SqlStr {
        // Safe, because both are ours.
        AssertSqlSafe(format!("{}; {}", begin.as_str(), guard!())).into_sql_str()
    }

    async fn pools_over_pooler(pool: &PgPool) -> Result<bool, PersistenceError> {
        let options = pool.connect_options();
        let is_pooled = leads_to_pooler(&options).await?;
        if is_pooled && options.get_options().is_some() {
            return Err(PersistenceError::Config(DROPPED_OPTIONS.to_owned()));
        }
        Ok(is_pooled)
    }

    fn rows_affected(done: &PgQueryResult) -> u64 {
        done.rows_affected()
    }

    fn abandon(&self, abandoned: OpenConnection<Self>) {
        self.route.abandon(abandoned);
    }
}

impl Ends for PostgresConnector {
    /// The server's own timeouts end a statement, but not a commit that waits for a synchronous standby. That one has
    /// happened, and this makes it visible: otherwise it would become so at any time, and no fence lasts as long.
    async fn end(connection: &mut PgConnection, session: &Session) -> Result<bool, Unfit> {
        let report = reported_by(connection).await?;
        let is_there = session_of(&report).server.is_same(&session.server);
        if is_there {
            query(TERMINATE).bind(&session.connection_id).persistent(false).execute(connection).await?;
        }
        Ok(is_there)
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

    fn with_username(self, username: &str) -> Self {
        self.username(username)
    }

    fn with_password(self, password: &str) -> Self {
        self.password(password)
    }
}

/// Opens one more connection like those of an application's pool, to see whether its startup message reaches
/// the server.
async fn leads_to_pooler(options: &PgConnectOptions) -> Result<bool, PersistenceError> {
    let marker = fastrand::u64(..).to_string();
    let options = options.clone().extra_float_digits(None).options([(MARKER, &marker)]);
    let mut connection = match options.connect().await {
        Ok(connection) => connection,
        Err(error) if refuses_parameters(&error) => return Ok(true),
        Err(error) => return Err(ERRORS.connecting(&error)),
    };
    let report = reported_by(&mut connection).await;
    let report = report.map_err(|unfit| unfit.into_error(|error| ERRORS.connecting(error)))?;
    // The connection is gone, however it closes.
    let _ = connection.close().await;
    Ok(report.get("marker") != marker)
}

/// Returns `true` if a pooler answered that it does not take a startup message.
fn refuses_parameters(error: &sqlx::Error) -> bool {
    // PgBouncer answers with the same code when it has too many clients.
    matches!(error, sqlx::Error::Database(answer) if is_refusal(&**answer) && !answer.message().contains("connections"))
}

/// Returns `true` for what a pooler does not do: a protocol violation for PgBouncer, a missing feature for
/// others.
fn is_refusal(answer: &dyn DatabaseError) -> bool {
    matches!(answer.code().as_deref(), Some("08P01" | "0A000"))
}

/// Returns `true` if a pooler answered that it lets no client have a transaction. PgBouncer has the same code for a server
/// that it does not reach.
fn refuses_transactions(answer: &dyn DatabaseError) -> bool {
    is_refusal(answer)
        && (answer.code().as_deref() != Some("08P01") || answer.message().contains("transaction block"))
}

/// The question about the server and the session, whose answers are text. A replica's transactions are
/// read-only; those of a primary are where an operator has made them so. Timeouts are in milliseconds.
const REPORT: &str = "SELECT pg_is_in_recovery()::text AS is_in_recovery,
                             current_setting('transaction_read_only') AS transaction_read_only,
                             extract(epoch FROM pg_postmaster_start_time())::text AS started_at,
                             concat(pg_backend_pid(), '/', extract(epoch FROM clock_timestamp())) AS connection_id,
                             (extract(epoch FROM current_setting('statement_timeout')::interval) * 1000)::bigint::text
                                 AS statement_timeout,
                             (extract(epoch FROM current_setting('lock_timeout')::interval) * 1000)::bigint::text
                                 AS lock_timeout,
                             current_setting('transaction_isolation') AS default_transaction_isolation,
                             current_setting('sessions.connection', true) AS marker";

/// Ends a connection by its id. Process numbers recur, but the process of that connection began before it was asked for its
/// id, and the process of any other with its number began later.
const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE pid = split_part($1, '/', 1)::integer
                               AND backend_start <= to_timestamp(split_part($1, '/', 2)::float8)";

/// Asks the server with these statements. No statement is prepared, so that a pooler may stand between.
async fn reported(connection: &mut PgConnection, sql: SqlStr) -> Result<Report, Unfit> {
    let mut report = Report::default();
    for row in connection.fetch_all(raw_sql(sql)).await? {
        for column in row.columns() {
            report.add(column.name(), row.try_get(column.ordinal())?);
        }
    }
    Ok(report)
}

/// Asks the server about itself.
pub(super) async fn reported_by(connection: &mut PgConnection) -> Result<Report, Unfit> {
    reported(connection, SqlStr::from_static(REPORT)).await
}

const READ_ONLY: &str = "has read-only transactions (default_transaction_read_only of the server, of the database or of the role)";

/// Checks that the server takes writes.
pub(super) fn must_be_primary(report: &Report) -> Result<(), Unfit> {
    if report.is_on("is_in_recovery") {
        return Err(Unfit::NotPrimary("is a standby (pg_is_in_recovery)"));
    }
    if report.is_on("transaction_read_only") {
        return Err(Unfit::NotPrimary(READ_ONLY));
    }
    Ok(())
}

fn session_of(report: &Report) -> Session {
    // To the microsecond: no two servers have the same.
    let server = ServerId { name: report.get("started_at").to_owned(), started_at: 0 };
    Session { server, group: None, connection_id: report.get("connection_id").to_owned() }
}

/// Returns the statement that begins a transaction with the timeouts of `settings`. A transaction whose client
/// has gone without a word ends, too, so that its locks do not stay.
pub(super) fn begin(settings: &ServerSettings) -> SqlStr {
    let idle = settings.statement_timeout.saturating_add(Duration::from_secs(5));
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {}",
        millis(settings.statement_timeout),
        millis(settings.lock_timeout),
        millis(idle)
    );
    // Safe, because these are numbers.
    AssertSqlSafe(begin).into_sql_str()
}

/// Returns a timeout as the server takes it, where zero would mean "for ever".
fn millis(timeout: Duration) -> String {
    timeout.as_millis().clamp(1, i32::MAX as u128).to_string()
}
