use std::fmt;
use std::time::Duration;

use cookie::{Cookie, SameSite, time};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use session_core::SessionKey;

#[cfg(any(feature = "private-cookies", feature = "signed-cookies"))]
use cookie::Key;

use super::seal::Seal;
use super::transport::{InvalidTransport, PresentedKeys, Transport};

/// The beginnings of names that browsers treat in their own way, in any case, with what each demands beside `Secure`.
const PREFIXES: [Prefix; 4] = [
    Prefix { text: "__Host-Http-", is_bound_to_host: true, is_http_only: true },
    Prefix { text: "__Host-", is_bound_to_host: true, is_http_only: false },
    Prefix { text: "__Http-", is_bound_to_host: false, is_http_only: true },
    Prefix { text: "__Secure-", is_bound_to_host: false, is_http_only: false },
];

struct Prefix {
    text: &'static str,
    /// Demands the path `/` and no domain.
    is_bound_to_host: bool,
    is_http_only: bool,
}

/// The longest name and value together, in bytes.
const MAX_NAME_AND_VALUE: usize = 4096;
/// The longest value of an attribute, in bytes. Browsers ignore an attribute with a longer one.
const MAX_ATTRIBUTE: usize = 1024;
/// The longest name of a host, and the longest part of one between dots, in bytes.
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;
/// Browsers keep no cookie longer than that.
const MAX_AGE: Duration = Duration::from_secs(400 * 24 * 60 * 60);

static COOKIE: [HeaderName; 1] = [header::COOKIE];
static SET_COOKIE: [HeaderName; 1] = [header::SET_COOKIE];

/// The name and the attributes of the session cookie.
///
/// The default is `__Host-session`: `Secure`, `HttpOnly`, `SameSite=Lax`, `Path=/`, and no `Domain`. Browsers
/// refuse a cookie whose name begins with `__Host-` unless it is `Secure` and has `Path=/` and no `Domain`,
/// so neither another subdomain nor an unencrypted connection can plant one (as OWASP and NIST 800-63B
/// advise). Browsers that know the prefix `__Host-Http-` also refuse a cookie that a script has set; others treat such a name as
/// one with `__Host-`.
///
/// The session itself decides how long the client keeps the cookie: see
/// [`Session::set_expiry`](crate::Session::set_expiry). Browsers keep no cookie longer than 400 days, so the cookie says no more
/// than that; it is sent again when the use of the session is recorded.
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
    is_partitioned: bool,
    is_plain_http: bool,
    seal: Seal,
}

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
            is_partitioned: false,
            is_plain_http: false,
            seal: Seal::None,
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
    ///
    /// A form that another site posts here carries no `Lax` cookie: the answer of a login at Apple, or of one by SAML, comes
    /// without the session in which the login began. Do not set the session cookie to [`SameSite::None`] for it, which would
    /// give every forged form a session. Keep the state of the login in a short session of its own, with a second layer:
    ///
    /// ```
    /// # #[cfg(all(feature = "moka", feature = "sqlite"))]
    /// # mod example {
    /// use session_cached_db::tower::{InvalidTransport, SameSite, SessionCookie, SessionLayer};
    /// use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
    ///
    /// /// Marks the session of a login that is going on: `SessionHandle<Login>`.
    /// pub enum Login {}
    ///
    /// # pub
    /// fn layers(
    ///     store: CachedDb<MokaCache, SqlitePersistence>,
    /// ) -> Result<(SessionLayer, SessionLayer<Login>), InvalidTransport> {
    ///     let cookie = SessionCookie::new("__Host-Http-login").same_site(SameSite::None);
    ///     let login = SessionLayer::new(store.clone()).marker::<Login>().with_cookie(cookie)?;
    ///     Ok((SessionLayer::new(store), login))
    /// }
    /// # }
    /// ```
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

    /// Sets whether browsers keep the cookie apart for each site that embeds this one (`Partitioned`, also called CHIPS).
    /// Defaults to `false`. For a page in a frame of other sites, together with [`SameSite::None`]: there, browsers that block
    /// cookies of third parties keep no other.
    pub fn partitioned(mut self, is_partitioned: bool) -> Self {
        self.is_partitioned = is_partitioned;
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
        match prefix_of(&self.name) {
            Some(prefix) if self.is_plain_http => self.name.get(prefix.text.len()..).unwrap_or_default(),
            _ => &self.name,
        }
    }

    /// Returns what browsers would not take, or not take as it is.
    fn fault(&self) -> Option<&'static str> {
        let is_token = |c: char| c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?={}".contains(c);
        let is_value = |text: &str| text.chars().all(|c| matches!(c, ' '..='~') && c != ';');
        let domain = self.domain.as_deref();
        if self.name().is_empty() || !self.name().chars().all(is_token) {
            Some(
                "the cookie's name must be a token: letters, digits and some punctuation, at least one of them",
            )
        } else if !self.path.starts_with('/') || !is_value(&self.path) || self.path.len() > MAX_ATTRIBUTE {
            Some("the cookie's path must begin with a slash, hold no semicolon and have at most 1024 bytes")
        } else if domain.is_some_and(|domain| !is_host(domain)) {
            Some(
                "the cookie's domain must be the name of a host in ASCII, without a port and a dot at its end",
            )
        } else if self.same_site == SameSite::None && !self.is_secure() {
            Some("same_site(None) demands secure(true)")
        } else if self.is_partitioned && !self.is_secure() {
            Some("partitioned(true) demands secure(true)")
        } else if self.seal.lacks_keys() {
            Some("a signed or private cookie needs at least one key")
        } else if self.longest() > MAX_NAME_AND_VALUE {
            Some("the cookie's name and value together must have at most 4096 bytes")
        } else {
            self.fault_of_prefix()
        }
    }

    fn fault_of_prefix(&self) -> Option<&'static str> {
        let prefix = prefix_of(self.name())?;
        if !self.is_secure() {
            Some("a name that begins with __Secure-, __Host- or __Http- demands secure(true)")
        } else if prefix.is_bound_to_host && !(self.path == "/" && self.domain.is_none()) {
            Some("a name that begins with __Host- demands the path / and no domain")
        } else if prefix.is_http_only && !self.is_http_only {
            Some("a name that begins with __Http- or __Host-Http- demands http_only(true)")
        } else {
            None
        }
    }

    /// Returns the length of the name with the longest value that the cookie can get.
    fn longest(&self) -> usize {
        let longest_key = "k".repeat(64);
        let sealed = self.seal.seal(self.with_value(longest_key));
        sealed.map_or(0, |cookie| self.name().len().saturating_add(cookie.value().len()))
    }

    /// Returns the header that makes a client keep `key`, for `max_age` or until the browser closes.
    fn issue(&self, key: &SessionKey, max_age: Option<Duration>) -> Option<HeaderValue> {
        let mut cookie = self.seal.seal(self.with_value(key.expose().to_owned()))?;
        cookie.set_max_age(max_age.map(|age| time::Duration::seconds(seconds(age.min(MAX_AGE)))));
        header_value(&cookie)
    }

    /// Returns the header that makes a client drop the cookie.
    fn removal(&self) -> Option<HeaderValue> {
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
        cookie.set_partitioned(self.is_partitioned.then_some(true));
        cookie.set_same_site(self.same_site);
        cookie
    }

    fn is_secure(&self) -> bool {
        self.is_secure && !self.is_plain_http
    }
}

