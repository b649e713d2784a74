use std::time::Duration;

use crate::Timestamp;

/// The rule by which a session ends.
///
/// With any of them, a store may also cap a session's whole life (`absolute_timeout`), counted from its
/// creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// The client drops the cookie when the browser closes, and the server ends the session after the store's
    /// idle timeout.
    BrowserSession,
    /// The session ends this long after the last save or touch. For a fixed end, see [`Expiry::fixed`].
    After(Duration),
    /// The session ends at this instant, even if it is used until then.
    At(Timestamp),
}

impl Expiry {
    /// Creates a fixed end, `duration` after `now`, which saving and touching do not move.
    #[must_use]
    pub fn fixed(duration: Duration, now: Timestamp) -> Self {
        Self::At(now + duration)
    }

    /// Returns the instant at which a session that was last used at `now` ends, where `idle_timeout` is the
    /// store's.
    #[must_use]
    pub fn instant(self, now: Timestamp, idle_timeout: Duration) -> Timestamp {
        match self {
            Self::BrowserSession => now + idle_timeout,
            Self::After(duration) => now + duration,
            Self::At(instant) => instant,
        }
    }

    /// Returns `true` if using the session moves its end.
    #[must_use]
    pub const fn is_sliding(self) -> bool {
        !matches!(self, Self::At(_))
    }

    /// Returns the form in which a session's own expiry is kept beside its data, as JSON: `0` for a browser
    /// session, a number of seconds, or `{"at":micros}`. Zero seconds are written as a negative number,
    /// because `0` is taken.
    #[must_use]
    pub fn to_json(self) -> String {
        match self {
            Self::BrowserSession => "0".to_owned(),
            Self::After(Duration::ZERO) => "-1".to_owned(),
            Self::After(duration) => format!("{}", duration.as_secs_f64()),
            Self::At(instant) => format!("{{\"at\":{}}}", instant.as_micros()),
        }
    }

    /// Reads the form that [`to_json`](Self::to_json) writes and, with the feature `django`, the date that
    /// Django writes. Returns `None` for anything else.
    #[must_use]
    pub fn from_json(json: &str) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct At {
            at: i64,
        }
        if let Ok(seconds) = serde_json::from_str::<f64>(json) {
            return Some(if seconds == 0.0 {
                Self::BrowserSession
            } else if seconds < 0.0 {
                Self::After(Duration::ZERO)
            } else {
                Self::After(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
            });
        }
        #[cfg(feature = "django")]
        if let Ok(text) = serde_json::from_str::<String>(json) {
            return crate::datetime::parse(&text).map(Self::At);
        }
        let At { at } = serde_json::from_str(json).ok()?;
        Some(Self::At(Timestamp::from_micros(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expiry_is_read_back_from_its_json() {
        let at = Expiry::At(Timestamp::from_micros(1_700_000_000_123_456));
        for expiry in [
            Expiry::BrowserSession,
            Expiry::After(Duration::from_secs(10)),
            Expiry::After(Duration::from_millis(10_500)),
            Expiry::After(Duration::ZERO),
            Expiry::After(Duration::MAX),
            at,
        ] {
            assert_eq!(Expiry::from_json(&expiry.to_json()), Some(expiry));
        }
        assert_eq!(Expiry::from_json("-10"), Some(Expiry::After(Duration::ZERO)));
        for other in ["", "[]", "\"text\"", "{\"at\":\"x\"}", "null", "1e400"] {
            assert_eq!(Expiry::from_json(other), None, "{other}");
        }
    }

    #[test]
    fn every_expiry_but_an_instant_slides() {
        let idle = Duration::from_secs(100);
        let now = Timestamp::from_secs(1_000);
        assert_eq!(Expiry::BrowserSession.instant(now, idle), Timestamp::from_secs(1_100));
        assert_eq!(Expiry::After(Duration::from_secs(5)).instant(now, idle), Timestamp::from_secs(1_005));
        let fixed = Expiry::fixed(Duration::from_secs(5), now);
        assert_eq!(fixed.instant(now + idle, idle), Timestamp::from_secs(1_005));
        assert!(!fixed.is_sliding());
    }
}
