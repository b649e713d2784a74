//! Reports of written sessions, by `LISTEN` and `NOTIFY`.
//!
//! Each write's own statement notifies, so a report is sent with the commit, and before its writer has the answer. A
//! channel is one connection, on which the server sends reports and answers in the order in which it made them. The driver
//! puts a report that comes before an answer into a buffer, before it returns that answer; a task takes both.
//!
//! The payload of a report is the tag of the handle that wrote, and the keys, separated by blanks. A probe has a number in
//! the place of the keys. A key that is too short for a hashed one is not told: every role of the database can listen.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use session_core::{
    BoxFuture, DatabaseChannel, DatabaseNotices, NoticeListener, PersistenceError, StoredKey,
};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire as _, ConnectOptions as _, Executor as _, Row as _, SqlStr, query, raw_sql};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connect::{PostgresConnector, must_be_primary, reported_by};
use super::error::ERRORS;
use crate::sql::connections::Connections as _;
use crate::sql::reports::InUse;
use crate::sql::server::ServerConnections;
use crate::sql::session_check::Unfit;
use crate::sql::table::TableName;

/// The sign before the number of a probe. A stored key is of visible signs.
const PROBE: char = '\u{1}';

/// The report of a write of a key that is not told.
const ANY: &str = "*";

/// The number of pings after which a channel finds out again whether reports arrive.
const PINGS: u32 = 32;

const LEFT_OUT: &str = "the server answers, and its notifications do not arrive: a connection pooler in transaction mode \
    cannot carry LISTEN; let the URL of the store lead to the server, or to a pooler in session mode";

/// The driver reads a report as text, and panics if it is none.
const NO_ENCODING: &str = "the database has the encoding SQL_ASCII, so that other programs can notify what is no text; \
    use a database with the encoding UTF8";

/// The reports of all writers of one table.
pub(super) struct PostgresNotices {
    handle: Arc<ListeningHandle>,
    _in_use: InUse,
}

/// The handle of a store that listens. A probe that is still under way keeps this, and not the right to listen.
struct ListeningHandle {
    connections: ServerConnections<PostgresConnector>,
    table: TableName,
    tag: String,
    /// The number of the last probe.
    probes: AtomicU64,
}

impl PostgresNotices {
    pub(super) fn new(
        connections: ServerConnections<PostgresConnector>,
        table: TableName,
        tag: String,
        in_use: InUse,
    ) -> Self {
        let handle = Arc::new(ListeningHandle { connections, table, tag, probes: AtomicU64::new(0) });
        Self { handle, _in_use: in_use }
    }

    async fn open(
        self: Arc<Self>,
        listener: Arc<dyn NoticeListener>,
    ) -> Result<Box<dyn DatabaseChannel>, PersistenceError> {
        let (opened_at, handle) = (Instant::now(), &self.handle);
        // Any of its steps may wait forever for a server that is gone.
        let listening = timeout(2 * handle.connections.patience(), handle.listen()).await;
        let (connection, process) = listening
            .map_err(|_| PersistenceError::Unavailable("the server does not answer in time".into()))??;
        let seen = Arc::new(AtomicU64::new(0));
        let reports = Reports { listener, tag: handle.tag.clone(), seen: Arc::clone(&seen) };
        let (asks, asked) = mpsc::unbounded_channel();
        let task = tokio::spawn(Listening { connection, process, reports }.run(asked));
        let channel = PostgresChannel {
            notices: self,
            asks,
            task,
            seen,
            sent: Arc::default(),
            pings: AtomicU32::new(0),
            opened_at,
        };
        Ok(Box::new(channel))
    }
}

impl ListeningHandle {
    /// Opens the connection, and returns it with the number of the server's process.
    async fn listen(&self) -> Result<(PgListener, Option<i32>), PersistenceError> {
        let connected = self.connect().await;
        let mut connection = connected.map_err(|unfit| unfit.into_error(|error| ERRORS.connecting(error)))?;
        check_encoding(&mut connection).await?;
        self.check_reports(&mut connection).await?;
        let process =
            listen(&mut connection, &self.table.notices_channel()).await.map_err(|error| lost(&error))?;
        Ok((connection, process))
    }

    async fn connect(&self) -> Result<PgListener, Unfit> {
        let patience = self.connections.patience();
        match self.connections.connector_or_pool() {
            Ok(connector) => connector.route().open(|options| connect(options, patience)).await,
            Err(pool) => connect(PgConnectOptions::clone(&pool.connect_options()), patience).await,
        }
    }

