use std::fmt;
use std::time::Duration;

use cookie::{Cookie, SameSite, time};
use http::{HeaderMap, HeaderValue, header};
use session_core::SessionKey;

#[cfg(any(feature = "private-cookies", feature = "signed-cookies"))]
use cookie::{CookieJar, Key};

const HOST_PREFIX: &str = "__Host-";
const SECURE_PREFIX: &str = "__Secure-";

/// How the session cookie looks.
///
/// By default `__Host-session`: `Secure`, `HttpOnly`, `SameSite=Lax`, `Path=/`, and no `Domain`. Browsers refuse a cookie
/// of such a name unless all of that holds, so neither another subdomain nor a plain connection can plant one (OWASP's
/// and NIST 800-63B's advice).
///
/// How long the client keeps it is the session's own affair: see [`Session::set_expiry`](crate::Session::set_expiry).
///
/// ```
/// use session_cached_db::tower::SessionCookie;
///
/// let for_subdomains = SessionCookie::new("sessionid").domain("example.org");
/// let while_developing = SessionCookie::default().plain_http(cfg!(debug_assertions));
/// ```
#[derive(Clone)]
#[must_use]
pub struct SessionCookie {
    name: String,
    path: String,
    domain: Option<String>,
    same_site: SameSite,
    is_secure: bool,
    is_http_only: bool,
    is_plain_http: bool,
    seal: Seal,
}

/// What protects the value. It is a random key anyway, of which nobody can guess one.
#[derive(Clone)]
enum Seal {
    None,
    #[cfg(feature = "signed-cookies")]
    Signed(Vec<Key>),
    #[cfg(feature = "private-cookies")]
    Private(Vec<Key>),
}

/// What a request came with.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Presented {
    Nothing,
    /// A cookie of our name that is no key of ours.
    Rejected,
    Key(SessionKey),
}

impl Default for SessionCookie {
    fn default() -> Self {
        Self::new("__Host-session")
    }
}

