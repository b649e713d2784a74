//! Checks that the published members can be released.

use std::process::Command;
use std::time::Duration;

use super::metadata::Member;
use crate::Result;
use crate::process::{cargo, output, run, succeeds};
use crate::stage::Stages;

/// Time limit for installing the toolchain of the oldest Rust, in seconds.
const INSTALL_LIMIT: &str = "120";

/// Checks that each published member can be packaged, with dependencies on the others as they will be
/// published. Does not compile the packages: they are the same source with the same dependencies.
pub(crate) fn package(members: &[Member]) -> Result {
    let silent: Vec<_> = members.iter().filter(|member| member.is_published && !shows_all(member)).collect();
    if let [member, ..] = silent[..] {
        return Err(
            format!("{}: docs.rs needs [package.metadata.docs.rs] all-features = true", member.name).into()
        );
    }
    let mut command = cargo();
    command.args(["package", "--quiet", "--no-verify", "--allow-dirty", "--target-dir=target/package-check"]);
    run(command.args(published(members)))
}

/// Returns whether docs.rs shows everything. A member without features has nothing to hide.
fn shows_all(member: &Member) -> bool {
    member.docs_show_all_features || member.chosen_features().next().is_none()
}

/// Checks that libraries and programs compile with the oldest Rust that `Cargo.toml` promises.
pub(crate) fn oldest_rust(stages: &mut Stages, members: &[Member]) {
    let Some(version) = members.iter().find_map(|member| member.rust_version.clone()) else {
        return stages.skip("msrv", "no rust-version in Cargo.toml");
    };
    let is_there = || succeeds(Command::new("rustup").args(["run", &version, "cargo", "--version"]));
    let install = ["rustup", "toolchain", "install", &version, "--profile=minimal", "--no-self-update"];
    if !is_there() && !succeeds(Command::new("timeout").arg(INSTALL_LIMIT).args(install)) {
        return stages
            .skip("msrv", "the oldest Rust that is promised was NOT tried: rustup could not install it");
    }
    let work = || {
        let mut command = Command::new("rustup");
        command.args([
            "run",
            &version,
            "cargo",
            "check",
            "--quiet",
            "--locked",
            "--all-features",
            "--lib",
            "--bins",
        ]);
        // These name the Rust that runs this program.
        for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
            command.env_remove(variable);
        }
        run(command.arg("--target-dir=target/msrv").args(published(members)))
    };
    // The failure is kept for the end.
    stages.run("msrv", Duration::from_secs(180), work).ok();
}

/// Checks that the interface keeps the promises of the last release.
pub(crate) fn semver(stages: &mut Stages, members: &[Member]) {
    let Ok(tag) = output(Command::new("git").args(["describe", "--tags", "--abbrev=0", "--match=v[0-9]*"]))
    else {
        return stages.skip("semver", "there is no release yet to compare with (no tag v…)");
    };
    if !succeeds(cargo().args(["semver-checks", "--version"])) {
        return stages.skip(
            "semver",
            "the interface was NOT compared with the last release: `cargo install --locked cargo-semver-checks`",
        );
    }
    let work = || {
        let mut command = cargo();
        command.args(["semver-checks", "--all-features", &format!("--baseline-rev={tag}")]);
        run(command.args(published(members)))
    };
    stages.run("semver", Duration::from_secs(300), work).ok();
}

fn published(members: &[Member]) -> Vec<String> {
    members
        .iter()
        .filter(|member| member.is_published)
        .map(|member| format!("--package={}", member.name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, is_published: bool) -> Member {
        Member { name: name.to_owned(), is_published, ..Member::default() }
    }

    #[test]
    fn unpublished_member_is_not_packaged() {
        assert_eq!(
            published(&[member("session-core", true), member("xtask", false)]),
            ["--package=session-core"]
        );
    }

    #[test]
    fn member_with_features_shows_all_of_them_on_docs_rs() {
        let mut with = member("cache-backends", true);
        assert!(shows_all(&with));
        with.features.insert("moka".to_owned(), Vec::new());
        assert!(!shows_all(&with));
        assert!(package(&[with]).unwrap_err().to_string().starts_with("cache-backends: docs.rs"));
    }
}
