//! Tests of the soak itself, and short soaks.

use conformance_tests::libtest_mimic::Trial;

pub(crate) fn all() -> Vec<Trial> {
    Vec::new()
}
