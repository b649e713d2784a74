mod depth;
mod error;
mod object;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use self::depth::is_deeper_than;
pub use self::error::{InvalidValue, MalformedJson};
use self::object::Parsed;
pub(crate) use self::object::{Dense, Object, Source};

/// The map that a session holds: from strings, in order, to the raw JSON texts of their values, which are
/// decoded when they are read.
///
/// It consists of the map that was read (`base`, shared with every other reader of the same record) and of
/// the changes since. So cloning is cheap, untouched values are passed through byte for byte, and the changes
/// can be applied again to a fresher base ([`rebase`](Self::rebase)).
#[derive(Clone, Default)]
pub struct SessionData {
    /// `None` is an empty map.
    base: Option<Arc<dyn Source>>,
    /// On the heap, because most maps are only read.
    changes: Option<Box<Changes>>,
}

#[derive(Clone, Default)]
struct Changes {
    /// The base counts as empty, because everything was removed before `keys` changed.
    cleared: bool,
    keys: BTreeMap<Box<str>, Change>,
}

/// A change of one value.
#[derive(Clone)]
enum Change {
    Removed,
    Set(Box<str>),
    /// The value was computed from the one before, and can be computed again from a fresher one.
    Modified {
        value: Box<str>,
        steps: Vec<Modification>,
    },
}

/// A function that computes the JSON text of a value from the one before. Returns `None` if that is not possible.
#[derive(Clone)]
struct Modification(Arc<Modify>);

type Modify = dyn Fn(Option<&str>) -> Option<String> + Send + Sync;

/// A panic in the function leaves the map as it was.
impl RefUnwindSafe for Modification {}
impl UnwindSafe for Modification {}

impl Change {
    fn value(&self) -> Option<&str> {
        match self {
            Self::Removed => None,
            Self::Set(value) | Self::Modified { value, .. } => Some(value),
        }
    }

    /// Returns the change to make where the value is `fresh`. A value that cannot be computed from `fresh`, because another
    /// writer has put something else there, stays as it is.
    fn again(&self, fresh: Option<&str>) -> Self {
        let Self::Modified { steps, .. } = self else { return self.clone() };
        match modified(fresh, steps) {
            Some(value) => Self::Modified { value, steps: steps.clone() },
            None => self.clone(),
        }
    }
}

/// Returns the value that `steps` make of `value`, if they can.
fn modified(value: Option<&str>, steps: &[Modification]) -> Option<Box<str>> {
    let (first, others) = steps.split_first()?;
    let first = json(first.0(value)?).ok()?;
    others.iter().try_fold(first, |value, step| json(step.0(Some(&value))?).ok())
}

/// Returns `text`, without the white space around it, if it is one JSON value that can be read again.
fn json(text: String) -> Result<Box<str>, InvalidValue> {
    let json: Box<str> = RawValue::from_string(text)?.into();
    let limit = SessionData::MAX_DEPTH;
    if is_deeper_than(limit, json.as_bytes()) { Err(InvalidValue::TooDeep { limit }) } else { Ok(json) }
}

/// Returns a part of a text that the parser has found to be UTF-8.
fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl Changes {
    /// Estimates the length of the changes as JSON, in bytes.
    fn len(&self) -> usize {
        let punctuation = r#""":,{}"#.len();
        let value_len = |change: &Change| change.value().map_or(0, str::len);
        self.keys.iter().map(|(key, value)| key.len() + value_len(value) + punctuation).sum()
    }
}

impl SessionData {
    /// The deepest nesting of arrays and objects in a value that is inserted. `serde_json` reads 127 levels, of which the map
    /// itself is one.
    ///
    /// A deeper value that another program has stored stays as it is, and can be read as text only.
    pub const MAX_DEPTH: usize = 126;

