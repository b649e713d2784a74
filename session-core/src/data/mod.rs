mod error;
mod object;
mod parse;

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

pub use self::error::MalformedJson;
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
struct Modification(Arc<dyn Fn(Option<&str>) -> Option<String> + Send + Sync>);

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

/// Returns `text`, without the white space around it, if it is one JSON value.
fn json(text: String) -> Result<Box<str>, MalformedJson> {
    Ok(RawValue::from_string(text)?.into())
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
    /// Returns [`MalformedJson`] if `value` is not one JSON value.
    pub fn insert(&mut self, key: &str, value: String) -> Result<(), MalformedJson> {
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
    /// Returns [`MalformedJson`] if `value` is not one JSON value.
    pub fn modify(
        &mut self,
        key: &str,
        value: String,
        modification: impl Fn(Option<&str>) -> Option<String> + Send + Sync + 'static,
    ) -> Result<(), MalformedJson> {
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

    /// Returns `true` if a key that was changed here has another value in `fresh` than in the base of this
    /// map, which means that another writer changed it, too.
    ///
    /// A change to the same value counts as well. A [modification](Self::modify) that can be repeated on the
    /// other value does not.
    #[must_use]
    pub fn overlaps(&self, fresh: &Self) -> bool {
        let Some(mine) = &self.changes else { return false };
        if mine.cleared {
            return !self.object().iter().eq(fresh.merged());
        }
        mine.keys.iter().any(|(key, change)| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn read(json: &str) -> SessionData {
        SessionData::from_json(Bytes::copy_from_slice(json.as_bytes())).unwrap()
    }

    fn written(data: &SessionData) -> String {
        let mut out = Vec::new();
        data.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn untouched_values_are_written_byte_for_byte() {
        let json = r#"{ "z" : 1.50, "a\u0062" : {"x": [1 , 2]}, "big": 123456789012345678901234567890 }"#;
        let mut data = read(json);
        assert_eq!(written(&data), json);
        data.insert("new", "true".into()).unwrap();
        assert_eq!(
            written(&data),
            r#"{"ab":{"x": [1 , 2]},"big":123456789012345678901234567890,"new":true,"z":1.50}"#
        );
    }

    #[test]
    fn texts_of_any_length_are_read() {
        for len in [10, 0xffe0, 0x1_0000, 0x20_0000] {
            let long = format!("\"{}\"", "x".repeat(len));
            let data = read(&format!(r#"{{"z":{long},"a\u0062":{long},"b\u0062":2,"c":3}}"#));
            let keys = [("ab", &*long), ("bb", "2"), ("c", "3"), ("z", &*long)];
            assert_eq!(data.iter().collect::<Vec<_>>(), keys, "{len}");
            assert!(keys.iter().all(|(key, value)| data.get(key) == Some(value)), "{len}");
            assert_eq!(data.get("d"), None);
        }
    }

    #[test]
    fn duplicate_key_has_its_last_value() {
        let data = read(r#"{"b":1,"a":1,"b":2,"\u0061":3}"#);
        assert_eq!(data.iter().collect::<Vec<_>>(), [("a", "3"), ("b", "2")]);
    }

    #[test]
    fn text_that_is_not_one_json_object_is_refused() {
        for text in ["", "null", "[]", "{} {}", "{\"a\":}", "{\"a\":1", "{a:1}", "\u{0}", "{\"a\":nan}"] {
            assert!(SessionData::from_json(Bytes::copy_from_slice(text.as_bytes())).is_err(), "{text}");
        }
        assert!(SessionData::from_json(Bytes::from_static(b"{\"a\":\"\xff\"}")).is_err());
        assert!(SessionData::new().insert("a", "1 2".into()).is_err());
    }

    #[test]
    fn error_names_the_place_where_the_text_is_not_unicode() {
        for (text, line, column) in [(&b"\xff"[..], 1, 1), (b"{\n\"a\":\n \"\xff\"}", 3, 3)] {
            let error = SessionData::from_json(Bytes::from_static(text)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("not the expected JSON, from line {line} column {column} on")
            );
        }
    }

    #[test]
    fn overlap_is_a_changed_key_that_another_writer_changed_too() {
        let base = read(r#"{"a":1,"b":1}"#);
        let mut mine = base.clone();
        mine.insert("a", "2".into()).unwrap();
        mine.remove("absent");
        assert!(!mine.overlaps(&base));
        assert!(!mine.overlaps(&read(r#"{"a":1,"b":2,"c":3}"#)));
        assert!(mine.overlaps(&read(r#"{"a":2}"#)));
        assert!(mine.overlaps(&read(r#"{"a":3}"#)));
        assert!(mine.overlaps(&read("{}")));
        mine.clear();
        assert!(!mine.overlaps(&base));
        assert!(mine.overlaps(&read(r#"{"a":1}"#)));
    }

    /// Adds one to the number under `key`.
    fn count(data: &mut SessionData, key: &str) {
        let add = |text: Option<&str>| Some((text.unwrap_or("0").parse::<i64>().ok()? + 1).to_string());
        let value = add(data.get(key)).unwrap();
        data.modify(key, value, add).unwrap();
    }

    #[test]
    fn modification_is_repeated_on_a_fresher_base() {
        let mut mine = read(r#"{"a":1,"b":1}"#);
        count(&mut mine, "a");
        count(&mut mine, "a");
        count(&mut mine, "new");
        assert_eq!((mine.get("a"), mine.get("new")), (Some("3"), Some("1")));
        let fresh = read(r#"{"a":10,"b":2,"new":5}"#);
        assert!(!mine.overlaps(&fresh));
        let rebased = mine.rebase(&fresh);
        assert_eq!(rebased, read(r#"{"a":12,"b":2,"new":6}"#));
        // The result can be rebased again.
        assert_eq!(rebased.rebase(&read(r#"{"a":100}"#)), read(r#"{"a":102,"new":1}"#));
        // A value that was removed meanwhile is begun anew.
        assert_eq!(mine.rebase(&read("{}")), read(r#"{"a":2,"new":1}"#));
    }

    #[test]
    fn modification_of_an_own_value_is_not_repeated() {
        for prepare in [
            |data: &mut SessionData| data.insert("a", "5".into()).unwrap(),
            SessionData::clear,
            |data: &mut SessionData| {
                data.remove("a");
            },
        ] {
            let mut mine = read(r#"{"a":1}"#);
            prepare(&mut mine);
            count(&mut mine, "a");
            let value = mine.get("a").unwrap().to_owned();
            assert!(mine.overlaps(&read(r#"{"a":10}"#)));
            assert_eq!(mine.rebase(&read(r#"{"a":10}"#)).get("a"), Some(&*value));
        }
        let mut mine = read(r#"{"a":1}"#);
        count(&mut mine, "a");
        mine.insert("a", "7".into()).unwrap();
        assert_eq!(mine.rebase(&read(r#"{"a":10}"#)).get("a"), Some("7"));
    }

    #[test]
    fn modification_that_cannot_be_repeated_keeps_its_value() {
        let mut mine = read(r#"{"a":1}"#);
        count(&mut mine, "a");
        let fresh = read(r#"{"a":"a text"}"#);
        assert!(mine.overlaps(&fresh));
        assert_eq!(mine.rebase(&fresh).get("a"), Some("2"));
    }

    #[test]
    fn debug_shows_no_key_and_no_value() {
        let data = read(r#"{"secret":"secret"}"#);
        assert!(!format!("{data:?}").contains("secret"));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(String, u32),
        Remove(String),
        Clear,
    }

    fn op() -> impl Strategy<Value = Op> {
        let key = "[a-c\"\\\\é]{0,2}";
        prop_oneof![
            6 => (key, any::<u32>()).prop_map(|(key, value)| Op::Insert(key, value)),
            3 => key.prop_map(Op::Remove),
            1 => Just(Op::Clear),
        ]
    }

    fn change(data: &mut SessionData, op: &Op) {
        match op {
            Op::Insert(key, value) => data.insert(key, value.to_string()).unwrap(),
            Op::Remove(key) => drop(data.remove(key)),
            Op::Clear => data.clear(),
        }
    }

    fn apply(data: &mut SessionData, model: &mut BTreeMap<String, String>, op: &Op) {
        let before = data.clone();
        change(data, op);
        match op {
            Op::Insert(key, value) => drop(model.insert(key.clone(), value.to_string())),
            Op::Remove(key) => assert_eq!(before.contains(key), model.remove(key).is_some()),
            Op::Clear => model.clear(),
        }
    }

    fn agrees(data: &SessionData, model: &BTreeMap<String, String>) {
        let expected: Vec<_> = model.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(data.iter().collect::<Vec<_>>(), expected);
        assert_eq!(data.len(), model.len());
        assert_eq!(data.is_empty(), model.is_empty());
    }

    proptest! {
        #[test]
        fn data_behaves_as_an_ordered_map_before_and_after_a_round_trip(
            before in prop::collection::vec(op(), 0..12),
            after in prop::collection::vec(op(), 0..12),
        ) {
            let (mut data, mut model) = (SessionData::new(), BTreeMap::new());
            before.iter().for_each(|op| apply(&mut data, &mut model, op));
            agrees(&data, &model);
            let mut data = read(&written(&data));
            agrees(&data, &model);
            prop_assert!(!data.is_changed());
            after.iter().for_each(|op| apply(&mut data, &mut model, op));
            agrees(&data, &model);
            for (key, value) in &model {
                prop_assert_eq!(data.get(key), Some(value.as_str()));
            }
        }

        #[test]
        fn rebase_keeps_own_changes_and_takes_everything_else_from_fresh(
            theirs in prop::collection::vec(op(), 0..8),
            mine in prop::collection::vec(op(), 0..8),
        ) {
            let base = read(r#"{"a":0,"b":0,"c":0}"#);
            let (mut changed, mut fresh) = (base.clone(), base);
            mine.iter().for_each(|op| change(&mut changed, op));
            theirs.iter().for_each(|op| change(&mut fresh, op));
            let rebased = changed.rebase(&read(&written(&fresh)));
            for key in ["a", "b", "c", "ab", "é"] {
                let touched = changed.is_cleared() || changed.changes.iter().any(|changes| changes.keys.contains_key(key));
                let expected = if touched { changed.get(key) } else { fresh.get(key) };
                prop_assert_eq!(rebased.get(key), expected);
            }
        }
    }
}
