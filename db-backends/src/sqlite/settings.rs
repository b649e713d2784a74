//! The place of a SQLite database, which may be wrong.

use std::path::Path;

use sqlx::{SqliteConnection, query_as};

use crate::Finding;
use crate::sql::connections::Usage;

pub(super) async fn examine(connection: &mut SqliteConnection, _: Usage) -> sqlx::Result<Vec<Finding>> {
    let list = query_as::<_, (i64, String, Option<String>)>("PRAGMA database_list");
    let mut findings = Vec::new();
    for (_, name, file) in list.fetch_all(connection).await? {
        let file = file.filter(|file| name == "main" && !file.is_empty());
        if let Some(file) = file
            && let Some(kind) = file_system(Path::new(&file)).filter(|kind| is_network(kind))
        {
            findings.push(Finding::problem(format!(
                "the file is on a network file system ({kind}), where SQLite's locks and its write-ahead log do not hold \
                 between machines; put it on a local disk, or use a database server"
            )));
        }
    }
    Ok(findings)
}

/// Returns the kind of the file system that `file` is on, where the system tells.
fn file_system(file: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let file = file.canonicalize().ok()?;
    mounted(&mounts, &file).map(str::to_owned)
}

/// Returns the kind of the file system that `file` is on, by the lines of `mounts`: the one that is mounted
/// deepest, and of several at one place the last.
fn mounted<'m>(mounts: &'m str, file: &Path) -> Option<&'m str> {
    let kinds = mounts.lines().filter_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        // Blanks and the like are written in octal.
        let place = mount.split(' ').nth(4)?.replace("\\040", " ");
        let depth = file.starts_with(&place).then(|| Path::new(&place).components().count())?;
        Some((depth, rest.split(' ').next()?))
    });
    kinds.max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

/// Returns `true` for file systems that several machines may have mounted.
fn is_network(kind: &str) -> bool {
    const KINDS: &[&str] = &[
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "ocfs2",
        "smb3",
        "smbfs",
    ];
    let remote_fuse =
        ["fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.ceph", "fuse.rclone", "fuse.gcsfuse"];
    kind.starts_with("nfs") || KINDS.contains(&kind) || remote_fuse.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /srv/data rw - nfs4 files:/data rw
31 30 0:41 / /srv/data/local\\040disk rw - xfs /dev/vdb rw
32 22 0:42 / /home rw shared:1 - cifs //files/home rw
";

    #[test]
    fn file_system_is_that_of_the_deepest_mount() {
        for (file, kind) in [
            ("/var/lib/sessions.db", "ext4"),
            ("/srv/data/sessions.db", "nfs4"),
            ("/srv/database/sessions.db", "ext4"),
            ("/srv/data/local disk/sessions.db", "xfs"),
            ("/home/app/sessions.db", "cifs"),
        ] {
            assert_eq!(mounted(MOUNTS, Path::new(file)), Some(kind), "{file}");
        }
        assert_eq!(["ext4", "nfs4", "xfs", "cifs"].map(is_network), [false, true, false, true]);
    }
}
