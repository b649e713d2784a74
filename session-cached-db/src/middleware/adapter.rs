//! The common part of the adapters for other middlewares, which pass all values of a session at once, and no
//! version.

use std::collections::HashMap;

use serde::Serialize;

use crate::{Error, Session};

/// Makes the session hold `values` and nothing else. A value that `is_same` as the stored one is not touched,
/// so that it stays as it was written, byte for byte.
pub(crate) fn replace<V: Serialize>(
    session: &mut Session,
    values: &HashMap<String, V>,
    is_same: impl Fn(&str, &V) -> bool,
) -> Result<(), Error> {
    let is_missing = |key: &&str| !values.contains_key(*key);
    let missing: Vec<_> = session.keys().filter(is_missing).map(str::to_owned).collect();
    for key in missing {
        session.remove(&key);
    }
    for (key, value) in values {
        if !session.get_raw(key).is_some_and(|json| is_same(json, value)) {
            session.insert(key, value)?;
        }
    }
    Ok(())
}

/// Returns the session that `open` opens, if there is one. A session that cannot be read is an error, and not none: these
/// middlewares take the cookie of none away, or give the client another one, although another node may be able to read the session.
pub(super) async fn existing(
    open: impl Future<Output = Result<Session, Error>>,
) -> Result<Option<Session>, Error> {
    let session = open.await?;
    Ok(session.key().is_some().then_some(session))
}
