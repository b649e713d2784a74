//! The parts of a cache's URL: `scheme://user:password@host:port,host:port/path?name=value&name=value`.

use std::str::FromStr;
use std::time::Duration;

use crate::ConnectError;

/// The parts of a URL. They are not percent-decoded.
#[derive(Clone, Copy)]
pub(crate) struct Url<'a> {
    pub(crate) scheme: &'a str,
    /// The user and the password, if there are any.
    pub(crate) credentials: Option<&'a str>,
    /// One or several hosts with their ports, separated by commas.
    pub(crate) hosts: &'a str,
    /// The path with its slash, or nothing.
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

    /// Returns the URL without its parameters.
    #[cfg(feature = "near")]
    pub(crate) const fn without_parameters(self) -> Self {
        Self { query: "", ..self }
    }

    /// Iterates over the parameters after the question mark, in their order.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    /// Returns the error for an unknown parameter. The error does not show it, because it may be a part of a
    /// password that is not percent-encoded.
    pub(crate) fn unknown_parameter(&self, known: &str) -> ConnectError {
        ConnectError::Config(format!("a {}:// URL has an unknown parameter; known are {known}", self.scheme))
    }
}

/// Reads the value of a parameter as a number.
pub(crate) fn number<N: FromStr>(name: &str, value: &str) -> Result<N, ConnectError> {
    value.parse().map_err(|_| ConnectError::Config(format!("{name} is not a whole number")))
}

/// Reads the value of a parameter as a number of milliseconds.
pub(crate) fn millis(name: &str, value: &str) -> Result<Duration, ConnectError> {
    number(name, value).map(Duration::from_millis)
}
