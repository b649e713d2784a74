//! Each member compiles with each of its features alone, and with none.

use super::metadata::Member;
use crate::Result;
use crate::process::{cargo, run};

/// Libraries and programs only: what tests need is asked for by the tests. Clippy instead of check, because it can deny
/// warnings for our code without compiling the dependencies anew.
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
            let alone = |feature: &String| vec![package.clone(), format!("--features={feature}")];
            // One that begins with an underscore is what others have in common, and nobody's to choose.
            let is_chosen = |name: &&String| *name != "default" && !name.starts_with('_');
            let features: Vec<_> = member.features.keys().filter(is_chosen).map(alone).collect();
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
            Member { name: "xtask".to_owned(), features: Default::default() },
            Member { name: "cache-backends".to_owned(), features: features.into_iter().collect() },
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
