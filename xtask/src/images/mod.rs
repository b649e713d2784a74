//! `cargo xtask images`: stand-ins for the official server images, made from Debian's packages, for machines
//! that reach no container registry.
//!
//! A root file system with the server's packages is an image: `mmdebstrap` makes it, `docker import` takes
//! it. The recipes are in [`crate::table`]; a stand-in's tag is a hash of its recipe, so an unchanged recipe
//! is built once.

mod apt;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use lexopt::{Arg, Parser, ValueExt};

use crate::help::Help;
use crate::process::{output, succeeds, which};
use crate::table::{IMAGES, Image};
use crate::{Result, engine};

pub(crate) const HELP: Help = Help {
    usage: "images [--exports] [NAME..]",
    summary: "Builds stand-ins for the server images from Debian's packages, where they are missing.",
    details: "",
    options: &[
        ("NAME", "Builds this image; may be repeated. Defaults to all."),
        ("--exports", "Builds nothing, and prints the variables that make the tests use the stand-ins."),
    ],
    examples: &[("images redis", "one stand-in"), ("images --exports", "variables for a shell")],
};

/// Number of stand-ins built at a time: half of the work is waiting for the mirror and for the disk.
const BUILDERS: usize = 2;

/// Part of every recipe's hash: raise it when the way of building changes.
const BUILD: u32 = 1;

pub(crate) fn run(mut args: Parser) -> Result {
    let mut exports = false;
    let mut wanted = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("exports") => exports = true,
            Arg::Value(name) => wanted.push(named(&name.string()?)?),
            other => return Err(other.unexpected().into()),
        }
    }
    let wanted = if wanted.is_empty() { IMAGES } else { &wanted };
    if exports {
        for (variable, image) in variables(wanted) {
            println!("export {variable}='{image}'");
        }
        return Ok(());
    }
    engine::require()?;
    ensure(wanted)
}

fn named(name: &str) -> Result<&'static Image> {
    IMAGES.iter().copied().find(|image| image.name == name).ok_or_else(|| {
        let known: Vec<_> = IMAGES.iter().map(|image| image.name).collect();
        format!("there is no image {name:?}; there are {}", known.join(", ")).into()
    })
}

