use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use session_core::SessionKey;

/// The way in which the session key travels: [in a cookie](super::SessionCookie), [in a header](super::SessionHeader), or in one
/// of your own.
///
/// # Behavior
///
/// - `read` gets text that any client can send. It offers what it finds to [`PresentedKeys`], which bound the work, and does no
///   I/O.
/// - `write` and `remove` change headers of a response whose client gets a key, may keep its key for longer, or has none any more.
///   They leave the headers of other programs alone, and mark a value that holds the key as sensitive.
///
/// ```
/// use std::time::Duration;
/// use http::{HeaderMap, HeaderName, HeaderValue};
/// use session_cached_db::SessionKey;
/// use session_cached_db::tower::{PresentedKeys, Transport};
///
/// /// `X-Session: KEY` from the client, and `X-Session: KEY; max-age=SECONDS` to it, or without an age until the client ends.
/// #[derive(Debug)]
/// struct WithLifetime;
///
/// static X_SESSION: [HeaderName; 1] = [HeaderName::from_static("x-session")];
///
/// impl Transport for WithLifetime {
///     fn request_headers(&self) -> &[HeaderName] {
///         &X_SESSION
///     }
///     fn response_headers(&self) -> &[HeaderName] {
///         &X_SESSION
///     }
///     fn read(&self, request: &HeaderMap, keys: &mut PresentedKeys) {
///         for value in request.get_all(&X_SESSION[0]) {
///             keys.offer(value.as_bytes());
///         }
///     }
///     fn write(&self, response: &mut HeaderMap, key: &SessionKey, max_age: Option<Duration>) {
///         // Rounded up, so that no key ends before its session.
///         let seconds = |age: Duration| age.as_secs().saturating_add(u64::from(age.subsec_nanos() > 0));
///         let lifetime = max_age.map(|age| format!("; max-age={}", seconds(age))).unwrap_or_default();
///         if let Ok(mut value) = HeaderValue::try_from(format!("{}{lifetime}", key.expose())) {
///             value.set_sensitive(true);
///             response.insert(&X_SESSION[0], value);
///         }
///     }
///     fn remove(&self, response: &mut HeaderMap) {
///         response.insert(&X_SESSION[0], HeaderValue::from_static(""));
///     }
/// }
/// ```
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Returns the names of the request headers from which [`read`](Self::read) takes keys. The layer names them in `Vary`.
    fn request_headers(&self) -> &[HeaderName];

    /// Returns the names of the response headers that [`write`](Self::write) and [`remove`](Self::remove) set, besides
    /// `Set-Cookie`. A layer that [replaces](super::SessionFailure::replace) the response keeps them. None by default.
    fn response_headers(&self) -> &[HeaderName] {
        &[]
    }

    /// Offers each key that the request presents to `keys`. Of several, the first one that opens a session with a subject counts;
    /// [`SessionLayer`](super::SessionLayer) says which one otherwise.
    fn read(&self, request: &HeaderMap, keys: &mut PresentedKeys);

    /// Makes the client present `key` from now on: for `max_age`, or, if that is `None`, until the browser closes.
    fn write(&self, response: &mut HeaderMap, key: &SessionKey, max_age: Option<Duration>);

    /// Makes the client forget its key.
    fn remove(&self, response: &mut HeaderMap);

    /// Checks the settings. The layer calls this once, before it uses the transport. Accepts all by default.
    ///
    /// # Errors
    ///
    /// [`InvalidTransport`] when clients would not take what [`write`](Self::write) sends.
    fn check(&self) -> Result<(), InvalidTransport> {
        Ok(())
    }
}

/// An error in the settings of a [`Transport`]: clients would not take what it sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transport of the session key is invalid: {0}")]
pub struct InvalidTransport(Cow<'static, str>);

impl InvalidTransport {
    /// Returns an error with this reason.
    #[must_use]
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}

/// The keys that a request presents, in the order in which they were offered.
///
/// A client may present several: a browser sends a cookie for each path and domain that it was set for. At most 16 are looked
/// at, and at most four of them are kept, so a request cannot make the store search for any number of sessions.
///
/// `Debug` does not show them.
#[derive(Clone, Default)]
pub struct PresentedKeys {
    keys: Vec<SessionKey>,
    offers: u8,
    rejected: u8,
}

impl PresentedKeys {
    const MAX_KEYS: usize = 4;
    const MAX_OFFERS: u8 = 16;

    /// Keeps the key that `text` is, or counts the text as rejected. Empty text counts as no key, and as nothing rejected.
    pub fn offer(&mut self, text: &[u8]) {
        self.offer_with(text, |text| SessionKey::parse(std::str::from_utf8(text).ok()?).ok());
    }

    /// Returns `true` if further offers would be ignored.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.offers == Self::MAX_OFFERS || self.keys.len() == Self::MAX_KEYS
    }

    /// Like [`offer`](Self::offer), for text of which `open` makes a key.
    pub(super) fn offer_with(&mut self, text: &[u8], open: impl FnOnce(&[u8]) -> Option<SessionKey>) {
        if text.is_empty() || self.is_full() {
            return;
        }
        self.offers = self.offers.saturating_add(1);
        match open(text) {
            Some(key) if self.keys.contains(&key) => {}
            Some(key) => self.keys.push(key),
            None => self.rejected = self.rejected.saturating_add(1),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SessionKey> {
        self.keys.iter()
    }

    /// Returns the number of texts that are no key, or that no key of this node has sealed.
    pub(super) const fn rejected(&self) -> u8 {
        self.rejected
    }
}

impl fmt::Debug for PresentedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresentedKeys")
            .field("count", &self.keys.len())
            .field("rejected", &self.rejected)
            .finish_non_exhaustive()
    }
}
