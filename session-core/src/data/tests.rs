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
fn value_that_could_not_be_read_again_is_refused() {
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let object = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let limit = SessionData::MAX_DEPTH;
    for value in [nested as fn(usize) -> String, object] {
        let mut data = SessionData::new();
        data.insert("kept", "1".into()).unwrap();
        data.insert("deep", value(limit)).unwrap();
        // An accepted value is read again: the value alone, and the whole map.
        serde_json::from_str::<serde_json::Value>(data.get("deep").unwrap()).unwrap();
        serde_json::from_str::<serde_json::Value>(&written(&data)).unwrap();
        for depth in [limit + 1, 200, 100_000] {
            let before = data.clone();
            assert_eq!(data.insert("deep", value(depth)), Err(InvalidValue::TooDeep { limit }));
            assert_eq!(data.modify("deep", value(depth), |_| None), Err(InvalidValue::TooDeep { limit }));
            assert_eq!(data, before);
        }
    }
}

#[test]
fn deep_value_of_another_program_is_passed_through() {
    let text = format!("{{\"deep\":{}1{},\"x\":1}}", "[".repeat(500), "]".repeat(500));
    let mut data = read(&text);
    data.insert("x", "2".into()).unwrap();
    assert_eq!(written(&data), text.replace("\"x\":1", "\"x\":2"));
}

#[test]
fn overlap_looks_only_at_the_keys_that_count() {
    let base = read(r#"{"a":1,"b":1}"#);
    let mut mine = base;
    mine.insert("a", "2".into()).unwrap();
    let fresh = read(r#"{"a":3,"b":1}"#);
    assert!(!mine.overlaps(&fresh, |key| key != "a"));
    mine.clear();
    assert!(!mine.overlaps(&fresh, |key| key != "a"));
    assert!(mine.overlaps(&fresh, |key| key == "a"));
}

#[test]
fn error_names_the_place_where_the_text_is_not_unicode() {
    for (text, line, column) in [(&b"\xff"[..], 1, 1), (b"{\n\"a\":\n \"\xff\"}", 3, 3)] {
        let error = SessionData::from_json(Bytes::from_static(text)).unwrap_err();
        assert_eq!(error.to_string(), format!("not the expected JSON, from line {line} column {column} on"));
    }
}

#[test]
fn overlap_is_a_changed_key_that_another_writer_changed_too() {
    let base = read(r#"{"a":1,"b":1}"#);
    let mut mine = base.clone();
    mine.insert("a", "2".into()).unwrap();
    mine.remove("absent");
    assert!(!mine.overlaps(&base, |_| true));
    assert!(!mine.overlaps(&read(r#"{"a":1,"b":2,"c":3}"#), |_| true));
    assert!(mine.overlaps(&read(r#"{"a":2}"#), |_| true));
    assert!(mine.overlaps(&read(r#"{"a":3}"#), |_| true));
    assert!(mine.overlaps(&read("{}"), |_| true));
    mine.clear();
    assert!(!mine.overlaps(&base, |_| true));
    assert!(mine.overlaps(&read(r#"{"a":1}"#), |_| true));
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
    assert!(!mine.overlaps(&fresh, |_| true));
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
        assert!(mine.overlaps(&read(r#"{"a":10}"#), |_| true));
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
    assert!(mine.overlaps(&fresh, |_| true));
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
