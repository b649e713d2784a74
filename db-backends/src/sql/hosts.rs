//! The hosts of a URL, and the way to the one that is the primary.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use session_core::PersistenceError;
use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::sql::session_check::Unfit;

/// The time that a host gets to answer before the next one is tried as well.
const HEAD_START: Duration = Duration::from_millis(300);

/// Splits a URL into one for each of its hosts, and removes `target_session_attrs`, which may only ask for
/// what is done anyway.
pub(crate) fn split(url: &str) -> Result<Vec<String>, PersistenceError> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let mut left = String::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("target_session_attrs", "read-write" | "primary")) => {}
            Some(("target_session_attrs", _)) => {
                return Err(PersistenceError::Config(
                    "target_session_attrs must be read-write or primary: sessions are read and written at the primary"
                        .to_owned(),
                ));
            }
            _ => {
                left.push(if left.is_empty() { '?' } else { '&' });
                left.push_str(pair);
            }
        }
    }
    let Some((scheme, rest)) = address.split_once("://") else { return Ok(vec![format!("{address}{left}")]) };
    let (authority, path) = rest.split_at(rest.find(['/', '#']).unwrap_or(rest.len()));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    let hosts: Vec<_> = hosts.split(',').collect();
    if hosts.len() > 1 && hosts.contains(&"") {
        return Err(PersistenceError::Config("the URL has an empty name in its list of hosts".to_owned()));
    }
    Ok(hosts.into_iter().map(|host| format!("{scheme}://{login}{host}{path}{left}")).collect())
}

/// Returns a literal IPv6 address without the brackets that it has in a URL, which the drivers leave there.
pub(crate) fn without_brackets(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

/// The driver's options for one host.
pub(crate) trait HostOptions: Clone + Send + Sync + 'static {
    /// Returns the name of the host and its port. `None` if only the driver can connect to it: by a socket,
    /// or by a name that the server's certificate must have.
    fn name(&self) -> Option<(String, u16)>;

    /// Returns the options for one address of the host.
    fn at(self, address: IpAddr) -> Self;

    /// Returns the options with another user.
    fn with_username(self, username: &str) -> Self;

    /// Returns the options with another password.
    fn with_password(self, password: &str) -> Self;
}

/// The hosts of a URL.
pub(crate) struct Hosts<O> {
    all: Vec<O>,
    /// The index of the host that was the primary last.
    last: AtomicUsize,
}

impl<O: HostOptions> Hosts<O> {
    /// `all` has at least one element.
    pub(crate) const fn new(all: Vec<O>) -> Self {
        Self { all, last: AtomicUsize::new(0) }
    }

    pub(crate) fn all(&self) -> &[O] {
        &self.all
    }

    /// Opens a connection with `open` to the first host that can be used, beginning with the one of the last
    /// time. A host that fails, or is slow, makes the next one be tried; then each of the addresses of the
    /// names, because a driver stops at the first that accepts a connection.
    pub(crate) async fn connect<T, F>(&self, open: impl Fn(O) -> F) -> Result<T, Unfit>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Unfit>> + Send + 'static,
    {
        let last = self.last.load(Ordering::Relaxed);
        let order = (last..self.all.len()).chain(0..last);
        let mut waiting: VecDeque<_> =
            order.filter_map(|index| Some((index, self.all.get(index)?.clone()))).collect();
        let (mut attempts, mut failure, mut is_resolved) = (JoinSet::new(), None, false);
        loop {
            if let Some((index, options)) = waiting.pop_front() {
                let attempt = open(options);
                attempts.spawn(async move { (index, attempt.await) });
            }
            let answer = if waiting.is_empty() && is_resolved {
                attempts.join_next().await
            } else {
                timeout(HEAD_START, attempts.join_next()).await.ok().flatten()
            };
            match answer {
                Some(Ok((index, Ok(opened)))) => {
                    self.last.store(index, Ordering::Relaxed);
                    return Ok(opened);
                }
                Some(Ok((_, Err(unfit)))) => failure = Some(unfit.or_worse(failure)),
                Some(Err(_)) | None => {}
            }
            if waiting.is_empty() && !is_resolved {
                is_resolved = true;
                waiting = self.addresses().await;
            } else if waiting.is_empty() && attempts.is_empty() {
                return Err(failure.unwrap_or(Unfit::Driver(sqlx::Error::PoolClosed)));
            }
        }
    }

    /// Returns the addresses of each host that has several.
    async fn addresses(&self) -> VecDeque<(usize, O)> {
        let mut all = VecDeque::new();
        for (index, options) in self.all.iter().enumerate() {
            let Some(name) = options.name() else { continue };
            if let Ok(Ok(found)) = timeout(HEAD_START, lookup_host(name)).await {
                let found: Vec<_> = found.map(|address| (index, options.clone().at(address.ip()))).collect();
                if found.len() > 1 {
                    all.extend(found);
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Host(&'static str);

    impl HostOptions for Host {
        fn name(&self) -> Option<(String, u16)> {
            None
        }

        fn at(self, _: IpAddr) -> Self {
            self
        }

        fn with_username(self, _: &str) -> Self {
            self
        }

        fn with_password(self, _: &str) -> Self {
            self
        }
    }

    #[test]
    fn url_of_several_hosts_becomes_one_for_each() {
        for (url, each) in [
            ("postgres://a/db", &["postgres://a/db"][..]),
            (
                "postgres://u:p,q@a:1,[::1]:2,c/db?x=1",
                &[
                    "postgres://u:p,q@a:1/db?x=1",
                    "postgres://u:p,q@[::1]:2/db?x=1",
                    "postgres://u:p,q@c/db?x=1",
                ],
            ),
            ("mysql://a,b/db?target_session_attrs=read-write&x=1", &["mysql://a/db?x=1", "mysql://b/db?x=1"]),
            ("postgres:", &["postgres:"]),
            ("postgres:///db", &["postgres:///db"]),
        ] {
            assert_eq!(split(url).unwrap(), each, "{url}");
        }
        for url in ["postgres://a,,b/db", "postgres://a,/db", "postgres://a/db?target_session_attrs=any"] {
            assert!(matches!(split(url), Err(PersistenceError::Config(_))), "{url}");
        }
    }

    #[tokio::test]
    async fn host_that_fails_or_hangs_makes_the_next_be_tried() {
        let hosts = Hosts::new(vec![Host("hangs"), Host("replica"), Host("primary")]);
        let open = |host: Host| async move {
            match host.0 {
                "hangs" => std::future::pending().await,
                "replica" => Err(Unfit::NotPrimary("is a replica")),
                name => Ok(name),
            }
        };
        let began = std::time::Instant::now();
        assert_eq!(hosts.connect(open).await.unwrap(), "primary");
        // The second time begins with the one that was the primary.
        assert_eq!(hosts.connect(open).await.unwrap(), "primary");
        assert!(began.elapsed() < 4 * HEAD_START, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn hosts_that_all_fail_show_the_replica_rather_than_the_dead() {
        let hosts = Hosts::new(vec![Host("dead"), Host("replica"), Host("dead")]);
        let open = |host: Host| async move {
            match host.0 {
                "replica" => Err::<(), _>(Unfit::NotPrimary("is a replica")),
                _ => Err(Unfit::Driver(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into())),
            }
        };
        assert!(matches!(hosts.connect(open).await, Err(Unfit::NotPrimary(_))));
    }
}