    /// Creates an empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self { base: None, changes: None }
    }

    /// Reads the JSON object in `text` without decoding its values. `text` is kept, not copied. If a key
    /// occurs twice, its last value counts.
    ///
    /// # Errors
    ///
    /// Returns [`MalformedJson`] if `text` is not one JSON object, or is larger than 4 GiB.
    pub fn from_json(text: Bytes) -> Result<Self, MalformedJson> {
        Ok(Self::shared(Arc::new(Parsed::read(text)?)))
    }

    /// Creates a map over the object in `source`.
    pub(crate) fn shared(source: Arc<dyn Source>) -> Self {
        Self { base: Some(source), changes: None }
    }

    /// Returns the object that was read.
    fn object(&self) -> Object<'_> {
        self.base.as_ref().map_or(Object::EMPTY, |base| base.object())
    }

    /// Appends the map to `out` as one JSON object, in the order of its keys.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let base = self.object().json();
        if !self.is_changed() {
            out.extend_from_slice(base);
            return;
        }
        out.reserve(base.len() + self.changes.as_ref().map_or(0, |changes| changes.len()));
        out.push(b'{');
        for (position, (key, value)) in self.merged().enumerate() {
            if position > 0 {
                out.push(b',');
            }
            write_json_string(utf8(key), out);
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
    }

    /// Returns the JSON text of the value under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        match self.changes.as_deref().and_then(|changes| changes.keys.get(key)) {
            Some(change) => change.value(),
            None => self.unchanged(key),
        }
    }

    /// Sets the value under `key` to the JSON text `value`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidValue`] if `value` is not one JSON value, or is nested deeper than [`MAX_DEPTH`](Self::MAX_DEPTH).
    pub fn insert(&mut self, key: &str, value: String) -> Result<(), InvalidValue> {
        let value = json(value)?;
        self.change().keys.insert(key.into(), Change::Set(value));
        Ok(())
    }

    /// Sets the value under `key` to the JSON text `value`, which `modification` has computed from the value before.
    ///
    /// # Behavior
    ///
    /// - [`rebase`](Self::rebase) calls `modification` again with the value of the fresher base, so that no modification is
    ///   lost: concurrent increments all count, concurrent pushes are all there.
    /// - Several modifications of one value are repeated in their order.
    /// - If `modification` returns `None`, because another writer has put a value there that cannot be modified in this way,
    ///   `value` stays.
    /// - After an [`insert`](Self::insert) or a [`clear`](Self::clear), the value does not depend on the base any more, and
    ///   nothing is repeated.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidValue`] if `value` is not one JSON value, or is nested deeper than [`MAX_DEPTH`](Self::MAX_DEPTH).
    pub fn modify(
        &mut self,
        key: &str,
        value: String,
        modification: impl Fn(Option<&str>) -> Option<String> + Send + Sync + 'static,
    ) -> Result<(), InvalidValue> {
        let value = json(value)?;
        let is_cleared = self.is_cleared();
        let changes = &mut self.change().keys;
        let change = match changes.remove(key) {
            None if !is_cleared => {
                Change::Modified { value, steps: vec![Modification(Arc::new(modification))] }
            }
            Some(Change::Modified { mut steps, .. }) => {
                steps.push(Modification(Arc::new(modification)));
                Change::Modified { value, steps }
            }
            _ => Change::Set(value),
        };
        changes.insert(key.into(), change);
        Ok(())
    }

    /// Removes the value under `key`. Returns `true` if there was one.
    pub fn remove(&mut self, key: &str) -> bool {
        let was_there = self.contains(key);
        if self.unchanged(key).is_some() {
            self.change().keys.insert(key.into(), Change::Removed);
        } else if let Some(changes) = &mut self.changes {
            changes.keys.remove(key);
        }
        was_there
    }

    /// Removes every value.
    pub fn clear(&mut self) {
        self.changes = Some(Box::new(Changes { cleared: true, keys: BTreeMap::new() }));
    }

    /// Returns `true` if there is a value under `key`.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Returns `true` if the map has no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.merged().next().is_none()
    }

    /// Returns the number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.merged().count()
    }

    /// Iterates over the keys and the JSON texts of their values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.merged().map(|(key, value)| (utf8(key), utf8(value)))
    }

    /// Iterates over keys and values as bytes: callers that only copy or count them need no check for UTF-8.
    fn merged(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let base = if self.is_cleared() { Object::EMPTY } else { self.object() };
        let changes = self.changes.iter().flat_map(|changes| &changes.keys);
        let changes = changes.map(|(key, change)| (key.as_bytes(), change.value().map(str::as_bytes)));
        Merged { base: base.iter().peekable(), changes: changes.peekable() }
    }

    /// Returns `true` if anything was changed since the map was read or created.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.changes.as_ref().is_some_and(|changes| changes.cleared || !changes.keys.is_empty())
    }

    /// Returns `fresh` with this map's changes applied to it. The changes of `fresh` itself count as part of
    /// its base.
    #[must_use]
    pub fn rebase(&self, fresh: &Self) -> Self {
        let mut rebased = fresh.clone();
        if let Some(mine) = &self.changes {
            if mine.cleared {
                rebased.clear();
            }
            let keys = mine.keys.iter().map(|(key, change)| (key.clone(), change.again(fresh.get(key))));
            rebased.change().keys.extend(keys);
        }
        rebased
    }

    /// Returns `fresh` with the changes applied to it that were made after this map was as `before`, on the same base. Of the
    /// [modifications](Self::modify) of a value, only those since `before` are repeated.
    #[must_use]
    pub fn rebase_since(&self, before: &Self, fresh: &Self) -> Self {
        let mut rebased = fresh.clone();
        let changed = |(key, value): &(&str, &str)| before.get(key) != Some(*value);
        for (key, value) in self.iter().filter(changed) {
            let change = match self.steps_since(before, key) {
                Some(steps) => Change::Modified { value: value.into(), steps }.again(fresh.get(key)),
                None => Change::Set(value.into()),
            };
            rebased.change().keys.insert(key.into(), change);
        }
        for (key, _) in before.iter().filter(|(key, _)| !self.contains(key)) {
            rebased.remove(key);
        }
        rebased
    }

    /// Returns the modifications of the value under `key` since this map was as `before`, if nothing else has changed it.
    fn steps_since(&self, before: &Self, key: &str) -> Option<Vec<Modification>> {
        let change = |data: &'_ Self| data.changes.as_ref()?.keys.get(key).cloned();
        let Change::Modified { steps, .. } = change(self)? else { return None };
        let known = match change(before) {
            None => Vec::new(),
            Some(Change::Modified { steps, .. }) => steps,
            Some(_) => return None,
        };
        let is_same = |(one, other): (&Modification, &Modification)| Arc::ptr_eq(&one.0, &other.0);
        let since = steps.get(known.len()..)?;
        steps.iter().zip(&known).all(is_same).then(|| since.to_vec())
    }

    /// Returns `true` if a key that was changed here has another value in `fresh` than in the base of this
    /// map, which means that another writer changed it, too. Looks only at keys for which `counts` returns `true`.
    ///
    /// A change to the same value counts as well. A [modification](Self::modify) that can be repeated on the
    /// other value does not.
    #[must_use]
    pub fn overlaps(&self, fresh: &Self, counts: impl Fn(&str) -> bool) -> bool {
        let Some(mine) = &self.changes else { return false };
        if mine.cleared {
            let counts = |(key, _): &(&[u8], &[u8])| counts(utf8(key));
            return !self.object().iter().filter(counts).eq(fresh.merged().filter(counts));
        }
        mine.keys.iter().filter(|(key, _)| counts(key)).any(|(key, change)| {
            let theirs = fresh.get(key);
            let is_repeatable =
                || matches!(change, Change::Modified { steps, .. } if modified(theirs, steps).is_some());
            theirs != self.object().get(key).map(utf8) && !is_repeatable()
        })
    }

    fn change(&mut self) -> &mut Changes {
        self.changes.get_or_insert_default()
    }

    fn is_cleared(&self) -> bool {
        self.changes.as_ref().is_some_and(|changes| changes.cleared)
    }

    fn unchanged(&self, key: &str) -> Option<&str> {
        if self.is_cleared() { None } else { self.object().get(key).map(utf8) }
    }
}

