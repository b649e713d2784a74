//! The members of the workspace and their features, as cargo tells them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::Result;
use crate::process::{cargo, output};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
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
            features: features.collect::<Option<_>>()?,
        })
    };
    Ok(packages.iter().map(member).collect::<Option<_>>().ok_or_else(strange)?)
}

impl Member {
    /// The feature and all that it enables, directly or not.
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
        parse(&json!({ "packages": [{ "name": "cache-backends", "features": features }] })).unwrap()
    }

    #[test]
    fn members_and_features_are_read() {
        let members = sample();
        assert_eq!(members.len(), 1);
        assert_eq!(members[0].features.keys().collect::<Vec<_>>(), ["full", "redis", "redis-tls"]);
        assert!(parse(&json!({ "packages": [{ "name": 1 }] })).is_err());
    }

    #[test]
    fn a_closure_follows_features_of_features() {
        let closure: Vec<_> = sample()[0].closure("full").into_iter().map(str::to_owned).collect();
        assert_eq!(closure, ["dep:redis", "full", "other/moka", "redis", "redis-tls"]);
    }
}