/// Builds the stand-ins that are missing.
pub(crate) fn ensure(images: &[&'static Image]) -> Result {
    let missing: Vec<_> = images.iter().copied().filter(|image| !is_built(image)).collect();
    for image in images.iter().filter(|image| !missing.contains(image)) {
        eprintln!("{}: {} is there", image.name, stand_in(image));
    }
    if missing.is_empty() {
        return Ok(());
    }
    if which("mmdebstrap").is_none() {
        return Err(
            "mmdebstrap is missing: `apt-get install mmdebstrap`, or as root `cargo xtask test --provision`"
                .into(),
        );
    }
    let mirror = apt::mirror()?;
    let scratch = PathBuf::from("target/images");
    fs::create_dir_all(&scratch)?;

    let queue = Mutex::new(missing.into_iter());
    let build_from_queue = || -> Result {
        loop {
            let next = queue.lock().map_err(|_| "another builder panicked")?.next();
            let Some(image) = next else { return Ok(()) };
            build(image, &mirror, &scratch)?;
        }
    };
    std::thread::scope(|scope| {
        let builders: Vec<_> = (0..BUILDERS).map(|_| scope.spawn(build_from_queue)).collect();
        let results: Vec<Result> = builders
            .into_iter()
            .map(|builder| builder.join().unwrap_or_else(|_| Err("a builder panicked".into())))
            .collect();
        results.into_iter().collect()
    })
}

/// Returns the variables that make the tests use the stand-ins, without those that are set already.
pub(crate) fn variables(images: &[&'static Image]) -> Vec<(&'static str, String)> {
    let unset = images.iter().filter(|image| std::env::var_os(image.image_var).is_none());
    unset.map(|image| (image.image_var, stand_in(image))).collect()
}

/// Returns the image to start a server from: the one that the environment names, or a stand-in if it was
/// built, or the official one.
pub(crate) fn available(image: &Image) -> String {
    if std::env::var_os(image.image_var).is_none() && is_built(image) {
        stand_in(image)
    } else {
        image.reference()
    }
}

pub(crate) fn is_built(image: &Image) -> bool {
    succeeds(Command::new("docker").args(["image", "inspect", &stand_in(image)]))
}

fn stand_in(image: &Image) -> String {
    let mut hasher = DefaultHasher::new();
    let Image { name: _, official: _, image_var: _, suite, packages, remove, entrypoint } = image;
    (BUILD, suite, packages, remove, entrypoint).hash(&mut hasher);
    format!("{}:{:016x}", repository(image), hasher.finish())
}

fn repository(image: &Image) -> String {
    format!("session-stand-in/{}", image.name)
}

fn build(image: &Image, mirror: &str, scratch: &Path) -> Result {
    let start = Instant::now();
    let packages = image.packages.join(",");
    eprintln!("{}: building {} from Debian {} ({packages})", image.name, stand_in(image), image.suite);

    let entrypoint = scratch.join(format!("{}.sh", image.name));
    fs::write(&entrypoint, image.entrypoint)?;
    let log = scratch.join(format!("{}.log", image.name));
    let log_file = fs::File::create(&log)?;

    let mut debootstrap = Command::new("mmdebstrap");
    debootstrap
        .args(["--variant=minbase", &format!("--include={packages}")])
        // A mirror may be a snapshot.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .args(apt::proxies()?.into_iter().map(|setting| format!("--aptopt={setting}")))
        .args(["man", "doc", "locale"].map(|part| format!("--dpkgopt=path-exclude=/usr/share/{part}/*")))
        .args(image.remove.iter().map(|path| format!("--customize-hook=rm -rf \"$1{path}\"")))
        .arg(format!("--customize-hook=upload {} /usr/local/bin/docker-entrypoint.sh", entrypoint.display()))
        .arg("--customize-hook=chmod 0755 \"$1/usr/local/bin/docker-entrypoint.sh\"")
        .args([image.suite, "-", mirror])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file);
    let mut bootstrapping = debootstrap.spawn()?;
    let tar = bootstrapping.stdout.take().ok_or("mmdebstrap has no output")?;

    // Under a name of its own until it is known to be whole: an import of half an archive may succeed.
    let unproven = format!("{}:unproven", repository(image));
    let imported = Command::new("docker")
        .args(["import", "--change", "ENTRYPOINT [\"docker-entrypoint.sh\"]", "-", &unproven])
        .stdin(tar)
        .output()?;
    if !bootstrapping.wait()?.success() {
        let log = fs::read_to_string(&log).unwrap_or_default();
        return Err(format!("{}: mmdebstrap failed:\n{}", image.name, log.trim_end()).into());
    }
    if !imported.status.success() {
        let stderr = String::from_utf8_lossy(&imported.stderr);
        return Err(format!("{}: docker import failed: {}", image.name, stderr.trim_end()).into());
    }
    output(Command::new("docker").args(["tag", &unproven, &stand_in(image)]))?;
    output(Command::new("docker").args(["image", "rm", &unproven]))?;
    remove_outdated(image);
    eprintln!("{}: built in {:.0} s", image.name, start.elapsed().as_secs_f64());
    Ok(())
}

/// Removes the stand-ins of former recipes, except one that a container still uses.
fn remove_outdated(image: &Image) {
    let current = stand_in(image);
    let format = ["--format", "{{.Repository}}:{{.Tag}}"];
    let listed = output(Command::new("docker").args(["image", "ls", &repository(image)]).args(format));
    for outdated in listed.unwrap_or_default().lines().filter(|line| *line != current) {
        succeeds(Command::new("docker").args(["image", "rm", outdated]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{REDIS, VALKEY};

    #[test]
    fn tag_follows_the_recipe_and_nothing_else() {
        assert_eq!(stand_in(&REDIS), stand_in(&Image { official: "redis:9", ..REDIS }));
        assert_ne!(stand_in(&REDIS), stand_in(&Image { entrypoint: "exit", ..REDIS }));
        assert_ne!(stand_in(&REDIS), stand_in(&Image { suite: "sid", ..REDIS }));
        assert_ne!(stand_in(&REDIS), stand_in(&VALKEY));
    }

    #[test]
    fn unknown_image_is_refused_with_the_known_ones() {
        let error = named("oracle").unwrap_err().to_string();
        assert!(error.contains("oracle") && error.contains("postgres"), "{error}");
    }
}
