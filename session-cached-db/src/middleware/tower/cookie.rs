use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cookie::{Cookie, SameSite, time};
use http::{HeaderMap, HeaderValue, header};
use session_core::SessionKey;

#[cfg(any(feature = "private-cookies", feature = "signed-cookies"))]
use cookie::{CookieJar, Key};

const HOST_PREFIX: &str = "__Host-";
const SECURE_PREFIX: &str = "__Secure-";

/// The name and the attributes of the session cookie.
///
/// The default is `__Host-session`: `Secure`, `HttpOnly`, `SameSite=Lax`, `Path=/`, and no `Domain`. Browsers
/// refuse a cookie whose name begins with `__Host-` unless it is `Secure` and has `Path=/` and no `Domain`,
/// so neither another subdomain nor an unencrypted connection can plant one (as OWASP and NIST 800-63B
/// advise).
///
/// The session itself decides how long the client keeps the cookie: see
/// [`Session::set_expiry`](crate::Session::set_expiry).
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
    /// The number of cookies that were rejected.
    rejected: Arc<AtomicU64>,
}

/// The protection of the cookie's value, beyond the fact that the value is a random key, which cannot be
/// guessed.
#[derive(Clone)]
enum Seal {
    None,
    #[cfg(feature = "signed-cookies")]
    Signed(Vec<Key>),
    #[cfg(feature = "private-cookies")]
    Private(Vec<Key>),
}

/// The session cookies of a request, in the order in which the client sent them.
///
/// A client may send several: one was set for another path or domain, or is left over. Then the first one that opens a session
/// counts.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Presented {
    pub(super) keys: Vec<SessionKey>,
}

/// The number of cookies that are tried. A browser sends one for each path and domain that it was set for.
const MAX_COOKIES: usize = 4;

impl Default for SessionCookie {
    fn default() -> Self {
        Self::new("__Host-session")
    }
}

impl SessionCookie {
    /// Returns a cookie with this name: `Secure`, `HttpOnly`, `SameSite=Lax`, `Path=/`, no `Domain`.
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
            rejected: Arc::default(),
        }
    }

    /// Sets the path below which clients send the cookie. Defaults to `/`.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Sets a domain, to whose subdomains clients send the cookie as well. Defaults to none: clients send it
    /// only to the host that set it.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Sets whether requests from other sites carry the cookie. Defaults to [`SameSite::Lax`]: only when the
    /// user follows a link.
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Sets whether clients send the cookie over encrypted connections only. Defaults to `true`.
    pub fn secure(mut self, is_secure: bool) -> Self {
        self.is_secure = is_secure;
        self
    }

    /// Sets whether the cookie is hidden from scripts. Defaults to `true`.
    pub fn http_only(mut self, is_http_only: bool) -> Self {
        self.is_http_only = is_http_only;
        self
    }

    /// Sets whether the cookie is for development without TLS. It is then not `Secure`, and its name loses a
    /// prefix that demands that (`__Host-session` becomes `session`). Defaults to `false`.
    ///
    /// Never set it in production: everyone between the client and the server can then read the cookie.
    pub fn plain_http(mut self, is_plain_http: bool) -> Self {
        self.is_plain_http = is_plain_http;
        self
    }

    /// Signs the value with the first of `keys`. A cookie is accepted if any of `keys` has signed it, so that
    /// a key can be replaced while clients still hold cookies of the old one. A cookie that none of them has
    /// signed costs no I/O.
    #[cfg(feature = "signed-cookies")]
    pub fn signed(mut self, keys: impl IntoIterator<Item = Key>) -> Self {
        self.seal = Seal::Signed(keys.into_iter().collect());
        self
    }

    /// Encrypts the value and authenticates it, with keys as for [`signed`](Self::signed). A client then does
    /// not hold the session key itself.
    #[cfg(feature = "private-cookies")]
    pub fn private(mut self, keys: impl IntoIterator<Item = Key>) -> Self {
        self.seal = Seal::Private(keys.into_iter().collect());
        self
    }

    /// Returns the cookie's name in headers.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self.name.as_str();
        if !self.is_plain_http {
            return name;
        }
        [HOST_PREFIX, SECURE_PREFIX].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
    }

    /// Refuses a cookie that browsers would refuse.
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

    /// Returns the session cookies in the headers of a request. Does no I/O.
    ///
    /// The header also holds the cookies of other programs: text in any encoding, pairs that are malformed, values in quotes.
    /// None of that hides the session cookie.
    pub(super) fn read(&self, headers: &HeaderMap) -> Presented {
        let mut presented = Presented::default();
        for line in headers.get_all(header::COOKIE) {
            let line = String::from_utf8_lossy(line.as_bytes());
            let cookies = Cookie::split_parse(&*line).filter_map(Result::ok);
            for cookie in cookies.filter(|cookie| cookie.name() == self.name()) {
                let key = self.open(&cookie).and_then(|value| SessionKey::parse(&value).ok());
                match key {
                    Some(key) if presented.keys.contains(&key) => {}
                    Some(key) => presented.keys.push(key),
                    None => self.note_rejected(),
                }
                if presented.keys.len() == MAX_COOKIES {
                    return presented;
                }
            }
        }
        presented
    }

    /// Warns of a rejected cookie at the first one, the second, the fourth and so on: a node without the right key shows, and
    /// a client that sends as many as it likes does not fill the log.
    fn note_rejected(&self) {
        let count = self.rejected.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count.is_power_of_two() {
            tracing::warn!(target: "session_cached_db", event = "cookie_rejected", count,
                "session cookies are malformed or were not made with the keys of this node; they open no session");
        }
    }

    /// Returns the header that makes a client keep `key`, for `max_age` or until the browser closes.
    pub(super) fn issue(&self, key: &SessionKey, max_age: Option<Duration>) -> Option<HeaderValue> {
        let mut cookie = self.sealed(self.with_value(key.expose().to_owned()))?;
        cookie.set_max_age(max_age.map(|age| time::Duration::seconds(seconds(age))));
        header_value(&cookie)
    }

    /// Returns the header that makes a client drop the cookie.
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
        // An attribute that is off is left out.
        cookie.set_secure(self.is_secure().then_some(true));
        cookie.set_http_only(self.is_http_only.then_some(true));
        cookie.set_same_site(self.same_site);
        cookie
    }

    fn is_secure(&self) -> bool {
        self.is_secure && !self.is_plain_http
    }

    /// Returns `true` if the name begins with `prefix`. Like browsers, ignores case.
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

    /// Returns the value of a cookie, or `None` if none of the keys has signed or encrypted it.
    fn open(&self, cookie: &Cookie<'_>) -> Option<String> {
        match &self.seal {
            Seal::None => Some(cookie.value_trimmed().to_owned()),
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
    // Does not fail: the attributes were checked when the layer was made, and a key has only characters of
    // headers.
    let mut value = HeaderValue::from_str(&cookie.to_string()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// An error in the settings of a [`SessionCookie`]: browsers would refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session cookie is invalid: {0}")]
pub struct InvalidCookie(&'static str);

/// Shows no signing or encryption key.
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
