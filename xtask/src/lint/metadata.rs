//! The members of the workspace and their features, as cargo reports them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use crate::Result;
use crate::process::{cargo, output};

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// The directory of its `Cargo.toml`.
    pub(crate) directory: PathBuf,
    pub(crate) is_published: bool,
    /// The oldest Rust that it says it needs.
    pub(crate) rust_version: Option<String>,
    /// `true` if docs.rs shows what is behind features.
    pub(crate) docs_show_all_features: bool,
    /// Each feature and what it enables.
    pub(crate) features: BTreeMap<String, Vec<String>>,
}

pub(crate) fn members() -> Result<Vec<Member>> {
    let text = output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    parse(&serde_json::from_str(&text)?)
}

fn parse(metadata: &Value) -> Result<Vec<Member>> {
    let strange = || "cargo metadata has an unexpected form";
    let packages = metadata["packages"].as_array().ok_or_else(strange)?;
    let member = |package: &Value| -> Option<Member> {
        let features = package["features"].as_object()?.iter().map(|(name, enables)| {
            let enables = enables.as_array()?.iter().map(|one| one.as_str().map(str::to_owned));
            Some((name.clone(), enables.collect::<Option<Vec<_>>>()?))
        });
        Some(Member {
            name: package["name"].as_str()?.to_owned(),
            directory: PathBuf::from(package["manifest_path"].as_str()?).parent()?.to_owned(),
            // `publish = false` is an empty list of registries.
            is_published: package["publish"].as_array().is_none_or(|registries| !registries.is_empty()),
            rust_version: package["rust_version"].as_str().map(str::to_owned),
            docs_show_all_features: package
                .pointer("/metadata/docs/rs/all-features")
                .is_some_and(|all| *all == true),
            features: features.collect::<Option<_>>()?,
        })
    };
    Ok(packages.iter().map(member).collect::<Option<_>>().ok_or_else(strange)?)
}

impl Member {
    /// Returns the features that a user may choose. One that begins with an underscore holds what others have
    /// in common.
    pub(crate) fn chosen_features(&self) -> impl Iterator<Item = &str> {
        self.features.keys().map(String::as_str).filter(|name| *name != "default" && !name.starts_with('_'))
    }

    /// Returns each build that is checked alone: without features, and with each feature.
    pub(crate) fn builds(&self) -> impl Iterator<Item = Option<&str>> {
        [None].into_iter().chain(self.features.keys().map(|name| Some(name.as_str())))
    }

    /// Runs `cargo tree` for a build of [`builds`](Self::builds).
    pub(crate) fn tree(&self, feature: Option<&str>, arguments: &[&str]) -> Result<String> {
        let mut command = cargo();
        command.args(["tree", "--quiet", "--no-default-features", &format!("--package={}", self.name)]);
        output(command.args(arguments).args(feature.map(|name| format!("--features={name}"))))
    }

    /// Returns the feature and all that it enables, directly or not.
    pub(crate) fn closure<'a>(&'a self, feature: &'a str) -> BTreeSet<&'a str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![feature];
        while let Some(next) = open.pop() {
            if seen.insert(next) {
                open.extend(self.features.get(next).into_iter().flatten().map(String::as_str));
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Vec<Member> {
        let features =
            json!({ "redis": ["dep:redis"], "redis-tls": ["redis"], "full": ["redis-tls", "other/moka"] });
        let package = json!({
            "name": "cache-backends",
            "manifest_path": "/work/cache-backends/Cargo.toml",
            "publish": null,
            "rust_version": "1.94",
            "metadata": { "docs": { "rs": { "all-features": true } } },
            "features": features,
        });
        let private = json!({ "name": "xtask", "manifest_path": "/x", "publish": [], "features": {} });
        parse(&json!({ "packages": [package, private] })).unwrap()
    }

    #[test]
    fn members_and_features_are_read() {
        let members = sample();
        assert_eq!(members.len(), 2);
        assert!(members[0].is_published && !members[1].is_published);
        assert!(members[0].docs_show_all_features && !members[1].docs_show_all_features);
        assert_eq!(members[0].directory, PathBuf::from("/work/cache-backends"));
        assert_eq!(members[0].rust_version.as_deref(), Some("1.94"));
        assert_eq!(members[0].features.keys().collect::<Vec<_>>(), ["full", "redis", "redis-tls"]);
        assert!(parse(&json!({ "packages": [{ "name": 1 }] })).is_err());
    }

    #[test]
    fn a_closure_follows_features_of_features() {
        let closure: Vec<_> = sample()[0].closure("full").into_iter().map(str::to_owned).collect();
        assert_eq!(closure, ["dep:redis", "full", "other/moka", "redis", "redis-tls"]);
    }
}
