//! Each member compiles with each of its features alone, and with none.

use super::metadata::Member;
use crate::Result;
use crate::process::{cargo, run};

/// Compiles libraries and programs only: tests ask for what they need. Uses clippy instead of check, because
/// it can deny warnings for our code without compiling the dependencies anew, and not cargo-hack, which would
/// have to be installed for these lines.
pub(crate) fn each_alone(members: &[Member]) -> Result {
    for arguments in plan(members) {
        run(cargo()
            .args(["clippy", "--quiet", "--no-default-features"])
            .args(arguments)
            .args(["--", "--deny=warnings"]))?;
    }
    Ok(())
}

fn plan(members: &[Member]) -> Vec<Vec<String>> {
    members
        .iter()
        .flat_map(|member| {
            let package = format!("--package={}", member.name);
            let alone = |feature: &str| vec![package.clone(), format!("--features={feature}")];
            let features: Vec<_> = member.chosen_features().map(alone).collect();
            [vec![package]].into_iter().chain(features)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_built_without_features_and_with_each() {
        let features = ["_shared", "default", "moka", "redis"].map(|name| (name.to_owned(), Vec::new()));
        let members = [
            Member { name: "xtask".to_owned(), ..Member::default() },
            Member {
                name: "cache-backends".to_owned(),
                features: features.into_iter().collect(),
                ..Member::default()
            },
        ];
        let expected: [&[&str]; 4] = [
            &["--package=xtask"],
            &["--package=cache-backends"],
            &["--package=cache-backends", "--features=moka"],
            &["--package=cache-backends", "--features=redis"],
        ];
        assert_eq!(plan(&members), expected);
    }
}
