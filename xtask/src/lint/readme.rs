//! Each published member's README has a row for each of its features, and none for another.

use std::collections::BTreeSet;

use super::metadata::Member;
use crate::Result;

pub(crate) fn check(members: &[Member]) -> Result {
    let mut wrong = Vec::new();
    for member in members.iter().filter(|member| member.is_published) {
        let path = member.directory.join("README.md");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let listed = listed(&text);
        let real: BTreeSet<_> = member.chosen_features().collect();
        let name = &member.name;
        wrong.extend(
            real.difference(&listed).map(|one| format!("{name}: README.md has no row for the feature {one}")),
        );
        wrong.extend(
            listed
                .difference(&real)
                .map(|one| format!("{name}: README.md has a row for {one}, which is no feature")),
        );
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Returns the names in the first column of the tables whose first column is headed `feature`.
fn listed(readme: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut is_ours = false;
    for line in readme.lines() {
        let Some(row) = line.strip_prefix('|') else {
            is_ours = false;
            continue;
        };
        let first = row.split('|').next().unwrap_or_default().trim();
        if first == "feature" {
            is_ours = true;
        } else if is_ours {
            // The text between a pair of backticks.
            names.extend(first.split('`').skip(1).step_by(2));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "\
| feature | what |
|---|---|
| `redis`, `redis-tls` | uses `not-a-feature` |

| other | what |
|---|---|
| `also-not` | |
";

    #[test]
    fn features_are_the_first_column_of_a_feature_table() {
        assert_eq!(listed(README), BTreeSet::from(["redis", "redis-tls"]));
    }

    #[test]
    fn feature_without_a_row_and_row_without_a_feature_are_reported() {
        let directory = std::env::temp_dir().join(format!("readme-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("README.md"), README).unwrap();
        let features = ["_common", "default", "moka", "redis"].map(|name| (name.to_owned(), Vec::new()));
        let member = Member {
            name: "cache-backends".to_owned(),
            directory: directory.clone(),
            is_published: true,
            features: features.into_iter().collect(),
            ..Member::default()
        };
        let error = check(&[member]).unwrap_err().to_string();
        std::fs::remove_dir_all(directory).unwrap();
        assert_eq!(
            error,
            "cache-backends: README.md has no row for the feature moka\n\
             cache-backends: README.md has a row for redis-tls, which is no feature"
        );
    }
}
