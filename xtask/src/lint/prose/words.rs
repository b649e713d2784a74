//! Text as the words of its paragraphs, without code.

use super::source::Comment;

/// A comment, or a paragraph of a document.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) is_rustdoc: bool,
    pub(super) words: Vec<Word>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) text: String,
}

/// Stands for a piece of code, which is no word of English.
const CODE: &str = "`";

/// Joins comments on successive lines with the same marker.
pub(super) fn of_comments(comments: &[Comment<'_>]) -> Vec<Block> {
    let is_same = |one: &Comment<'_>, next: &Comment<'_>| {
        next.line == one.line + 1 && marker(one.text) == marker(next.text)
    };
    let block = |group: &[Comment<'_>]| {
        let lines = group.iter().map(|comment| {
            let text = comment.text.strip_prefix(marker(comment.text)).unwrap_or(comment.text);
            (comment.line, text)
        });
        let is_rustdoc = group.first().is_some_and(|first| ["///", "//!"].contains(&marker(first.text)));
        Block { is_rustdoc, words: words(lines) }
    };
    comments.chunk_by(is_same).map(block).collect()
}

/// Splits a document in Markdown into its paragraphs and the rows of its tables.
pub(super) fn of_document(text: &str) -> Vec<Block> {
    vec![Block { is_rustdoc: false, words: words((1..).zip(text.lines())) }]
}

fn marker(comment: &str) -> &str {
    // Four slashes are no rustdoc.
    let marker = ["////", "///", "//!", "//"].into_iter().find(|marker| comment.starts_with(marker));
    marker.unwrap_or_default()
}

/// Returns the words outside of code blocks, with [`CODE`] for a piece of code in a line.
fn words<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Vec<Word> {
    let mut words = Vec::new();
    let (mut is_fenced, mut is_code) = (false, false);
    for (line, text) in lines {
        let text = text.trim();
        if text.starts_with("```") || text.starts_with("~~~") {
            is_fenced = !is_fenced;
            continue;
        }
        if is_fenced {
            continue;
        }
        // A piece of code ends with its paragraph, or with its row of a table.
        is_code &= !text.is_empty() && !text.starts_with('|');
        for (number, part) in text.split('`').enumerate() {
            if number > 0 {
                is_code = !is_code;
                if is_code {
                    words.push(Word { line, text: CODE.to_owned() });
                }
            }
            if !is_code {
                let found = part.split(|one: char| !is_word_character(one)).filter(|word| !word.is_empty());
                words.extend(found.map(|word| Word { line, text: word.to_owned() }));
            }
        }
    }
    words
}

fn is_word_character(character: char) -> bool {
    character.is_alphanumeric() || "_'’".contains(character)
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::*;

    fn texts(block: &Block) -> Vec<&str> {
        block.words.iter().map(|word| word.text.as_str()).collect()
    }

    #[test]
    fn comments_on_successive_lines_are_one_block() {
        let source = Source::parse("/// One\n/// two.\n// three\n\n// four\nfn f() {}\n");
        let blocks = of_comments(&source.comments);
        assert_eq!(
            blocks.iter().map(texts).collect::<Vec<_>>(),
            [vec!["One", "two"], vec!["three"], vec!["four"]]
        );
        assert_eq!(blocks.iter().map(|block| block.is_rustdoc).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(blocks[0].words[1], Word { line: 2, text: "two".to_owned() });
    }

    #[test]
    fn code_is_no_word() {
        let text = "a `nobody\nhere` b\n```\nnobody\n```\n| c `d | e |\n| f |";
        assert_eq!(texts(&of_document(text)[0]), ["a", "`", "b", "c", "`", "f"]);
    }
}
