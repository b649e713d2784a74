use std::hash::{Hash, Hasher};

use moka::Equivalent;
use session_core::StoredKey;

/// The key of a value: a [`StoredKey`] without the room for more characters than it has. Every session has
/// one, and every hit reads it, so it should take few cache lines.
pub(super) enum Key {
    /// Every hashed key is short, unless a prefix makes it long.
    Short {
        len: u8,
        bytes: [u8; Self::SHORT],
    },
    Long(Box<StoredKey>),
}

impl Key {
    const SHORT: usize = 46;

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(key) => key.as_bytes(),
        }
    }
}

impl From<&StoredKey> for Key {
    fn from(key: &StoredKey) -> Self {
        let mut bytes = [0; Self::SHORT];
        let text = key.as_bytes();
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(slots), Ok(len)) => {
                slots.copy_from_slice(text);
                Self::Short { len, bytes }
            }
            _ => Self::Long(Box::new(*key)),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key {}

/// Hashes like the [`StoredKey`], by which values are looked up.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

impl Equivalent<Key> for StoredKey {
    fn equivalent(&self, key: &Key) -> bool {
        self.as_bytes() == key.as_bytes()
    }
}