    /// Checks that notifications reach this connection, under a name that no one else uses. A pooler in transaction mode
    /// lets the server's connection listen, and its next client gets what was for this one: an answer that breaks the
    /// protocol.
    async fn check_reports(&self, connection: &mut PgListener) -> Result<(), PersistenceError> {
        let name = format!("notices_{:016x}", fastrand::u64(..));
        let process = listen(connection, &name).await.map_err(|error| lost(&error))?;
        match self.notify(&name, "").await {
            Err(PersistenceError::Unknown(_)) if self.connections.is_pooled().await? => {
                return Err(PersistenceError::Config(LEFT_OUT.to_owned()));
            }
            notified => notified?,
        }
        let answered = ping(connection).await.map_err(|error| lost(&error))?;
        if answered.is_none() {
            return Err(PersistenceError::Unavailable("the server takes no writes any more".into()));
        }
        let is_same = answered == process;
        let has_heard =
            std::iter::from_fn(|| connection.next_buffered()).any(|heard| heard.channel() == name);
        if !is_same || !has_heard {
            // Without a pooler, the address may just lead from one server to another.
            return Err(if self.connections.is_pooled().await? {
                PersistenceError::Config(LEFT_OUT.to_owned())
            } else {
                PersistenceError::Unavailable(LEFT_OUT.into())
            });
        }
        connection.unlisten(&name).await.map_err(|error| lost(&error))
    }

    /// Notifies every listener of a probe, and returns its number.
    async fn probe(&self) -> Result<u64, PersistenceError> {
        let number = self.probes.fetch_add(1, Ordering::AcqRel) + 1;
        self.notify(&self.table.notices_channel(), &format!("{} {PROBE}{number}", self.tag)).await?;
        Ok(number)
    }

    /// Notifies listeners on a connection of the store's own. The listening connection would hear itself behind any pooler.
    async fn notify(&self, name: &str, payload: &str) -> Result<(), PersistenceError> {
        let notify = query(SqlStr::from_static("SELECT pg_notify($1, $2)"));
        let notify = notify.bind(name.to_owned()).bind(payload.to_owned());
        self.connections.write(notify, &self.table).await.map(drop)
    }
}

impl DatabaseNotices for PostgresNotices {
    fn open_channel(
        self: Arc<Self>,
        listener: Arc<dyn NoticeListener>,
    ) -> BoxFuture<Result<Box<dyn DatabaseChannel>, PersistenceError>> {
        Box::pin(self.open(listener))
    }
}

impl fmt::Debug for PostgresNotices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresNotices").field("table", &self.handle.table.as_str()).finish_non_exhaustive()
    }
}

fn lost(error: &sqlx::Error) -> PersistenceError {
    ERRORS.connecting(error)
}

/// Opens a connection that can listen.
async fn connect(options: PgConnectOptions, patience: Duration) -> Result<PgListener, Unfit> {
    // The driver logs each statement, and there are forty pings a second.
    let options = options.extra_float_digits(None).disable_statement_logging();
    // One connection, which nothing replaces: a new one would have missed reports.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(patience)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.ignore_pool_close_event(true);
    listener.eager_reconnect(false);
    must_be_primary(&reported_by(listener.acquire().await?).await?)?;
    Ok(listener)
}

/// Refuses a database that passes on any bytes. From every other one, the driver gets text.
async fn check_encoding(connection: &mut PgListener) -> Result<(), PersistenceError> {
    let row = connection.fetch_one(raw_sql("SELECT current_setting('server_encoding')")).await;
    let encoding = row.and_then(|row| row.try_get::<String, _>(0)).map_err(|error| lost(&error))?;
    if encoding == "SQL_ASCII" { Err(PersistenceError::Config(NO_ENCODING.to_owned())) } else { Ok(()) }
}

/// Listens under `name`, and returns the number of the server's process that does.
async fn listen(connection: &mut PgListener, name: &str) -> sqlx::Result<Option<i32>> {
    connection.listen(name).await?;
    ping(connection).await
}

/// The ping. A pooler may have led it to another process, and a server that takes no writes any more hears of none.
const PING: &str = "SELECT pg_backend_pid(), \
    pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean";

