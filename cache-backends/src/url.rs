//! The parts of a cache's URL: `scheme://user:password@host:port,host:port/path?name=value&name=value`.

use std::str::FromStr;
#[cfg(any(feature = "memcached", feature = "redis"))]
use std::time::Duration;

use crate::ConnectError;

/// A URL in its parts. What is in it is not decoded.
#[derive(Clone, Copy)]
pub(crate) struct Url<'a> {
    pub(crate) scheme: &'a str,
    /// User and password, if there are any.
    pub(crate) credentials: Option<&'a str>,
    /// One host with its port or several, separated by commas.
    pub(crate) hosts: &'a str,
    /// With its slash, if there is one.
    pub(crate) path: &'a str,
    query: &'a str,
}

impl<'a> Url<'a> {
    pub(crate) fn parse(url: &'a str) -> Result<Self, ConnectError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(ConnectError::Config("a URL looks like redis://127.0.0.1:6379/".into()));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        Ok(Self { scheme, credentials, hosts, path, query })
    }

    /// The parameters after the question mark, in their order.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    /// The error for a parameter that nobody knows. It is not repeated: a password that should have been encoded may
    /// have got there.
    pub(crate) fn unknown_parameter(&self, known: &str) -> ConnectError {
        ConnectError::Config(format!("a {}:// URL has an unknown parameter; known are {known}", self.scheme))
    }
}

/// The value of a parameter as a number.
pub(crate) fn number<N: FromStr>(name: &str, value: &str) -> Result<N, ConnectError> {
    value.parse().map_err(|_| ConnectError::Config(format!("{name} is not a whole number")))
}

/// The value of a parameter in milliseconds.
#[cfg(any(feature = "memcached", feature = "redis"))]
pub(crate) fn millis(name: &str, value: &str) -> Result<Duration, ConnectError> {
    number(name, value).map(Duration::from_millis)
}