impl Transport for SessionCookie {
    fn request_headers(&self) -> &[HeaderName] {
        &COOKIE
    }

    fn response_headers(&self) -> &[HeaderName] {
        &SET_COOKIE
    }

    /// The header also holds the cookies of other programs: text in any encoding, pairs that are malformed, values in quotes.
    /// None of that hides the session cookie.
    fn read(&self, request: &HeaderMap, keys: &mut PresentedKeys) {
        let name = self.name();
        for line in request.get_all(header::COOKIE) {
            for pair in line.as_bytes().split(|byte| *byte == b';') {
                if keys.is_full() {
                    return;
                }
                if let Some(value) = value_of(pair, name) {
                    keys.offer_with(value, |value| self.seal.open(name, value));
                }
            }
        }
    }

    fn write(&self, response: &mut HeaderMap, key: &SessionKey, max_age: Option<Duration>) {
        if let Some(value) = self.issue(key, max_age) {
            response.append(header::SET_COOKIE, value);
        }
    }

    fn remove(&self, response: &mut HeaderMap) {
        if let Some(value) = self.removal() {
            response.append(header::SET_COOKIE, value);
        }
    }

    /// Refuses a cookie that browsers would not keep.
    fn check(&self) -> Result<(), InvalidTransport> {
        self.fault().map_or(Ok(()), |fault| Err(InvalidTransport::new(fault)))
    }
}

/// Returns `true` for the name of a host, or one that a dot comes before, which browsers ignore. The underscore is in no name that
/// can be registered, but in those of hosts inside of networks.
fn is_host(domain: &str) -> bool {
    let is_in_labels = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let is_label = |label: &str| (1..=MAX_LABEL).contains(&label.len()) && label.chars().all(is_in_labels);
    let name = domain.strip_prefix('.').unwrap_or(domain);
    name.len() <= MAX_HOST && name.split('.').all(is_label)
}

/// Returns the prefix of a name. Like browsers, ignores case.
fn prefix_of(name: &str) -> Option<&'static Prefix> {
    let has = |prefix: &&Prefix| {
        name.get(..prefix.text.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.text))
    };
    PREFIXES.iter().find(has)
}

/// Returns the value of a pair of the header `Cookie`, without its quotes, if the pair has this name.
fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = pair
        .trim_ascii_start()
        .strip_prefix(name.as_bytes())?
        .trim_ascii_start()
        .strip_prefix(b"=")?
        .trim_ascii();
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    Some(unquoted.unwrap_or(value))
}

/// Returns `age` in whole seconds. Rounded up, because an age of 0 removes the cookie of a session that lives.
fn seconds(age: Duration) -> i64 {
    let seconds = age.as_secs().saturating_add(u64::from(age.subsec_nanos() > 0));
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn header_value(cookie: &Cookie<'_>) -> Option<HeaderValue> {
    // Does not fail: the attributes were checked when the layer was made, and a key has only characters of
    // headers.
    let mut value = HeaderValue::from_str(&cookie.to_string()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

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
            .field("partitioned", &self.is_partitioned)
            .field("seal", &self.seal)
            .finish()
    }
}
