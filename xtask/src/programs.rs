//! The programs that the tests use, beside servers: a browser, a shared cache, PgBouncer, Python for Django, and what builds
//! libFuzzer.

use std::process::Command;

use crate::packages::install;
use crate::process::{succeeds, which};
use crate::{Result, fuzz};

/// Installs those that the machine lacks. Django itself is installed by its tests, into an environment of
/// their own.
pub(crate) fn provision() -> Result {
    let mut packages = Vec::new();
    if which("chromium").is_none() && which("google-chrome").is_none() {
        packages.push("chromium");
    }
    if which("chromedriver").is_none() {
        packages.push("chromium-driver");
    }
    if which("nginx").is_none() {
        packages.push("nginx");
    }
    // Debian's Python alone cannot make an environment.
    if !succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        packages.extend(["python3", "python3-venv"]);
    }
    if which("pgbouncer").is_none() {
        packages.push("pgbouncer");
    }
    if !fuzz::has_compiler() {
        packages.push("g++");
    }
    install(&packages)
}
