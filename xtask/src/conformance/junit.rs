//! The report as JUnit XML, which CI systems read.

use super::results::{Case, Count, Outcome, Results};

pub(crate) fn document(results: &Results) -> String {
    let Count { failed, ignored, .. } = Count::of(&results.cases);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites tests=\"{}\" failures=\"{failed}\" \
         skipped=\"{ignored}\" time=\"{:.3}\">\n",
        results.cases.len(),
        results.took.as_secs_f64()
    );
    for layer in results.layers() {
        for (backend, cases) in results.backends(layer) {
            text += &suite(layer, backend, &cases);
        }
    }
    text + "</testsuites>\n"
}

fn suite(layer: &str, backend: &str, cases: &[&Case]) -> String {
    let class = escaped(&format!("{layer}::{backend}"));
    let count = Count::of(cases.iter().copied());
    let mut text = format!(
        "  <testsuite name=\"{class}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">\n",
        count.sum(),
        count.failed,
        count.ignored
    );
    for case in cases {
        let head = format!("    <testcase classname=\"{class}\" name=\"{}\"", escaped(&case.name));
        text += &match &case.outcome {
            Outcome::Passed => format!("{head}/>\n"),
            Outcome::Ignored => format!("{head}><skipped/></testcase>\n"),
            Outcome::Failed(message) => {
                let first = message.lines().next().unwrap_or_default();
                let (first, all) = (escaped(first), escaped(message));
                format!("{head}><failure message=\"{first}\">{all}</failure></testcase>\n")
            }
        };
    }
    text + "  </testsuite>\n"
}

/// Escapes text for an element or an attribute of XML or HTML.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            // XML has no way to write these.
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::markdown::example;

    #[test]
    fn failures_and_ignored_tests_are_counted_and_reported() {
        let text = document(&example());
        assert!(text.contains("tests=\"5\" failures=\"1\" skipped=\"1\" time=\"61.000\""), "{text}");
        assert!(text.contains("<testcase classname=\"pair::redis+mysql\" name=\"b\"><skipped/>"), "{text}");
        assert!(text.contains("message=\"left: &lt;1&gt; &amp; &quot;2&quot;\""), "{text}");
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(escaped("a\u{1b}[31m<b>\n"), "a\u{fffd}[31m&lt;b&gt;\n");
    }
}
