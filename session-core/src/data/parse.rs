//! Finding the keys and values of a JSON object.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer as _, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::MalformedJson;

/// The places of a key and its value.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    key_start: u32,
    key_len: u32,
    value_start: u32,
    value_len: u32,
}

impl Slot {
    fn new(key: Range<usize>, value: Range<usize>) -> Option<Self> {
        Some(Self {
            key_start: key.start.try_into().ok()?,
            key_len: key.len().try_into().ok()?,
            value_start: value.start.try_into().ok()?,
            value_len: value.len().try_into().ok()?,
        })
    }

    pub(super) const fn key(self) -> Range<usize> {
        range(self.key_start, self.key_len)
    }

    pub(super) const fn value(self) -> Range<usize> {
        range(self.value_start, self.value_len)
    }
}

const fn range(start: u32, len: u32) -> Range<usize> {
    start as usize..start as usize + len as usize
}

/// Finds the slots of the object in `text` from `start` on, in the order of the text. The returned string
/// holds the keys that are spelled with escapes, unescaped, one after the other; their positions continue
/// from the end of `text`.
pub(super) fn object(text: &[u8], start: usize) -> Result<(Vec<Slot>, String), MalformedJson> {
    let json = text.get(start..).unwrap_or_default();
    // Check UTF-8 once for the whole text, because the parser would check every string on its own.
    let json = std::str::from_utf8(json).map_err(|error| MalformedJson::at(json, error.valid_up_to()))?;
    let mut parser = serde_json::Deserializer::from_str(json);
    let found = parser.deserialize_map(Indexer { text })?;
    parser.end()?;
    Ok(found)
}

struct Indexer<'de> {
    text: &'de [u8],
}

impl Indexer<'_> {
    /// Returns the place of `part`, which borrows from the text.
    fn place(&self, part: &str) -> Range<usize> {
        let start = (part.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        start..start.wrapping_add(part.len())
    }
}

impl<'de> Visitor<'de> for Indexer<'de> {
    type Value = (Vec<Slot>, String);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut slots = Vec::with_capacity(16);
        let mut unescaped = String::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let value = map.next_value::<&RawValue>()?;
            let key = match &key {
                Cow::Borrowed(key) => self.place(key),
                Cow::Owned(key) => {
                    let start = self.text.len() + unescaped.len();
                    unescaped.push_str(key);
                    start..start + key.len()
                }
            };
            let slot = Slot::new(key, self.place(value.get()));
            slots.push(slot.ok_or_else(|| A::Error::custom("larger than 4 GiB"))?);
        }
        Ok((slots, unescaped))
    }
}

/// Reads a key, without copying it if the text spells it without escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }
    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}
