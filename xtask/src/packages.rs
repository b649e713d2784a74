//! Debian's packages, installed with the machine's own apt.

use std::process::{Command, Stdio};

use crate::Result;
use crate::process::{output, run, which};

/// Announces and installs packages. Fails, and says what to do, where it cannot.
pub(crate) fn install(packages: &[&str]) -> Result {
    if packages.is_empty() {
        return Ok(());
    }
    let wanted = packages.join(" ");
    if which("apt-get").is_none() {
        return Err(format!(
            "this machine has no apt-get; install the equivalent of {wanted} by its own means"
        )
        .into());
    }
    if !is_root() {
        return Err(format!("missing: {wanted}. As root: `apt-get install {wanted}`").into());
    }
    eprintln!("installing with apt-get: {wanted}");
    update()?;
    run(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// Fetches the lists of packages.
pub(crate) fn update() -> Result {
    run(apt().arg("update"))
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).arg("-qq");
    command
}

pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid == "0")
}
