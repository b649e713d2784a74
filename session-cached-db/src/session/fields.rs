//! Fields that a type does not have: a node with an older version of a struct keeps what a newer one has added.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

type Fields<'a> = BTreeMap<String, &'a RawValue>;

/// Returns `true` if the JSON text may hold an object.
pub(super) fn may_have_fields(json: &str) -> bool {
    json.contains('{')
}

/// Returns the fields of the object in `json`, or `None` if it holds something else.
pub(super) fn fields(json: &str) -> Option<Fields<'_>> {
    if json.starts_with('{') { serde_json::from_str(json).ok() } else { None }
}

/// Returns `after` with those fields of `stored` that a `T` does not have.
///
/// `before` is what a `T` writes that was read from `stored`, and `after` what it writes after it was changed. If a `T` would
/// read something else from the result, because it knows a field by several names for instance, returns `after`.
pub(super) fn keep_unknown<T: DeserializeOwned + Serialize>(
    stored: &str,
    before: &str,
    after: String,
) -> String {
    let kept = merged(stored, before, &after);
    if kept == after {
        return after;
    }
    let as_read = serde_json::from_str::<T>(&kept).and_then(serde_json::to_value);
    let wanted = serde_json::from_str::<Value>(&after);
    match (as_read, wanted) {
        (Ok(as_read), Ok(wanted)) if as_read == wanted => kept,
        _ => after,
    }
}

/// Returns `stored` with the changes from `before` to `after`.
fn merged(stored: &str, before: &str, after: &str) -> String {
    if before == after {
        return stored.to_owned();
    }
    let merged = merged_objects(stored, before, after).or_else(|| merged_lists(stored, before, after));
    merged.unwrap_or_else(|| after.to_owned())
}

fn merged_objects(stored: &str, before: &str, after: &str) -> Option<String> {
    let (stored, before, after) = (fields(stored)?, fields(before)?, fields(after)?);
    let known = after.iter().filter_map(|(name, after)| {
        let value = match (stored.get(name), before.get(name)) {
            (Some(stored), Some(before)) => merged(stored.get(), before.get(), after.get()),
            // A default that was not stored, and was not changed.
            (None, Some(before)) if before.get() == after.get() => return None,
            _ => after.get().to_owned(),
        };
        Some((name, value))
    });
    let is_unknown = |name: &String| !before.contains_key(name) && !after.contains_key(name);
    let unknown = stored.iter().filter(|(name, _)| is_unknown(name));
    let all = known.chain(unknown.map(|(name, value)| (name, value.get().to_owned())));
    let all = all.map(|(name, value)| Some(format!("{}:{value}", serde_json::to_string(name).ok()?)));
    Some(format!("{{{}}}", all.collect::<Option<Vec<_>>>()?.join(",")))
}

/// Keeps the elements at both ends that were not changed. In between, elements may have moved, so none of them is known to be
/// the one that it was.
fn merged_lists(stored: &str, before: &str, after: &str) -> Option<String> {
    let [stored, before, after] = [stored, before, after].map(list);
    let (stored, before, after) = (stored?, before?, after?);
    if stored.len() != before.len() {
        return None;
    }
    let is_same = |(before, after): &(&&RawValue, &&RawValue)| before.get() == after.get();
    let first = before.iter().zip(&after).take_while(is_same).count();
    let shorter = before.len().min(after.len()) - first;
    let last = before.iter().rev().zip(after.iter().rev()).take(shorter).take_while(is_same).count();
    let start = stored.iter().take(first);
    let middle = after.iter().take(after.len() - last).skip(first);
    let end = stored.iter().skip(stored.len() - last);
    let all = start.chain(middle).chain(end).map(|value| value.get());
    Some(format!("[{}]", all.collect::<Vec<_>>().join(",")))
}

fn list(json: &str) -> Option<Vec<&RawValue>> {
    if json.starts_with('[') { serde_json::from_str(json).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Item {
        name: String,
        #[serde(alias = "amount")]
        count: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    }

    fn after<T: DeserializeOwned + Serialize>(stored: &str, change: impl Fn(&mut T)) -> Value {
        let mut value: T = serde_json::from_str(stored).unwrap();
        let before = serde_json::to_string(&value).unwrap();
        change(&mut value);
        let after = serde_json::to_string(&value).unwrap();
        serde_json::from_str(&keep_unknown::<T>(stored, &before, after)).unwrap()
    }

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn unknown_fields_are_kept_at_every_depth() {
        let stored = r#"{"new": 1, "a": {"name":"x","count":1,"gift":true}}"#;
        let changed = after::<HashMap<String, Value>>(stored, |map| drop(map.remove("new")));
        assert_eq!(changed, json(r#"{"a":{"name":"x","count":1,"gift":true}}"#));

        #[derive(Serialize, Deserialize)]
        struct Outer {
            a: Item,
        }
        let changed = after::<Outer>(stored, |outer| outer.a.count = 2);
        assert_eq!(changed, json(r#"{"new":1,"a":{"name":"x","count":2,"gift":true}}"#));
        // A field that the type knows and leaves out is removed.
        let stored = r#"{"a":{"name":"x","count":1,"note":"n","gift":true}}"#;
        let changed = after::<Outer>(stored, |outer| outer.a.note = None);
        assert_eq!(changed, json(r#"{"a":{"name":"x","count":1,"gift":true}}"#));
    }

    #[test]
    fn elements_that_were_not_changed_keep_their_unknown_fields() {
        let stored =
            r#"[{"name":"a","count":1,"x":1},{"name":"b","count":1,"x":2},{"name":"c","count":1,"x":3}]"#;
        let pushed = after::<Vec<Item>>(stored, |items| items.push(Item::default()));
        assert_eq!(pushed.as_array().unwrap()[..3], json(stored).as_array().unwrap()[..]);
        let removed = after::<Vec<Item>>(stored, |items| drop(items.remove(0)));
        assert_eq!(removed.as_array().unwrap()[..], json(stored).as_array().unwrap()[1..]);
        // An element that takes the place of another one does not get its fields.
        let changed = after::<Vec<Item>>(stored, |items| items[1].name = "d".into());
        assert_eq!(changed[1], json(r#"{"name":"d","count":1}"#));
        assert_eq!((&changed[0]["x"], &changed[2]["x"]), (&json("1"), &json("3")));
    }

    #[test]
    fn field_known_by_another_name_is_not_there_twice() {
        let changed = after::<Item>(r#"{"name":"x","amount":3,"gift":true}"#, |item| item.count += 1);
        assert_eq!(changed, json(r#"{"name":"x","count":4}"#));
    }

    #[test]
    fn default_that_was_not_stored_is_left_out_until_it_is_changed() {
        let changed = after::<Item>(r#"{"name":"x"}"#, |item| item.name = "y".into());
        assert_eq!(changed, json(r#"{"name":"y"}"#));
        let changed = after::<Item>(r#"{"name":"x"}"#, |item| item.count = 1);
        assert_eq!(changed, json(r#"{"name":"x","count":1}"#));
    }

    #[test]
    fn value_that_is_no_object_is_replaced() {
        assert_eq!(after::<u32>("1", |number| *number += 1), json("2"));
        assert_eq!(after::<Vec<u32>>("[1,2]", |list| list.push(3)), json("[1,2,3]"));
        assert_eq!(after::<Vec<u32>>("[1,1,1]", |list| list.truncate(2)), json("[1,1]"));
        assert_eq!(after::<Option<Item>>(r#"{"name":"x"}"#, |item| *item = None), json("null"));
    }
}
