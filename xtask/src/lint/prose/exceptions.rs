//! Places that break a rule for a reason.

use super::rules::Finding;

/// Allows `text` in `file` to break `rule`. One that allows nothing any more is an error.
pub(super) struct Exception {
    pub(super) file: &'static str,
    /// The name of the rule.
    pub(super) rule: &'static str,
    /// The beginning of what is found, as the report shows it.
    pub(super) text: &'static str,
    #[allow(dead_code, reason = "read by people, and by a test")]
    pub(super) reason: &'static str,
}

impl Exception {
    pub(super) fn allows(&self, file: &str, finding: &Finding) -> bool {
        self.file == file && self.rule == finding.rule.name && finding.text.starts_with(self.text)
    }
}

pub(super) const EXCEPTIONS: &[Exception] = &[];
