//! The mirror and the proxies that this machine's own apt uses, as apt reports them, so that the project
//! names none.

use std::process::Command;

use crate::Result;
use crate::packages;
use crate::process::output;

const MIRROR_VAR: &str = "CONFORMANCE_DEBIAN_MIRROR";

/// Returns the mirror of Debian's main archive.
pub(crate) fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR_VAR) {
        return Ok(mirror);
    }
    let missing =
        || format!("apt knows no source of Debian's main archive: name a mirror of Debian in {MIRROR_VAR}");
    let mut targets = index_targets().map_err(|error| format!("{}\n{error}", missing()))?;
    // apt lists the targets of downloaded release files only.
    if targets.is_empty() && packages::is_root() {
        packages::update()?;
        targets = index_targets()?;
    }
    choose(&targets).ok_or_else(|| format!("{}, or run `apt-get update`", missing()).into())
}

/// Returns the proxies that apt uses, as lines of apt.conf.
pub(crate) fn proxies() -> Result<Vec<String>> {
    let settings = output(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let is_proxy = |line: &&str| {
        let name = line.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
        name.ends_with("::proxy") && !line.ends_with("\"\";")
    };
    Ok(settings.lines().filter(is_proxy).map(str::to_owned).collect())
}

/// Returns a line for each list of packages that apt fetches: `URI COMPONENT LABEL`.
fn index_targets() -> Result<String> {
    let format = "$(REPO_URI) $(COMPONENT) $(LABEL)";
    output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))
}

/// Chooses by the label in the signed release file, in which third parties, and Debian's security archive,
/// name themselves.
fn choose(targets: &str) -> Option<String> {
    let uri = |line: &str| {
        let (uri, rest) = line.split_once(' ')?;
        (rest == "main Debian" && !uri.starts_with("cdrom:")).then(|| uri.to_owned())
    };
    targets.lines().find_map(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_the_main_archive() {
        let targets = "\
http://security.test/debian-security/ main Debian-Security
cdrom:[Debian]/ main Debian
http://main.test/debian/ contrib Debian
http://main.test/debian/ main Debian
http://other.test/debian/ main Debian
";
        assert_eq!(choose(targets).as_deref(), Some("http://main.test/debian/"));
    }

    #[test]
    fn mirror_is_never_a_third_party() {
        let targets = "http://vendor.test/apt/ main Vendor\nhttp://vendor.test/debian/ main Debian Vendor\n";
        assert_eq!(choose(targets), None);
        assert_eq!(choose(""), None);
    }
}
