use std::fmt;

use cookie::Cookie;
#[cfg(any(feature = "private-cookies", feature = "signed-cookies"))]
use cookie::{CookieJar, Key};
use session_core::SessionKey;

/// The protection of a cookie's value, beyond the fact that the value is a random key, which cannot be guessed.
#[derive(Clone)]
pub(super) enum Seal {
    None,
    #[cfg(feature = "signed-cookies")]
    Signed(Vec<Key>),
    #[cfg(feature = "private-cookies")]
    Private(Vec<Key>),
}

impl Seal {
    pub(super) fn lacks_keys(&self) -> bool {
        match self {
            Self::None => false,
            #[cfg(feature = "signed-cookies")]
            Self::Signed(keys) => keys.is_empty(),
            #[cfg(feature = "private-cookies")]
            Self::Private(keys) => keys.is_empty(),
        }
    }

    /// Returns the session key in the value of a cookie, or `None` if there is none, or none of the keys has sealed it.
    #[cfg_attr(
        not(any(feature = "private-cookies", feature = "signed-cookies")),
        allow(unused_variables, reason = "the name is part of what is sealed")
    )]
    pub(super) fn open(&self, name: &str, value: &[u8]) -> Option<SessionKey> {
        let value = std::str::from_utf8(value).ok()?;
        match self {
            Self::None => SessionKey::parse(value).ok(),
            #[cfg(feature = "signed-cookies")]
            Self::Signed(keys) => keys.iter().find_map(|key| {
                let cookie = Cookie::new(name.to_owned(), value.to_owned());
                SessionKey::parse(CookieJar::new().signed(key).verify(cookie)?.value()).ok()
            }),
            #[cfg(feature = "private-cookies")]
            Self::Private(keys) => keys.iter().find_map(|key| {
                let cookie = Cookie::new(name.to_owned(), value.to_owned());
                SessionKey::parse(CookieJar::new().private(key).decrypt(cookie)?.value()).ok()
            }),
        }
    }

    /// Returns `cookie` with its value sealed by the first key.
    pub(super) fn seal(&self, cookie: Cookie<'static>) -> Option<Cookie<'static>> {
        match self {
            Self::None => Some(cookie),
            #[cfg(feature = "signed-cookies")]
            Self::Signed(keys) => {
                let (mut jar, name) = (CookieJar::new(), cookie.name().to_owned());
                jar.signed_mut(keys.first()?).add(cookie);
                jar.get(&name).cloned()
            }
            #[cfg(feature = "private-cookies")]
            Self::Private(keys) => {
                let (mut jar, name) = (CookieJar::new(), cookie.name().to_owned());
                jar.private_mut(keys.first()?).add(cookie);
                jar.get(&name).cloned()
            }
        }
    }
}

/// Shows no key.
impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            #[cfg(feature = "signed-cookies")]
            Self::Signed(_) => "Signed",
            #[cfg(feature = "private-cookies")]
            Self::Private(_) => "Private",
        })
    }
}
