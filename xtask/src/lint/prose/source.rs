//! A Rust source, taken apart into its comments and its code.

/// The comments of a file, and its code with blanks in the place of comments and literals.
pub(super) struct Source<'a> {
    pub(super) comments: Vec<Comment<'a>>,
    pub(super) code: String,
}

/// One line of a comment, with its marker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Comment<'a> {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) text: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let mut source = Self { comments: Vec::new(), code: String::with_capacity(text.len()) };
        let (mut rest, mut line) = (text, 1);
        while let Some(first) = rest.chars().next() {
            let comment = comment_length(rest);
            let hidden = comment.or_else(|| literal_length(rest));
            let (piece, behind) = rest.split_at(hidden.unwrap_or(first.len_utf8()));
            if comment.is_some() {
                let lines = piece.lines().enumerate();
                source.comments.extend(lines.map(|(number, text)| Comment { line: line + number, text }));
            }
            if hidden.is_some() {
                source.code.extend(piece.chars().map(|one| if one == '\n' { '\n' } else { ' ' }));
            } else {
                source.code.push(first);
            }
            line += piece.matches('\n').count();
            rest = behind;
        }
        source
    }
}

/// Returns the length of the comment that `text` begins with, if it begins with one.
fn comment_length(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    let mut depth = 0;
    let mut at = 0;
    // Block comments nest.
    loop {
        let rest = text.get(at..)?;
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if depth == 0 {
            return None;
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += rest.chars().next()?.len_utf8();
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Returns the length of the string or character that `text` begins with, if it begins with one. A lifetime
/// is neither.
fn literal_length(text: &str) -> Option<usize> {
    if let Some(body) = text.strip_prefix('"') {
        return Some(1 + quoted_length(body, '"')?);
    }
    if let Some(raw) = text.strip_prefix('r') {
        let body = raw.trim_start_matches('#');
        let end = format!("\"{}", "#".repeat(raw.len() - body.len()));
        let inside = body.strip_prefix('"')?;
        return Some(text.len() - inside.len() + inside.find(&end)? + end.len());
    }
    let body = text.strip_prefix('\'')?;
    let mut characters = body.chars();
    let is_character = characters.next()? == '\\' || characters.next()? == '\'';
    if is_character { Some(1 + quoted_length(body, '\'')?) } else { None }
}

/// Returns how much of `body` is up to and with the closing quote. A backslash hides the character after it.
fn quoted_length(body: &str, quote: char) -> Option<usize> {
    let mut is_escaped = false;
    let end = body.char_indices().find(|(_, character)| {
        let is_end = *character == quote && !is_escaped;
        is_escaped = *character == '\\' && !is_escaped;
        is_end
    });
    end.map(|(at, _)| at + quote.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_found_with_their_lines() {
        let source = Source::parse("//! one\nfn f() {} // two\n/* three\n/* four */\n*/ fn g() {}\n");
        let found: Vec<_> = source.comments.iter().map(|comment| (comment.line, comment.text)).collect();
        let expected = [(1, "//! one"), (2, "// two"), (3, "/* three"), (4, "/* four */"), (5, "*/")];
        assert_eq!(found, expected);
        assert!(source.code.contains("fn f() {}") && source.code.contains(" fn g() {}"), "{}", source.code);
        assert_eq!(source.code.lines().count(), 5);
    }

    #[test]
    fn literals_hide_what_looks_like_a_comment_or_a_quote() {
        let text = r###"let a = ["// no", r#"// no " "#, br"// no", "\"// no"]; let b = ['"', '\'', '\\', 'x']; // yes"###;
        let source = Source::parse(text);
        assert_eq!(source.comments.len(), 1, "{:?}", source.comments);
        assert_eq!(source.comments[0].text, "// yes");
        assert!(!source.code.contains("no"), "{}", source.code);
    }

    #[test]
    fn lifetimes_and_labels_hide_nothing() {
        let source = Source::parse("fn f<'a>(x: &'a str) -> &'static str { 'outer: loop {} } // it's here");
        assert_eq!(source.comments.len(), 1);
        assert!(source.code.contains("&'static str { 'outer: loop {} }"), "{}", source.code);
    }
}
