//! The programs of an older revision, for runs beside the present one.

use std::path::PathBuf;
use std::process::Command;

use crate::Result;
use crate::process::{Built, build, cargo, output, run, shown};

/// The directory for the sources and the builds of older revisions.
const DIRECTORY: &str = "target/beside";

/// The programs of a revision.
pub(crate) struct Programs {
    pub(crate) soak: PathBuf,
    pub(crate) sessionctl: PathBuf,
    /// The node of the network tests `mixed`.
    pub(crate) node: PathBuf,
}

/// The node: a file of the present revision, which is added to older ones as a test target.
const NODE: &str = "conformance-tests/tests/network/node.rs";
const NODE_THERE: &str = "conformance-tests/tests/node.rs";

impl Programs {
    /// Builds the programs of a revision, unchanged but for the added node. A revision is a tag, a branch or a commit.
    pub(crate) fn build(revision: &str) -> Result<Self> {
        let commit = commit(revision)?;
        let root = std::env::current_dir()?;
        let (sources, target) = (root.join(DIRECTORY).join(&commit), root.join(DIRECTORY).join("build"));
        if !sources.join("Cargo.toml").exists() {
            std::fs::create_dir_all(&sources)?;
            let archive = sources.with_extension("tar");
            let mut pack = Command::new("git");
            run(pack.args(["archive", "--format=tar", "--output"]).arg(&archive).arg(&commit))?;
            run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&sources))?;
            std::fs::remove_file(archive)?;
        }
        let (here, there) = (std::fs::read(NODE)?, sources.join(NODE_THERE));
        // Write it only if it differs: cargo would compile it each time.
        if std::fs::read(&there).ok().as_ref() != Some(&here) {
            std::fs::write(there, here)?;
        }
        let mut command = cargo();
        // Build the tests of sessionctl: cargo builds the program with them, with the same features.
        let targets = ["--test=soak", "--test=node", "--test=sessionctl"];
        command.args(["test", "--workspace", "--all-features"]).args(targets).arg("--no-run");
        command.current_dir(&sources).env("CARGO_TARGET_DIR", &target);
        let built = build(&mut command)?;
        let program = |kind: &str, name: &str| {
            let is_it = |program: &&Built| program.kind == kind && program.name == name;
            let program = built.iter().find(is_it).map(|program| program.file.clone());
            program.ok_or_else(|| format!("{revision} has no {kind} {name}: `{}` made none", shown(&command)))
        };
        Ok(Self {
            soak: program("test", "soak")?,
            sessionctl: program("bin", "sessionctl")?,
            node: program("test", "node")?,
        })
    }
}

/// Returns the commit of a revision.
fn commit(revision: &str) -> Result<String> {
    let name = format!("{revision}^{{commit}}");
    let found =
        output(Command::new("git").args(["rev-parse", "--verify", "--quiet", "--end-of-options", &name]));
    found.map_err(|_| {
        format!("there is no revision {revision} in this repository: name a tag or a commit, such as HEAD~20")
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::commit;

    #[test]
    fn revision_that_there_is_not_is_refused_by_name() {
        let error = commit("no-such-revision").unwrap_err().to_string();
        assert!(error.contains("no revision no-such-revision"), "{error}");
        let error = commit("--all").unwrap_err().to_string();
        assert!(error.contains("no revision --all"), "{error}");
    }

    #[test]
    fn revision_is_a_commit() {
        assert_eq!(commit("HEAD").unwrap().len(), 40);
    }
}
