//! A page of rows in the order of their keys, without those whose keys are no stored keys.

use session_core::{Row, StoredKey};

use crate::sql::columns::Corrupt;

/// A page that is being read.
pub(crate) struct Page<T> {
    rows: Vec<Row<T>>,
    limit: u32,
    /// The first key that is still to be read, in ASCII. `None` if nothing is left.
    first: Option<String>,
    least_byte: u8,
    /// The number of rows in the last request.
    asked: u32,
    unreadable_keys: u64,
}

impl<T> Page<T> {
    /// Makes an empty page for at most `limit` rows that come after `after`, or for the first ones. A key
    /// with `least_byte` appended is the least key that comes after it.
    pub(crate) fn new(after: Option<&StoredKey>, limit: u32, least_byte: u8) -> Self {
        let first = match after {
            Some(after) => following(after.as_bytes(), least_byte),
            None => Some(String::new()),
        };
        Self { rows: Vec::new(), limit, first, least_byte, asked: 0, unreadable_keys: 0 }
    }

    /// Returns the first key that is still to be read, and how many rows. `None` if the page is complete.
    pub(crate) fn next(&mut self) -> Option<(&str, u32)> {
        let found = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        self.asked = self.limit.saturating_sub(found);
        self.first.as_deref().filter(|_| self.asked > 0).map(|first| (first, self.asked))
    }

    /// Adds the rows that were read. Each has its contents, and its key if that is one that others can come
    /// after.
    pub(crate) fn add<'r, C>(&mut self, rows: impl Iterator<Item = (Option<&'r [u8]>, C)>)
    where
        C: FnOnce() -> Result<T, Corrupt>,
    {
        let (mut count, mut last) = (0_u32, None);
        for (key, contents) in rows {
            count = count.saturating_add(1);
            last = key;
            match key.and_then(|key| StoredKey::parse(std::str::from_utf8(key).ok()?).ok()) {
                Some(key) => self.rows.push(Row::new(key, contents().map_err(Into::into))),
                None => self.unreadable_keys = self.unreadable_keys.saturating_add(1),
            }
        }
        let last = last.filter(|_| count >= self.asked);
        self.first = last.and_then(|last| following(last, self.least_byte));
    }

    /// Returns the rows, and logs how many were passed over.
    pub(crate) fn finish(self) -> Vec<Row<T>> {
        if self.unreadable_keys > 0 {
            tracing::warn!(target: "db_backends", event = "row_key_unreadable", count = self.unreadable_keys,
                "rows whose keys are no stored keys were passed over; look for what else writes to the session table");
        }
        self.rows
    }
}

/// Returns an ASCII text that comes after `key`, with no stored key between them. `None` if none comes after
/// `key`.
fn following(key: &[u8], least_byte: u8) -> Option<String> {
    let ascii = key.iter().take_while(|byte| byte.is_ascii());
    let mut text: String = ascii.map(|byte| char::from(*byte)).collect();
    if text.len() == key.len() {
        text.push(least_byte.into());
        return Some(text);
    }
    // Stored keys are ASCII, so none comes after `key` that begins with the same ASCII text.
    while let Some(last) = text.pop() {
        let next = char::from_u32(u32::from(last) + 1);
        if let Some(next) = next.filter(char::is_ascii) {
            text.push(next);
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(page: &mut Page<()>, keys: &[&[u8]]) {
        page.add(keys.iter().map(|key| (Some(*key), || Ok(()))));
    }

    #[test]
    fn following_text_skips_no_stored_key() {
        let following = |key: &'static [u8]| following(key, 0);
        assert_eq!(following(b"a").as_deref(), Some("a\0"));
        assert_eq!(following(b"a b").as_deref(), Some("a b\0"));
        // `ab` comes before it, `b` after it.
        assert_eq!(following(b"a\xff").as_deref(), Some("b"));
        assert_eq!(following("a\u{7f}ä".as_bytes()).as_deref(), Some("b"));
        assert_eq!(following("ä".as_bytes()), None);
        assert_eq!(following(b"\x7f\xff"), None);
    }

    #[test]
    fn page_reads_on_after_unreadable_keys_until_it_is_full() {
        let mut page = Page::new(None, 2, 0);
        assert_eq!(page.next(), Some(("", 2)));
        read(&mut page, &[b"a b", b"b"]);
        assert_eq!(page.next(), Some(("b\0", 1)));
        read(&mut page, &[b"c d"]);
        assert_eq!(page.next(), Some(("c d\0", 1)));
        read(&mut page, &[b"d"]);
        assert_eq!(page.next(), None);
        assert_eq!(page.finish().len(), 2);
    }

    #[test]
    fn page_ends_with_the_table() {
        let mut page = Page::new(StoredKey::parse("a").ok().as_ref(), 2, 1);
        assert_eq!(page.next(), Some(("a\u{1}", 2)));
        read(&mut page, &[b"b"]);
        assert_eq!(page.next(), None);

        let mut page = Page::<()>::new(None, 0, 0);
        assert_eq!(page.next(), None);
        // Keys of another type come after all text.
        let mut page = Page::<()>::new(None, 1, 0);
        page.next();
        page.add(std::iter::once((None, || Ok(()))));
        assert_eq!(page.next(), None);
        assert_eq!(page.finish().len(), 0);
    }
}
