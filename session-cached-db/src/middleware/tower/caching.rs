//! The response headers that keep shared caches from giving one client's page, or key, to another.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Adds `names` to `Vary`, so that no cache serves a page to a client that presents another key.
pub(super) fn vary_by(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        let lines = headers.get_all(header::VARY).iter().filter_map(|line| line.to_str().ok());
        let mut listed = lines.flat_map(|line| line.split(',')).map(str::trim);
        if !listed.any(|listed| listed == "*" || listed.eq_ignore_ascii_case(name.as_str())) {
            headers.append(header::VARY, vary_value(name));
        }
    }
}

fn vary_value(name: &HeaderName) -> HeaderValue {
    // As it is usually written. Names of headers are in lower case here.
    if name == header::COOKIE { HeaderValue::from_static("Cookie") } else { HeaderValue::from(name.clone()) }
}

/// Marks the response as meant for one client, unless the handler has decided about that. `Vary` does not do it alone: all
/// clients that come without a key look the same, and would share the first one's.
///
/// A response that `changes_key` of its client must not be stored by shared caches whatever the handler says: of its
/// `Cache-Control`, only what permits that is taken away.
pub(super) fn keep_out_of_shared_caches(headers: &mut HeaderMap, changes_key: bool) {
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    } else if changes_key && !is_kept_from_sharing(headers) {
        let private = private(headers);
        headers.insert(header::CACHE_CONTROL, private);
    }
}

/// Returns `true` if no shared cache may store the response. `no-cache` permits that: it only demands to ask before each use,
/// and an answer of 304 would then bring another client's key along.
fn is_kept_from_sharing(headers: &HeaderMap) -> bool {
    directives(headers)
        .any(|directive| ["private", "no-store"].iter().any(|name| directive.eq_ignore_ascii_case(name)))
}

/// Returns the value of `Cache-Control`, without what is for shared caches, and with `private`.
fn private(headers: &HeaderMap) -> HeaderValue {
    let is_for_shared = |directive: &str| {
        let name = directive.split('=').next().unwrap_or_default().trim();
        // Lists of headers in quotes are about the parts of a shared response.
        directive.contains('"')
            || ["public", "s-maxage"].iter().any(|shared| name.eq_ignore_ascii_case(shared))
    };
    let kept = directives(headers).filter(|directive| !is_for_shared(directive));
    let value = std::iter::once("private").chain(kept).collect::<Vec<_>>().join(", ");
    // Does not fail: all of it comes from a header.
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("private"))
}

fn directives(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|directive| !directive.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_key(said: &[&'static str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for line in said {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_static(line));
        }
        keep_out_of_shared_caches(&mut headers, true);
        headers.get_all(header::CACHE_CONTROL).iter().map(|line| line.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn response_with_a_key_is_private_whatever_the_handler_said() {
        for (said, expected) in [
            (&[][..], "private"),
            (&["public, max-age=60"], "private, max-age=60"),
            (&["PUBLIC", "S-MaxAge=60, immutable"], "private, immutable"),
            (&["max-age=60"], "private, max-age=60"),
            (&["private=\"x-a, x-b\", max-age=1"], "private, max-age=1"),
            (&["no-store"], "no-store"),
            (&["max-age=60, Private"], "max-age=60, Private"),
            (&["no-cache, max-age=0"], "private, no-cache, max-age=0"),
        ] {
            assert_eq!(with_key(said), [expected], "{said:?}");
        }
    }
}