/// Returns the number of the server's process, or `None` if the server takes no writes.
async fn ping(connection: &mut PgListener) -> sqlx::Result<Option<i32>> {
    let row = connection.fetch_one(raw_sql(PING)).await?;
    let takes_writes = !row.try_get::<bool, _>(1)?;
    Ok(Some(row.try_get(0)?).filter(|_| takes_writes))
}

/// The listening connection, and the receiver of what it hears.
struct Listening {
    connection: PgListener,
    process: Option<i32>,
    reports: Reports,
}

/// A ping that waits for its answer.
type Ask = oneshot::Sender<()>;

impl Listening {
    /// Takes reports and answers pings until the connection is lost. It is never used again then, because the driver would
    /// open another one.
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        loop {
            tokio::select! {
                ask = asked.recv() => {
                    let Some(ask) = ask else { return };
                    let process = ping(&mut self.connection).await;
                    // Before the answer is passed on.
                    while let Some(report) = self.connection.next_buffered() {
                        self.reports.take(report.payload());
                    }
                    if !process.is_ok_and(|process| process.is_some() && process == self.process) {
                        return;
                    }
                    // The asker may have gone.
                    let _ = ask.send(());
                }
                // May be cancelled: the driver keeps what it has read of a message.
                report = self.connection.try_recv() => match report {
                    Ok(Some(report)) => self.reports.take(report.payload()),
                    Ok(None) | Err(_) => return,
                },
            }
        }
    }
}

/// The receiver of reports.
struct Reports {
    listener: Arc<dyn NoticeListener>,
    tag: String,
    /// The number of the last probe that arrived.
    seen: Arc<AtomicU64>,
}

impl Reports {
    fn take(&self, payload: &str) {
        let Some((tag, keys)) = payload.split_once(' ') else { return self.listener.ignored() };
        let is_own = tag == self.tag;
        for part in keys.split(' ') {
            match part.strip_prefix(PROBE).map(str::parse) {
                Some(Ok(number)) if is_own => drop(self.seen.fetch_max(number, Ordering::AcqRel)),
                // The store knows of its own writes, and probes of other nodes are none of its business.
                _ if is_own || part.starts_with(PROBE) => {}
                _ => self.take_key(part),
            }
        }
    }

    fn take_key(&self, key: &str) {
        if key == ANY {
            return self.listener.all_changed();
        }
        match StoredKey::parse(key) {
            Ok(key) => self.listener.changed(&key),
            Err(_) => self.listener.ignored(),
        }
    }
}

/// A connection on which Postgres reports writes.
struct PostgresChannel {
    notices: Arc<PostgresNotices>,
    asks: mpsc::UnboundedSender<Ask>,
    task: JoinHandle<()>,
    seen: Arc<AtomicU64>,
    /// The number of the last probe that was committed.
    sent: Arc<AtomicU64>,
    pings: AtomicU32,
    opened_at: Instant,
}

impl PostgresChannel {
    /// Sends a probe.
    fn probe(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send + use<> {
        let (handle, sent) = (Arc::clone(&self.notices.handle), Arc::clone(&self.sent));
        async move {
            let number = handle.probe().await?;
            sent.fetch_max(number, Ordering::AcqRel);
            Ok(())
        }
    }
}

impl DatabaseChannel for PostgresChannel {
    fn ping(&self) -> BoxFuture<Result<(), PersistenceError>> {
        // A probe that was committed by now must have arrived when this ping is answered.
        let expected = self.sent.load(Ordering::Acquire);
        if self.pings.fetch_add(1, Ordering::Relaxed) % PINGS == PINGS - 1 {
            // Not waited for: the store's connections may all be in use.
            tokio::spawn(self.probe());
        }
        let (ask, answer) = oneshot::channel();
        // If this fails, so does the answer.
        let _ = self.asks.send(ask);
        let (seen, opened_at) = (Arc::clone(&self.seen), self.opened_at);
        let handle = Arc::clone(&self.notices.handle);
        Box::pin(async move {
            answer
                .await
                .map_err(|_| PersistenceError::Unavailable("the listening connection is lost".into()))?;
            if !handle.connections.leads_to_primary_of(opened_at) {
                return Err(PersistenceError::Unavailable("another server has become the primary".into()));
            }
            // After that, because what is committed by another server is not heard of, either.
            if seen.load(Ordering::Acquire) < expected {
                return Err(PersistenceError::Config(LEFT_OUT.to_owned()));
            }
            Ok(())
        })
    }
}

impl Drop for PostgresChannel {
    fn drop(&mut self) {
        self.task.abort();
    }
}
