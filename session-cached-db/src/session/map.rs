use serde::Serialize;
use serde::de::DeserializeOwned;
use session_core::{InvalidValue, SessionData};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::finite::check_numbers;
use super::{Session, Stored, fields};
use crate::Error;
use crate::store::expiry::{EXPIRY_KEY, set_expiry};

const TEST_COOKIE: &str = "testcookie";
const TEST_COOKIE_WORKED: &str = "worked";

/// The session's values.
impl Session {
    /// Returns the value under `key`, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Deserialize`] when the value is not a `T`.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        self.get_raw(key).map(|json| read(key, json)).transpose()
    }

    /// Returns the JSON text of the value under `key`, or `None` if there is none.
    #[must_use]
    pub fn get_raw(&self, key: &str) -> Option<&str> {
        self.note_access();
        self.data().get(key).filter(|_| key != EXPIRY_KEY)
    }

    /// Returns `true` if there is a value under `key`.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.get_raw(key).is_some()
    }

    /// Stores `value` under `key`, in memory.
    ///
    /// The last save of a key wins, whatever it held before. For a value that is made of the one before, such as a counter or a
    /// list that grows, call [`modify`](Self::modify): there, the changes of all requests count.
    ///
    /// # Errors
    ///
    /// [`Error::Serialize`] when the value cannot be written as JSON, such as a number that is infinite or none,
    /// [`Error::TooDeep`] when it is nested deeper than [`SessionData::MAX_DEPTH`], or [`Error::ReservedKey`] when sessions use
    /// the key themselves. The session is unchanged then.
    pub fn insert(&mut self, key: &str, value: impl Serialize) -> Result<(), Error> {
        let json = write(key, &value)?;
        self.put(key, json)
    }

    /// Removes the value under `key`. Returns `true` if there was one.
    pub fn remove(&mut self, key: &str) -> bool {
        let was_there = self.contains(key);
        if was_there {
            self.change().remove(key);
            self.modified = true;
        }
        was_there
    }

    /// Removes the value under `key` and returns it, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Deserialize`] when the value is not a `T`. It stays then.
    pub fn pop<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Error> {
        let value = self.get(key)?;
        self.remove(key);
        Ok(value)
    }

    /// Returns the value under `key`. If there is none, stores and returns the value that `default` returns.
    ///
    /// # Errors
    ///
    /// The errors of [`get`](Self::get) and [`insert`](Self::insert).
    pub fn get_or_insert_with<T: DeserializeOwned + Serialize>(
        &mut self,
        key: &str,
        default: impl FnOnce() -> T,
    ) -> Result<T, Error> {
        if let Some(value) = self.get(key)? {
            return Ok(value);
        }
        let value = default();
        self.insert(key, &value)?;
        Ok(value)
    }

    /// Changes the value under `key` in place, starting from `T::default()` if there is none, and returns the
    /// result of `change`. The session counts as modified: a value cannot be changed unnoticed.
    ///
    /// # Behavior
    ///
    /// - No acknowledged modification is lost. If another request has changed the value by the time the session is saved,
    ///   `change` runs again, on the other request's value: ten requests that push to a cart at the same time leave ten
    ///   items in it, on any number of nodes and under either [`ConflictPolicy`](crate::ConflictPolicy).
    /// - So `change` may run several times, until the session is saved. Give it values, not things to use up, and do nothing
    ///   in it but change the value. The result is the one of the first run.
    /// - Fields that `T` does not have are kept: a node with an older version of a struct does not remove what a newer one
    ///   has added. In a list, the elements that `change` left alone keep theirs.
    /// - If the other request has put something there that is no `T`, the value stays as this request has computed it, as
    ///   after an [`insert`](Self::insert); under [`ConflictPolicy::Reject`](crate::ConflictPolicy::Reject) the save fails.
    ///
    /// Use [`insert`](Self::insert) for a value that does not depend on the one before: there, the last write wins.
    ///
    /// ```
    /// # fn example(session: &mut session_cached_db::Session) -> Result<(), session_cached_db::Error> {
    /// let item = 42;
    /// session.modify("cart", move |cart: &mut Vec<u32>| cart.push(item))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`get`](Self::get) and [`insert`](Self::insert). The session is unchanged then.
    pub fn modify<T: DeserializeOwned + Serialize + Default, R>(
        &mut self,
        key: &str,
        change: impl Fn(&mut T) -> R + Send + Sync + 'static,
    ) -> Result<R, Error> {
        let (json, result) = changed(key, self.get_raw(key), &change)?;
        check_key(key)?;
        let again = {
            let key = key.to_owned();
            move |json: Option<&str>| Some(changed(&key, json, &change).ok()?.0)
        };
        self.change().modify(key, json, again).map_err(|error| invalid_value(key, error))?;
        self.note_change();
        Ok(result)
    }

    /// Stores all of `values`, in memory.
    ///
    /// # Errors
    ///
    /// The errors of [`insert`](Self::insert). The session is unchanged then.
    pub fn update<K: AsRef<str>, V: Serialize>(
        &mut self,
        values: impl IntoIterator<Item = (K, V)>,
    ) -> Result<(), Error> {
        let mut changed = self.data().clone();
        for (key, value) in values {
            let key = key.as_ref();
            put(&mut changed, key, write(key, &value)?)?;
        }
        self.changed = Some(changed);
        self.note_change();
        Ok(())
    }

    /// Removes all values. The session keeps its key, its subject and its expiry. To end it, call
    /// [`flush`](Self::flush).
    pub fn clear(&mut self) {
        let expiry = self.expiry();
        let data = self.change();
        data.clear();
        if let Some(expiry) = expiry {
            set_expiry(data, expiry);
        }
        self.note_change();
    }

    /// Returns the keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(key, _)| key)
    }

    /// Returns the JSON texts of the values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(_, value)| value)
    }

    /// Returns the keys and the JSON texts of their values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.note_access();
        self.visible()
    }

    /// Discards the changes since the session was opened or last saved. For a handler that could not save the
    /// session and handles that error itself.
    pub fn discard_changes(&mut self) {
        self.changed = None;
        self.subject = None;
        self.modified = false;
    }

    /// Returns `true` if the session holds no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Stores a value from which a later request can see that the client sends cookies.
    ///
    /// # Errors
    ///
    /// The errors of [`insert`](Self::insert).
    pub fn set_test_cookie(&mut self) -> Result<(), Error> {
        self.insert(TEST_COOKIE, TEST_COOKIE_WORKED)
    }

    /// Returns `true` if an earlier request of this client called [`set_test_cookie`](Self::set_test_cookie).
    #[must_use]
    pub fn test_cookie_worked(&self) -> bool {
        matches!(self.get::<String>(TEST_COOKIE), Ok(Some(value)) if value == TEST_COOKIE_WORKED)
    }

    /// Removes the value that [`set_test_cookie`](Self::set_test_cookie) stored.
    pub fn delete_test_cookie(&mut self) {
        self.remove(TEST_COOKIE);
    }

    fn put(&mut self, key: &str, json: String) -> Result<(), Error> {
        put(self.change(), key, json)?;
        self.note_change();
        Ok(())
    }

    /// Returns the values that the application has stored.
    pub(super) fn visible(&self) -> impl Iterator<Item = (&str, &str)> {
        self.data().iter().filter(|(key, _)| *key != EXPIRY_KEY)
    }

    pub(super) fn data(&self) -> &SessionData {
        static EMPTY: SessionData = SessionData::new();
        let stored = || {
            let Stored { stored_key, loaded, data, .. } = self.stored.as_ref()?;
            // Does not fail: the payload was decoded when the session was opened.
            Some(data.get_or_init(|| loaded.record.data(stored_key, self.store.codec()).unwrap_or_default()))
        };
        self.changed.as_ref().or_else(stored).unwrap_or(&EMPTY)
    }

    pub(super) fn change(&mut self) -> &mut SessionData {
        let data = self.changed.take().unwrap_or_else(|| self.data().clone());
        self.changed.insert(data)
    }

    pub(super) fn note_access(&self) {
        self.accessed.store(true, Ordering::Relaxed);
    }

    pub(super) fn note_change(&mut self) {
        self.note_access();
        self.modified = true;
    }
}

