//! A backend crate outside of this workspace can run the suite.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::path::Path;
use std::process::Command;

#[test]
fn backend_crate_outside_of_the_workspace_runs_the_suite() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crate_root = here.join("third-party");
    // The versions of this workspace have been downloaded already.
    std::fs::copy(here.join("../Cargo.lock"), crate_root.join("Cargo.lock"))
        .expect("the lock file can be copied");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target directory");

    let run = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--test", "conformance", "--target-dir"])
        .arg(target)
        .current_dir(&crate_root)
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo can be started");

    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{out}\n{err}");
    let case = "test cache::map::entry_of_another_key_is_never_returned ";
    let has_passed = out.lines().any(|line| line.starts_with(case) && line.ends_with("... ok"));
    assert!(has_passed, "the cases have not run:\n{out}\n{err}");
}
