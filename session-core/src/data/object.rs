//! A parsed JSON object: its text, and where in it the keys and values are. A cache holds the places for every session, so
//! they are small.

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;

use super::MalformedJson;
use super::parse::{self, Slot};

/// An object that has a text of its own.
pub(super) struct Parsed {
    text: Bytes,
    places: Places,
}

enum Places {
    Dense(Dense),
    Sparse(Box<Sparse>),
}

/// The places in a text that is as this crate writes it, so that where one thing ends follows from where the next begins:
/// the keys in order, none twice, and spelled without escapes; nothing between the tokens; the object to the end of the
/// text; and short enough for two bytes to tell a place.
#[derive(Clone)]
pub(crate) struct Dense(Box<[Place]>);

/// Where a key and its value begin.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    key: u16,
    value: u16,
}

/// The places in any text, in the order of the keys.
pub(crate) struct Sparse {
    slots: Box<[Slot]>,
    /// The keys that the text spells with escapes, one after the other, in plain. Positions in it go on from where the text
    /// ends.
    unescaped: Box<str>,
}

impl Parsed {
    /// The object that `text` is. Of a key that occurs twice, the last value counts.
    pub(super) fn read(text: Bytes) -> Result<Self, MalformedJson> {
        let (slots, unescaped) = parse::object(&text, 0)?;
        let places = match Dense::of(&text, 0, &slots, &unescaped) {
            Some(dense) => Places::Dense(dense),
            None => Places::Sparse(Box::new(Sparse::of(&text, slots, unescaped))),
        };
        Ok(Self { text, places })
    }

    pub(super) fn object(&self) -> Object<'_> {
        match &self.places {
            Places::Dense(dense) => Object::Dense { text: &self.text, places: &dense.0 },
            Places::Sparse(sparse) => Object::Sparse { text: &self.text, places: sparse },
        }
    }
}

impl Dense {
    /// The places in what is in `text` from `start` on, if it is a text of this kind.
    pub(crate) fn read(text: &[u8], start: usize) -> Option<Self> {
        if text.len() > usize::from(u16::MAX) {
            return None;
        }
        let (slots, unescaped) = parse::object(text, start).ok()?;
        Self::of(text, start, &slots, &unescaped)
    }

    fn of(text: &[u8], start: usize, slots: &[Slot], unescaped: &str) -> Option<Self> {
        /// `{"` and `,"`, after which there is a key; `":`, after which there is a value.
        const MARKS: usize = 2;
        if text.len() > usize::from(u16::MAX) || !unescaped.is_empty() {
            return None;
        }
        let (mut key_at, mut last_key) = (start + MARKS, None);
        let mut places = Vec::with_capacity(slots.len());
        for slot in slots {
            let (key, value) = (slot.key(), slot.value());
            let spelled = text.get(key.clone());
            if key.start != key_at || value.start != key.end + MARKS || last_key >= spelled {
                return None;
            }
            (key_at, last_key) = (value.end + MARKS, spelled);
            places
                .push(Place { key: u16::try_from(key.start).ok()?, value: u16::try_from(value.start).ok()? });
        }
        // Behind the last value there is a brace only; with no value at all, `key_at` is where the text ends.
        let end = if slots.is_empty() { key_at } else { key_at - 1 };
        (end == text.len()).then(|| Self(places.into()))
    }

    pub(crate) fn object<'a>(&'a self, text: &'a [u8]) -> Object<'a> {
        Object::Dense { text, places: &self.0 }
    }
}

impl Sparse {
    fn of(text: &[u8], mut slots: Vec<Slot>, unescaped: String) -> Self {
        let key = |slot: &Slot| key_at(text, &unescaped, slot.key());
        if !slots.is_sorted_by(|a, b| key(a) < key(b)) {
            // Of equal keys the last comes first now, which is the one that is kept.
            slots.reverse();
            slots.sort_by(|a, b| key(a).cmp(key(b)));
            slots.dedup_by(|a, b| key(a) == key(b));
        }
        Self { slots: slots.into(), unescaped: unescaped.into() }
    }
}

/// The key that is at `place` in a text, or behind it.
fn key_at<'a>(text: &'a [u8], unescaped: &'a str, place: Range<usize>) -> &'a [u8] {
    let key = match place.start.checked_sub(text.len()) {
        None => text.get(place),
        Some(start) => unescaped.as_bytes().get(start..start + place.len()),
    };
    key.unwrap_or_default()
}

/// An object to be read, wherever its parts are.
#[derive(Clone, Copy)]
pub(crate) enum Object<'a> {
    Dense { text: &'a [u8], places: &'a [Place] },
    Sparse { text: &'a [u8], places: &'a Sparse },
}

impl<'a> Object<'a> {
    pub(crate) const EMPTY: Self = Self::Dense { text: b"{}", places: &[] };

    /// Its own text, as it was read.
    pub(super) fn json(self) -> &'a [u8] {
        match self {
            Self::Sparse { text, .. } => text,
            Self::Dense { text, places } => {
                let content = places.first().map_or(text.len(), |first| first.key.into());
                text.get(content - 2..).unwrap_or_default()
            }
        }
    }

    pub(super) fn get(self, key: &str) -> Option<&'a [u8]> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let (found, value) = self.at(middle)?;
            match found.cmp(key.as_bytes()) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(value),
            }
        }
        None
    }

    /// Keys and values, in the order of the keys.
    pub(super) fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        (0..self.len()).map_while(move |number| self.at(number))
    }

    const fn len(self) -> usize {
        match self {
            Self::Dense { places, .. } => places.len(),
            Self::Sparse { places, .. } => places.slots.len(),
        }
    }

    fn at(self, number: usize) -> Option<(&'a [u8], &'a [u8])> {
        match self {
            Self::Dense { text, places } => {
                let place = places.get(number)?;
                let (key, value) = (usize::from(place.key), usize::from(place.value));
                let end = places.get(number + 1).map_or(text.len() - 1, |next| usize::from(next.key) - 2);
                Some((text.get(key..value - 2)?, text.get(value..end)?))
            }
            Self::Sparse { text, places } => {
                let slot = places.slots.get(number)?;
                Some((key_at(text, &places.unescaped, slot.key()), text.get(slot.value())?))
            }
        }
    }
}