impl SessionCookie {
    /// A cookie of that name: `Secure`, `HttpOnly`, `SameSite=Lax`, `Path=/`, no `Domain`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            path: "/".to_owned(),
            domain: None,
            same_site: SameSite::Lax,
            is_secure: true,
            is_http_only: true,
            is_plain_http: false,
            seal: Seal::None,
        }
    }

    /// The paths for which clients send it. By default `/`.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// The domain whose subdomains get it as well. By default none, so that only the very host that set it does.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Whether requests from other sites carry it. By default [`SameSite::Lax`]: only when somebody follows a link.
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Whether it is for encrypted connections only. By default so.
    pub fn secure(mut self, is_secure: bool) -> Self {
        self.is_secure = is_secure;
        self
    }

    /// Whether it is hidden from scripts. By default so.
    pub fn http_only(mut self, is_http_only: bool) -> Self {
        self.is_http_only = is_http_only;
        self
    }

    /// For development without TLS: the cookie is not `Secure`, and its name loses a prefix that demands that
    /// (`__Host-session` becomes `session`). Never in production: anybody on the way can read it then.
    pub fn plain_http(mut self, is_plain_http: bool) -> Self {
        self.is_plain_http = is_plain_http;
        self
    }

    /// Signs the value with the first of `keys`, and takes one that any of them has signed, so that a key can be replaced
    /// while the cookies of the old one are still around. A cookie that none has signed costs no I/O.
    #[cfg(feature = "signed-cookies")]
    pub fn signed(mut self, keys: impl IntoIterator<Item = Key>) -> Self {
        self.seal = Seal::Signed(keys.into_iter().collect());
        self
    }

    /// As [`signed`](Self::signed), with the value encrypted as well, so that what clients keep is not what opens their
    /// session elsewhere.
    #[cfg(feature = "private-cookies")]
    pub fn private(mut self, keys: impl IntoIterator<Item = Key>) -> Self {
        self.seal = Seal::Private(keys.into_iter().collect());
        self
    }

    /// What it is called in headers.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self.name.as_str();
        if !self.is_plain_http {
            return name;
        }
        [HOST_PREFIX, SECURE_PREFIX].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
    }

    /// Refuses what browsers would.
    pub(super) fn check(&self) -> Result<(), InvalidCookie> {
        let is_token = |c: char| c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?={}".contains(c);
        let is_value = |text: &str| text.chars().all(|c| matches!(c, ' '..='~') && c != ';');
        let is_secure = self.is_secure();
        let wrong = if self.name().is_empty() || !self.name().chars().all(is_token) {
            "its name must be a token: letters, digits and some punctuation, at least one of them"
        } else if !self.path.starts_with('/') || !is_value(&self.path) {
            "its path must begin with a slash and hold no semicolon"
        } else if self.domain.as_deref().is_some_and(|domain| domain.is_empty() || !is_value(domain)) {
            "its domain must not be empty or hold a semicolon"
        } else if self.has_prefix(SECURE_PREFIX) && !is_secure {
            "a name that begins with __Secure- demands secure(true)"
        } else if self.has_prefix(HOST_PREFIX) && !(is_secure && self.path == "/" && self.domain.is_none()) {
            "a name that begins with __Host- demands secure(true), the path / and no domain"
        } else if self.same_site == SameSite::None && !is_secure {
            "same_site(None) demands secure(true)"
        } else if self.lacks_keys() {
            "a signed or private cookie needs at least one key"
        } else {
            return Ok(());
        };
        Err(InvalidCookie(wrong))
    }

    /// What the headers of a request hold. Asks nobody.
    pub(super) fn read(&self, headers: &HeaderMap) -> Presented {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut cookies = cookies.flat_map(Cookie::split_parse).filter_map(Result::ok);
        let Some(cookie) = cookies.find(|cookie| cookie.name() == self.name()) else {
            return Presented::Nothing;
        };
        match self.open(&cookie).and_then(|value| SessionKey::parse(&value).ok()) {
            Some(key) => Presented::Key(key),
            None => {
                tracing::warn!(target: "session_cached_db", event = "cookie_rejected",
                    "a session cookie is malformed or was not made here; it opens nothing");
                Presented::Rejected
            }
        }
    }

    /// The header that lets a client keep `key`, for `max_age` or until the browser closes.
    pub(super) fn issue(&self, key: &SessionKey, max_age: Option<Duration>) -> Option<HeaderValue> {
        let mut cookie = self.sealed(self.with_value(key.expose().to_owned()))?;
        cookie.set_max_age(max_age.map(|age| time::Duration::seconds(seconds(age))));
        header_value(&cookie)
    }

    /// The header that makes a client forget the cookie.
    pub(super) fn removal(&self) -> Option<HeaderValue> {
        let mut cookie = self.with_value(String::new());
        cookie.make_removal();
        header_value(&cookie)
    }

    fn with_value(&self, value: String) -> Cookie<'static> {
        let mut cookie = Cookie::new(self.name().to_owned(), value);
        cookie.set_path(self.path.clone());
        if let Some(domain) = &self.domain {
            cookie.set_domain(domain.clone());
        }
        // What is false has no attribute.
        cookie.set_secure(self.is_secure().then_some(true));
        cookie.set_http_only(self.is_http_only.then_some(true));
        cookie.set_same_site(self.same_site);
        cookie
    }

    fn is_secure(&self) -> bool {
        self.is_secure && !self.is_plain_http
    }

    /// As browsers compare it: without regard to case.
    fn has_prefix(&self, prefix: &str) -> bool {
        self.name().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    }

    fn lacks_keys(&self) -> bool {
        match &self.seal {
            Seal::None => false,
            #[cfg(feature = "signed-cookies")]
            Seal::Signed(keys) => keys.is_empty(),
            #[cfg(feature = "private-cookies")]
            Seal::Private(keys) => keys.is_empty(),
        }
    }

    /// The value under the seal, if that is ours.
    fn open(&self, cookie: &Cookie<'_>) -> Option<String> {
        match &self.seal {
            Seal::None => Some(cookie.value().to_owned()),
            #[cfg(feature = "signed-cookies")]
            Seal::Signed(keys) => keys.iter().find_map(|key| {
                let jar = CookieJar::new();
                Some(jar.signed(key).verify(cookie.clone().into_owned())?.value().to_owned())
            }),
            #[cfg(feature = "private-cookies")]
            Seal::Private(keys) => keys.iter().find_map(|key| {
                let jar = CookieJar::new();
                Some(jar.private(key).decrypt(cookie.clone().into_owned())?.value().to_owned())
            }),
        }
    }

    fn sealed(&self, cookie: Cookie<'static>) -> Option<Cookie<'static>> {
        match &self.seal {
            Seal::None => Some(cookie),
            #[cfg(feature = "signed-cookies")]
            Seal::Signed(keys) => {
                let mut jar = CookieJar::new();
                jar.signed_mut(keys.first()?).add(cookie);
                jar.get(self.name()).cloned()
            }
            #[cfg(feature = "private-cookies")]
            Seal::Private(keys) => {
                let mut jar = CookieJar::new();
                jar.private_mut(keys.first()?).add(cookie);
                jar.get(self.name()).cloned()
            }
        }
    }
}

fn seconds(age: Duration) -> i64 {
    i64::try_from(age.as_secs()).unwrap_or(i64::MAX)
}

fn header_value(cookie: &Cookie<'_>) -> Option<HeaderValue> {
    // Attributes were checked when the layer was made, and a key has no character that could be wrong.
    let mut value = HeaderValue::from_str(&cookie.to_string()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Why a [`SessionCookie`] cannot be used: browsers would refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session cookie is invalid: {0}")]
pub struct InvalidCookie(&'static str);

/// Shows no key.
impl fmt::Debug for SessionCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionCookie")
            .field("name", &self.name())
            .field("path", &self.path)
            .field("domain", &self.domain)
            .field("same_site", &self.same_site)
            .field("secure", &self.is_secure())
            .field("http_only", &self.is_http_only)
            .field("seal", &self.seal)
            .finish()
    }
}

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
