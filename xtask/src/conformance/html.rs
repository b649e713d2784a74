//! The report as one self-contained HTML page.

use super::junit::escaped;
use super::results::{Case, Count, Outcome, Results};

const STYLE: &str = include_str!("style.css");

pub(crate) fn page(results: &Results) -> String {
    let Count { passed, failed, ignored } = Count::of(&results.cases);
    let verdict = match (failed, passed) {
        (0, 0) => "nothing tested",
        (0, _) => "all tests passed",
        _ => "tests failed",
    };
    let mut body = format!(
        "<h1>Conformance: {verdict}</h1>\n<p>{passed} passed, {failed} failed, {ignored} ignored, in {:.0} s. \
         Each cell leads to its tests.</p>\n",
        results.took.as_secs_f64()
    );
    body += &matrix(results);
    body += &singles(results);
    for layer in results.layers() {
        for (backend, cases) in results.backends(layer) {
            body += &section(layer, backend, &cases);
        }
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Conformance: {verdict}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

fn matrix(results: &Results) -> String {
    let (caches, databases) = results.sides();
    if caches.is_empty() {
        return String::new();
    }
    let mut text = String::from("<div class=\"wide\"><table>\n<tr><td></td>");
    for database in &databases {
        text += &format!("<th scope=\"col\">{}</th>", escaped(database));
    }
    text += "</tr>\n";
    for cache in &caches {
        text += &format!("<tr><th scope=\"row\">{}</th>", escaped(cache));
        for database in &databases {
            let cases = results.pair(cache, database);
            text += &if cases.is_empty() {
                "<td></td>".to_owned()
            } else {
                format!("<td>{}</td>", link("pair", &format!("{cache}+{database}"), &cases))
            };
        }
        text += "</tr>\n";
    }
    text + "</table></div>\n"
}

/// Lists the backends that are tested alone.
fn singles(results: &Results) -> String {
    let mut text = String::new();
    for layer in results.layers().into_iter().filter(|layer| *layer != "pair") {
        text += &format!("<h2>{}</h2>\n<ul class=\"cells\">\n", escaped(&layer.replace('_', " ")));
        for (backend, cases) in results.backends(layer) {
            text += &format!("<li>{} {}</li>\n", link(layer, backend, &cases), escaped(backend));
        }
        text += "</ul>\n";
    }
    text
}

fn link(layer: &str, backend: &str, cases: &[&Case]) -> String {
    let count = Count::of(cases.iter().copied());
    let (class, shown) = match count {
        Count { failed: 1.., .. } => ("failed", format!("✗ {} of {}", count.failed, count.sum())),
        Count { passed: 0, .. } => ("ignored", "not tested".to_owned()),
        Count { ignored: 1.., .. } => ("passed", format!("✓ {} of {}", count.passed, count.sum())),
        _ => ("passed", format!("✓ {}", count.passed)),
    };
    format!("<a class=\"{class}\" href=\"#{}\">{shown}</a>", anchor(layer, backend))
}

fn section(layer: &str, backend: &str, cases: &[&Case]) -> String {
    let mut text = format!(
        "<h2 id=\"{}\">{}</h2>\n<ul>\n",
        anchor(layer, backend),
        escaped(&format!("{layer}::{backend}"))
    );
    for case in cases {
        let name = escaped(&case.name.replace('_', " "));
        text += &match &case.outcome {
            Outcome::Passed => format!("<li class=\"passed\">✓ {name}</li>\n"),
            Outcome::Ignored => format!("<li class=\"ignored\">– {name}, ignored</li>\n"),
            Outcome::Failed(message) => {
                format!("<li class=\"failed\">✗ {name}<pre>{}</pre></li>\n", escaped(message))
            }
        };
    }
    text + "</ul>\n"
}

fn anchor(layer: &str, backend: &str) -> String {
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
    format!("{layer}-{backend}").chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::markdown::example;

    #[test]
    fn every_cell_leads_to_its_cases() {
        let page = page(&example());
        let targets: Vec<_> =
            page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(targets.len(), 4, "{page}");
        for target in targets {
            assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
        }
    }

    #[test]
    fn page_is_self_contained_and_escapes_the_messages_of_tests() {
        let page = page(&example());
        assert!(page.contains("left: &lt;1&gt; &amp;"), "{page}");
        for outside in ["http:", "https:", "<script", "<img", "<link", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
