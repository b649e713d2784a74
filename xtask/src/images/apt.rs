//! Which mirror this machine's own apt uses, so that the project names none.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::process::output;

const MIRROR_VAR: &str = "CONFORMANCE_DEBIAN_MIRROR";

/// The mirror of Debian's main archive.
pub(crate) fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR_VAR) {
        return Ok(mirror);
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if value(&release, "ID") != Some("debian") {
        return Err(format!("this is no Debian machine: name a mirror of Debian in {MIRROR_VAR}").into());
    }
    let codename = value(&release, "VERSION_CODENAME").unwrap_or("sid");
    choose(&sources(Path::new("/etc/apt"))?, codename).ok_or_else(|| {
        format!("no source for {codename} main in /etc/apt: name a mirror of Debian in {MIRROR_VAR}").into()
    })
}

/// Proxies that the machine's apt is told to use, as lines of apt.conf.
pub(crate) fn proxies() -> Result<Vec<String>> {
    let settings = output(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let is_proxy = |line: &&str| {
        let name = line.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
        name.ends_with("::proxy") && !line.ends_with("\"\";")
    };
    Ok(settings.lines().filter(is_proxy).map(str::to_owned).collect())
}

/// One place that apt fetches from: an entry with several places is several of these.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: String,
}

fn sources(etc_apt: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(dir) = fs::read_dir(etc_apt.join("sources.list.d")) {
        let mut more: Vec<_> = dir.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        more.sort();
        files.extend(more);
    }
    let mut sources = Vec::new();
    for file in files {
        let text = || fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text().lines().filter_map(one_line)),
            Some("sources") => sources.extend(deb822(&text())),
            _ => {}
        }
    }
    Ok(sources)
}

/// A source of the running release's main component: third parties often have neither its name nor that component, and
/// where one has both, Debian's own keyring tells them apart.
fn choose(sources: &[Source], codename: &str) -> Option<String> {
    let names = [codename, "stable", "oldstable", "testing", "unstable", "sid"];
    let is_main = |source: &&Source| {
        source.suites.iter().any(|suite| names.contains(&suite.as_str()))
            && source.components.iter().any(|component| component == "main")
            && !source.uri.starts_with("cdrom:")
    };
    let mains: Vec<_> = sources.iter().filter(is_main).collect();
    let by_debian = mains.iter().find(|source| source.signed_by.contains("debian-archive"));
    let by_anyone = mains.iter().find(|source| source.signed_by.is_empty());
    by_debian.or(by_anyone).map(|source| source.uri.clone())
}

/// `deb [signed-by=FILE] URI SUITE COMPONENT..`
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Source {
        uri: words.next()?,
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: signed_by.unwrap_or_default().to_owned(),
    })
}

/// Stanzas of `Field: value`, continued on lines that begin with a blank.
fn deb822(text: &str) -> Vec<Source> {
    let text: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    text.split(|line| line.trim().is_empty()).flat_map(stanza).collect()
}

fn stanza(lines: &[&str]) -> Vec<Source> {
    let field = |name: &str| -> Vec<String> {
        let mut words = Vec::new();
        let mut inside = false;
        for line in lines {
            let continued = line.starts_with([' ', '\t']);
            let value = match line.split_once(':') {
                _ if continued => Some(*line).filter(|_| inside),
                Some((field, value)) if field.eq_ignore_ascii_case(name) => Some(value),
                _ => None,
            };
            inside = value.is_some();
            words.extend(value.unwrap_or_default().split_whitespace().map(str::to_owned));
        }
        words
    };
    let enabled = field("Enabled").first().is_none_or(|value| value != "no");
    if !enabled || !field("Types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let source = |uri| Source {
        uri,
        suites: field("Suites"),
        components: field("Components"),
        signed_by: field("Signed-By").join(" "),
    };
    field("URIs").into_iter().map(source).collect()
}

/// The value of `name` in a file of shell assignments.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let assigned = |line: &'a str| line.strip_prefix(name)?.strip_prefix('=');
    text.lines().find_map(assigned).map(|value| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# a comment
Types: deb deb-src
URIs: http://security.test/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
# in the middle
URIs: http://one.test/debian
 http://two.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://disabled.test/debian
Suites: bookworm
Components: main
";

    #[test]
    fn the_main_archive_is_found_in_deb822() {
        let sources = deb822(DEB822);
        assert_eq!(sources.len(), 3);
        assert_eq!(choose(&sources, "bookworm").as_deref(), Some("http://one.test/debian"));
    }

    #[test]
    fn the_main_archive_is_found_in_one_line_style() {
        let text = "# deb http://off.test/debian bookworm main\n\
                    deb-src http://src.test/debian bookworm main\n\
                    deb cdrom:[Debian]/ bookworm main\n\
                    deb\t[ arch=amd64 signed-by=/k.gpg ]  http://vendor.test/apt bookworm main\n\
                    deb http://security.test/debian-security bookworm-security main\n\
                    deb http://main.test/debian bookworm main # yes\n";
        let sources: Vec<_> = text.lines().filter_map(one_line).collect();
        assert_eq!(sources.len(), 4);
        assert_eq!(choose(&sources, "bookworm").as_deref(), Some("http://main.test/debian"));
    }

    #[test]
    fn third_parties_are_not_taken_for_debian() {
        let vendors = "deb [signed-by=/v.gpg] http://vendor.test/apt stable main\n\
                       deb http://vendor.test/node nodistro main\n\
                       deb [signed-by=/d.gpg] http://vendor.test/debian bookworm stable\n";
        let sources: Vec<_> = vendors.lines().filter_map(one_line).collect();
        assert_eq!(sources.len(), 3);
        assert_eq!(choose(&sources, "bookworm"), None);
    }

    #[test]
    fn values_of_os_release_may_be_quoted() {
        let text = "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(value(text, "ID"), Some("debian"));
        assert_eq!(value(text, "VERSION_ID"), Some("12"));
        assert_eq!(value(text, "VERSION_CODENAME"), None);
    }
}
