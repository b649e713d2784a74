//! The route to a server's primary: its hosts, and the credentials of the moment. It also leads to the end of a statement
//! that was left behind.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{ConnectOptions, Connection as _};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::sql::connector::{Connection, Connector, OpenConnection};
use crate::sql::credentials::{Credentials, Provider};
use crate::sql::hosts::{HostOptions, Hosts};
use crate::sql::session_check::{Session, Unfit};

/// The route to a server.
pub(crate) struct Route<O> {
    /// The options in the URL.
    hosts: Hosts<O>,
    credentials: Option<Provider>,
    acquire_timeout: Duration,
    /// The runtime on which the route was made. Connections may be abandoned on another one, or outside of any.
    runtime: Option<Handle>,
}

/// A connector whose server can be asked to end a connection.
pub(crate) trait Ends: Connector {
    /// Asks the server to end the connection of this session, and the statement on it. Returns `false` if this is another
    /// server, or one that started again: numbers of connections recur, and this one would be another client's there.
    fn end(
        connection: &mut Connection<Self>,
        session: &Session,
    ) -> impl Future<Output = Result<bool, Unfit>> + Send;
}

impl<O: HostOptions> Route<O> {
    /// Makes a route to one of `hosts`, of which there is at least one.
    pub(crate) fn new(hosts: Vec<O>, credentials: Option<Provider>, acquire_timeout: Duration) -> Arc<Self> {
        let runtime = Handle::try_current().ok();
        Arc::new(Self { hosts: Hosts::new(hosts), credentials, acquire_timeout, runtime })
    }

    pub(crate) fn hosts(&self) -> &[O] {
        self.hosts.all()
    }

    /// Opens a connection with `open` to the first host that can be used.
    pub(crate) async fn open<T, F>(&self, open: impl Fn(O) -> F) -> Result<T, Unfit>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Unfit>> + Send + 'static,
    {
        let login = self.login().await?;
        self.hosts.connect(|options| open(with_login(options, login.as_ref()))).await
    }

    /// Asks for the credentials of a new connection, if they are not those of the URL.
    async fn login(&self) -> Result<Option<Credentials>, Unfit> {
        match &self.credentials {
            Some(provider) => provider.ask().await.map(Some).map_err(Unfit::NoPassword),
            None => Ok(None),
        }
    }

    /// Closes a connection whose statement did not end in time, after asking its server to end the statement.
    ///
    /// Without a runtime, and where that fails, the server's timeouts remain.
    pub(crate) fn abandon<C>(self: &Arc<Self>, abandoned: OpenConnection<C>)
    where
        C: Ends,
        O: ConnectOptions<Connection = Connection<C>>,
    {
        // Behind a pooler, the connection to the server may be another client's by now.
        if abandoned.session.connection_id.is_empty() {
            return;
        }
        if let Some(runtime) = &self.runtime {
            let route = Arc::clone(self);
            runtime.spawn(async move {
                let _ = timeout(route.acquire_timeout, route.end::<C>(&abandoned.session)).await;
                drop(abandoned);
            });
        }
    }

    async fn end<C>(&self, session: &Session) -> Result<(), Unfit>
    where
        C: Ends,
        O: ConnectOptions<Connection = Connection<C>>,
    {
        let login = self.login().await?;
        for options in self.hosts.all() {
            let Ok(mut connection) = with_login(options.clone(), login.as_ref()).connect().await else {
                continue;
            };
            let is_there = C::end(&mut connection, session).await?;
            connection.close().await?;
            if is_there {
                break;
            }
        }
        Ok(())
    }
}

fn with_login<O: HostOptions>(options: O, login: Option<&Credentials>) -> O {
    let Some(Credentials { username, password }) = login else { return options };
    let options = options.with_password(password);
    match username {
        Some(username) => options.with_username(username),
        None => options,
    }
}
