//! A parsed JSON object: its text, and the places of its keys and values in it. A cache holds the places for
//! every session, so they are small.

use std::cmp::Ordering;
use std::ops::Range;
use std::panic::{RefUnwindSafe, UnwindSafe};

use bytes::Bytes;

use super::error::MalformedJson;
use super::parse::{self, Slot};

/// The owner of a parsed object: a text of its own, or a record with a payload that contains it.
pub(crate) trait Source: Send + Sync + UnwindSafe + RefUnwindSafe + 'static {
    fn object(&self) -> Object<'_>;
}

/// An object with a text of its own.
pub(super) struct Parsed {
    text: Bytes,
    places: Places,
}

enum Places {
    Dense(Dense),
    Sparse(Box<Sparse>),
}

/// The places in a text of the form that this crate writes. There, the end of one part follows from the
/// beginning of the next: the keys are in order, unique and spelled without escapes; nothing is between the
/// tokens; the object extends to the end of the text; and the text is short enough for places of two bytes.
#[derive(Clone)]
pub(crate) struct Dense(Box<[Place]>);

/// The places at which a key and its value begin.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    key: u16,
    value: u16,
}

/// The places in any text, in the order of the keys.
pub(crate) struct Sparse {
    slots: Box<[Slot]>,
    /// The keys that the text spells with escapes, unescaped, one after the other. Positions in it continue
    /// from the end of the text.
    unescaped: Box<str>,
}

impl Parsed {
    /// Parses `text` as an object. If a key occurs twice, its last value counts.
    pub(super) fn read(text: Bytes) -> Result<Self, MalformedJson> {
        let (slots, unescaped) = parse::object(&text, 0)?;
        let places = match Dense::of(&text, 0, &slots, &unescaped) {
            Some(dense) => Places::Dense(dense),
            None => Places::Sparse(Box::new(Sparse::of(&text, slots, unescaped))),
        };
        Ok(Self { text, places })
    }
}

impl Source for Parsed {
    fn object(&self) -> Object<'_> {
        match &self.places {
            Places::Dense(dense) => Object::Dense { text: &self.text, places: &dense.0 },
            Places::Sparse(sparse) => Object::Sparse { text: &self.text, places: sparse },
        }
    }
}

impl Dense {
    /// Finds the places in `text` from `start` on. Returns `None` if the text is not of this form.
    pub(crate) fn read(text: &[u8], start: usize) -> Option<Self> {
        if text.len() > usize::from(u16::MAX) {
            return None;
        }
        let (slots, unescaped) = parse::object(text, start).ok()?;
        Self::of(text, start, &slots, &unescaped)
    }

    fn of(text: &[u8], start: usize, slots: &[Slot], unescaped: &str) -> Option<Self> {
        /// The length of `{"` and `,"`, which a key follows, and of `":`, which a value follows.
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
        // Only a brace follows the last value; without values, the text ends at `key_at`.
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
            // Reversed, the last one of equal keys comes first, and `dedup_by` keeps that.
            slots.reverse();
            slots.sort_by(|a, b| key(a).cmp(key(b)));
            slots.dedup_by(|a, b| key(a) == key(b));
        }
        Self { slots: slots.into(), unescaped: unescaped.into() }
    }
}

/// Returns the key at `place` in a text, or behind it.
fn key_at<'a>(text: &'a [u8], unescaped: &'a str, place: Range<usize>) -> &'a [u8] {
    let key = match place.start.checked_sub(text.len()) {
        None => text.get(place),
        Some(start) => unescaped.as_bytes().get(start..start + place.len()),
    };
    key.unwrap_or_default()
}

/// A view of an object, wherever its parts are.
#[derive(Clone, Copy)]
pub(crate) enum Object<'a> {
    Dense { text: &'a [u8], places: &'a [Place] },
    Sparse { text: &'a [u8], places: &'a Sparse },
}

impl<'a> Object<'a> {
    pub(crate) const EMPTY: Self = Self::Dense { text: b"{}", places: &[] };

    /// Returns the object's own text, as it was read.
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

    /// Iterates over keys and values, in the order of the keys.
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
