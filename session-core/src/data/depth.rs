//! The nesting of a JSON text.

/// Returns `true` if arrays and objects in `json`, which is JSON, are nested more than `limit` deep.
///
/// Does not recurse: the text may be nested as deep as it is long.
pub(super) fn is_deeper_than(limit: usize, json: &[u8]) -> bool {
    let (mut depth, mut is_string) = (0_usize, false);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_string = !is_string,
            // The next character is not the end of the string.
            b'\\' => drop(bytes.next()),
            b'[' | b'{' if !is_string => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' if !is_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_deeper_than;

    #[test]
    fn depth_counts_arrays_and_objects_outside_of_strings() {
        for (json, depth) in [
            ("1", 0),
            ("[]", 1),
            ("[[],[],[]]", 2),
            (r#"{"a":[1,{"b":2}]}"#, 3),
            (r#"{"[[[[":"]]}}{{{"}"#, 1),
            (r#"["\"[[[[", "\\", [[]]]"#, 3),
        ] {
            assert!(!is_deeper_than(depth, json.as_bytes()), "{json}");
            assert!(depth == 0 || is_deeper_than(depth - 1, json.as_bytes()), "{json}");
        }
    }

    #[test]
    fn text_of_a_megabyte_of_brackets_is_deep() {
        assert!(is_deeper_than(126, "[".repeat(1 << 20).as_bytes()));
    }
}
