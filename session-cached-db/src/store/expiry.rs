//! The expiry that a session has chosen for itself, which is kept among its data, out of the application's sight.

use session_core::{Expiry, SessionData};

/// The key of that expiry. The name is Django's.
pub(crate) const EXPIRY_KEY: &str = "_session_expiry";

/// Returns the expiry that a session with `data` has chosen.
pub(crate) fn expiry_of(data: &SessionData) -> Option<Expiry> {
    data.get(EXPIRY_KEY).and_then(Expiry::from_json)
}

pub(crate) fn set_expiry(data: &mut SessionData, expiry: Expiry) {
    // Does not fail: `to_json` writes JSON.
    let _ = data.insert(EXPIRY_KEY, expiry.to_json());
}

/// Sets the expiry of `data` to that of `theirs`.
pub(crate) fn copy_expiry(data: &mut SessionData, theirs: &SessionData) {
    match theirs.get(EXPIRY_KEY) {
        // Does not fail: the value was read from session data, so it is JSON.
        Some(theirs) => drop(data.insert(EXPIRY_KEY, theirs.to_owned())),
        None => drop(data.remove(EXPIRY_KEY)),
    }
}
