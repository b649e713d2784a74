//! The options in a database's URL.
//!
//! Not shared with `cache-backends`, which reads a URL in full. Here the driver does, and only the options
//! are taken out. The lines in common, those that split `name=value&name=value`, would have to be public in
//! `session-core`.

use std::str::FromStr;
use std::time::Duration;

use session_core::PersistenceError;

/// Passes each parameter of `url` to `set`, and returns the URL with those that it did not take. Each of
/// these must be one of `driver_parameters`: the drivers ignore any other in silence, or only log it, and a
/// table whose name was misspelled would be another table.
pub(crate) fn take_parameters(
    url: &str,
    driver_parameters: &[&str],
    mut set: impl FnMut(&str, &str) -> Result<bool, PersistenceError>,
) -> Result<String, PersistenceError> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let mut left = String::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if set(name, value)? {
            continue;
        }
        // Postgres has a form `options[name]=value`.
        let is_for_driver = driver_parameters.contains(&name.split('[').next().unwrap_or(name));
        if !is_for_driver {
            // The error does not repeat it: it may be part of a password that should have been encoded.
            return Err(PersistenceError::Config(format!(
                "the URL has an unknown parameter; see db_backends::connect for those that are known, beside the \
                 driver's {}",
                driver_parameters.join(", ")
            )));
        }
        left.push(if left.is_empty() { '?' } else { '&' });
        left.push_str(pair);
    }
    Ok(format!("{address}{left}"))
}

/// Reads the value of a parameter as a number.
pub(crate) fn number<N: FromStr>(name: &str, value: &str) -> Result<N, PersistenceError> {
    value.parse().map_err(|_| PersistenceError::Config(format!("{name} is not a whole number, or too large")))
}

/// Reads the value of a parameter in milliseconds.
pub(crate) fn millis(name: &str, value: &str) -> Result<Duration, PersistenceError> {
    number(name, value).map(Duration::from_millis)
}

/// Returns percent-encoded text as it is meant. `None` if it is not that of text.
#[cfg(feature = "_server")]
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Reads the value of a parameter that is `true` or `false`.
#[cfg(feature = "postgres")]
pub(crate) fn flag(name: &str, value: &str) -> Result<bool, PersistenceError> {
    value.parse().map_err(|_| PersistenceError::Config(format!("{name} is neither true nor false")))
}