/// Returns the JSON text that `change` makes of the one before, and the result of `change`.
fn changed<T: DeserializeOwned + Serialize + Default, R>(
    key: &str,
    stored: Option<&str>,
    change: &impl Fn(&mut T) -> R,
) -> Result<(String, R), Error> {
    let mut value: T = stored.map(|json| read(key, json)).transpose()?.unwrap_or_default();
    let known = match stored {
        Some(stored) if fields::may_have_fields(stored) => Some((stored, write(key, &value)?)),
        _ => None,
    };
    let result = change(&mut value);
    let json = write(key, &value)?;
    let json = match known {
        Some((stored, before)) => fields::keep_unknown::<T>(stored, &before, json),
        None => json,
    };
    Ok((json, result))
}

pub(super) fn read<T: DeserializeOwned>(key: &str, json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Deserialize {
        key: key.to_owned(),
        wanted: std::any::type_name::<T>(),
        source: error.into(),
    })
}

pub(super) fn write(key: &str, value: &impl Serialize) -> Result<String, Error> {
    let written = serde_json::to_string(value).and_then(|json| {
        // It could be in the place of a number.
        if json.contains("null") {
            check_numbers(value)?;
        }
        Ok(json)
    });
    written.map_err(|error| Error::Serialize { key: key.to_owned(), source: Arc::new(error) })
}

fn check_key(key: &str) -> Result<(), Error> {
    if key == EXPIRY_KEY { Err(Error::ReservedKey { key: key.to_owned() }) } else { Ok(()) }
}

pub(super) fn put(data: &mut SessionData, key: &str, json: String) -> Result<(), Error> {
    check_key(key)?;
    data.insert(key, json).map_err(|error| invalid_value(key, error))
}

/// Returns the error for JSON that session data does not take under `key`.
pub(crate) fn invalid_value(key: &str, error: InvalidValue) -> Error {
    let key = key.to_owned();
    match error {
        InvalidValue::TooDeep { limit } => Error::TooDeep { key, limit },
        InvalidValue::Malformed(source) => Error::Deserialize { key, wanted: "JSON", source },
    }
}
