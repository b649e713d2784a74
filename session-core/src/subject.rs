use std::fmt;

/// The application's own id of the user whose session it is, as text. Databases that implement
/// [`SubjectIndex`](crate::SubjectIndex) index it.
///
/// Subjects are compared byte for byte. `Debug` does not show one, because it identifies a person.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Subject(Box<str>);

impl Subject {
    /// The longest subject, in bytes. Every database can index that many.
    pub const MAX_LEN: usize = 255;

    /// Reads a subject.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSubject`] if `text` is empty, has more than 255 bytes, or contains a NUL character.
    pub fn parse(text: &str) -> Result<Self, InvalidSubject> {
        if text.is_empty() || text.len() > Self::MAX_LEN || text.contains('\0') {
            return Err(InvalidSubject);
        }
        Ok(Self(text.into()))
    }

    /// Returns the subject's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subject(..)")
    }
}

/// The error for text that is no subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a subject has 1 to 255 bytes and no NUL character")]
pub struct InvalidSubject;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_overlong_and_nul_subjects_are_refused() {
        for text in ["", &"u".repeat(256), "a\0b"] {
            assert_eq!(Subject::parse(text), Err(InvalidSubject));
        }
        assert_eq!(Subject::parse("üser-42").unwrap().as_str(), "üser-42");
    }
}
