//! The errors of memcached and of the driver as [`CacheError`]. The driver's own errors are not passed on,
//! because they show the key.

use std::io;
use std::sync::Arc;

use memcache::exp::Error;
use session_core::{BoxError, CacheError};

use crate::error::At;

/// The error of a server that could not be connected to: nothing was sent.
pub(super) fn not_connected(address: &str, error: Arc<io::Error>) -> CacheError {
    CacheError::Unavailable(at(address, error.into()))
}

/// The driver's error about the server at `address`.
pub(super) fn of(address: &str, error: Error) -> CacheError {
    match error {
        // The driver leaves open whether a server applied a command that it answered with an error. It did
        // not.
        Error::Ambiguous { source, .. } => match *source {
            Error::Server(_) | Error::Rejected(_) => of(address, *source),
            source => CacheError::Unknown(at(address, text(source))),
        },
        Error::Io(_) | Error::Timeout { .. } => CacheError::Unavailable(at(address, text(error))),
        Error::Protocol(_) => CacheError::Unknown(at(address, text(error))),
        // The commands are the same for all keys, so the server will refuse the others, too.
        Error::Rejected(_) => CacheError::Unusable(at(address, text(error))),
        _ => CacheError::Refused(at(address, text(error))),
    }
}

fn text(error: Error) -> BoxError {
    match error {
        Error::Io(error) => error.into(),
        Error::Timeout { .. } => "no answer in time".into(),
        Error::Server(answer) => answer.into(),
        Error::Rejected(answer) if answer.contains("unauthenticated") => {
            format!("{answer}; run memcached without -Y and -S: this cache has no login").into()
        }
        Error::Rejected(answer) => format!("{answer}; memcached must be 1.6.27 or newer").into(),
        Error::Usage(problem) => problem.into(),
        // The other errors quote the received bytes, which may be a payload.
        _ => "the answer could not be parsed".into(),
    }
}

fn at(address: &str, error: BoxError) -> BoxError {
    Box::new(At { address: address.to_owned(), error })
}