/// Compares keys and the texts of their values, however they came about.
impl PartialEq for SessionData {
    fn eq(&self, other: &Self) -> bool {
        self.merged().eq(other.merged())
    }
}

impl Eq for SessionData {}

/// Shows the number of values, and none of them.
impl fmt::Debug for SessionData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionData")
            .field("len", &self.len())
            .field("changed", &self.is_changed())
            .finish_non_exhaustive()
    }
}

/// Merges two sequences in the order of their keys. Where both have a key, the change counts.
struct Merged<B: Iterator, C: Iterator> {
    base: Peekable<B>,
    changes: Peekable<C>,
}

impl<'a, B, C> Iterator for Merged<B, C>
where
    B: Iterator<Item = (&'a [u8], &'a [u8])>,
    C: Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
{
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((changed, _)) = self.changes.peek() else { return self.base.next() };
            if let Some(unchanged) = self.base.next_if(|(key, _)| key < changed) {
                return Some(unchanged);
            }
            self.base.next_if(|(key, _)| key == changed);
            if let Some((key, Some(value))) = self.changes.next() {
                return Some((key, value));
            }
        }
    }
}

fn write_json_string(text: &str, out: &mut Vec<u8>) {
    // Writing a string to a `Vec` cannot fail.
    let _ = serde_json::to_writer(out, text);
}
