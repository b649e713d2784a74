use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::map::{put, read, write};
use super::{Session, fields};
use crate::Error;

/// The name of the session as a whole, in errors that name a key.
const WHOLE: &str = "the whole session";

/// Types for values.
///
/// A struct with serde is the type of one value, or of the session as a whole. Nodes with different versions of it can run
/// beside each other, as in a rolling deployment:
///
/// | between the versions | is read by the older one | is read by the newer one |
/// |---|---|---|
/// | a field was added | without it; [`modify`](Session::modify) and [`insert_all`](Session::insert_all) keep it | with the default of `#[serde(default)]` where it is missing |
/// | a field was removed | with the default of `#[serde(default)]` | without it |
/// | a field was renamed | under the old name: add the new one first, with `#[serde(alias = "old")]` for the old | |
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use session_cached_db::{Error, Session};
///
/// #[derive(Default, Serialize, Deserialize)]
/// #[serde(default)] // a field that is missing has its default
/// struct Cart {
///     items: Vec<u32>,
///     voucher: Option<String>,
/// }
///
/// #[derive(Default, Serialize, Deserialize)]
/// #[serde(default)]
/// struct Visitor {
///     theme: String,
///     cart: Cart,
/// }
///
/// fn buy(session: &mut Session, item: u32) -> Result<usize, Error> {
///     session.modify("cart", move |cart: &mut Cart| cart.items.push(item))?;
///     let cart: Cart = session.typed("cart")?;
///     Ok(cart.items.len())
/// }
///
/// fn darken(session: &mut Session) -> Result<(), Error> {
///     let mut visitor: Visitor = session.get_all()?;
///     visitor.theme = "dark".to_owned();
///     session.insert_all(&visitor) // changes the value under "theme", and no other
/// }
/// ```
impl Session {
    /// Returns the value under `key`, or `T::default()` if there is none.
    ///
    /// To change it, call [`modify`](Self::modify), which loses nothing that another request or another version of `T` has
    /// put there.
    ///
    /// # Errors
    ///
    /// [`Error::Deserialize`] when the value is not a `T`.
    pub fn typed<T: DeserializeOwned + Default>(&self, key: &str) -> Result<T, Error> {
        Ok(self.get(key)?.unwrap_or_default())
    }

    /// Returns the session as a whole: each field of `T` is the value under the field's name.
    ///
    /// # Errors
    ///
    /// [`Error::Deserialize`] when the values do not make a `T`. A session without values makes one if each field has a
    /// `#[serde(default)]`.
    pub fn get_all<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read(WHOLE, &self.as_object()?)
    }

    /// Stores the fields of `whole`, each as the value under its name, in memory.
    ///
    /// # Behavior
    ///
    /// - Only fields that differ from the session's values count as changed. So two requests that change different fields
    ///   both win. For one field, the [`ConflictPolicy`](crate::ConflictPolicy) decides, as for [`insert`](Self::insert): a
    ///   field that depends on its value before is a matter for [`modify`](Self::modify).
    /// - Values that are no field of `T` stay. A field that `whole` leaves out, by `skip_serializing_if`, is removed.
    ///
    /// # Errors
    ///
    /// [`Error::Serialize`] when `whole` is no struct and no map, or the errors of [`insert`](Self::insert). The session is
    /// unchanged then.
    pub fn insert_all<T: DeserializeOwned + Serialize>(&mut self, whole: &T) -> Result<(), Error> {
        let stored = self.as_object()?;
        let after = write(WHOLE, whole)?;
        if fields::fields(&after).is_none() {
            let error = <serde_json::Error as serde::ser::Error>::custom("it is no struct and no map");
            return Err(Error::Serialize { key: WHOLE.to_owned(), source: error.into() });
        }
        let before = read::<T>(WHOLE, &stored).and_then(|before| write(WHOLE, &before));
        let after = match &before {
            Ok(before) => fields::keep_unknown::<T>(&stored, before, after),
            Err(_) => after,
        };
        let (is_known, before) = (before.is_ok(), fields::fields(&stored).unwrap_or_default());
        let after = fields::fields(&after).unwrap_or_default();
        let mut changed = self.data().clone();
        for (key, value) in &after {
            if before.get(key).map(|value| value.get()) != Some(value.get()) {
                put(&mut changed, key, value.get().to_owned())?;
            }
        }
        for key in before.keys().filter(|key| is_known && !after.contains_key(*key)) {
            changed.remove(key);
        }
        if changed != *self.data() {
            self.changed = Some(changed);
            self.note_change();
        }
        Ok(())
    }

    /// Returns the values as one JSON object.
    fn as_object(&self) -> Result<String, Error> {
        let values =
            self.iter().map(|(key, json)| Some((key, serde_json::from_str::<&RawValue>(json).ok()?)));
        let values = values.collect::<Option<std::collections::BTreeMap<_, _>>>().unwrap_or_default();
        write(WHOLE, &values)
    }
}
