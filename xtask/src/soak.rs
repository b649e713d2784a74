//! `cargo xtask soak`: the store on real servers that break, with processes that die.

use lexopt::{Arg, Parser, ValueExt};

use crate::Result;
use crate::process::{cargo, run as run_process};
use crate::table::IMAGES;
use crate::{engine, images};

pub(crate) const USAGE: &str = "soak [--pair CACHE+DATABASE] [--minutes N] [--seed SEED]";
pub(crate) const SUMMARY: &str = "Use sessions from several processes on servers in containers of its own, break the network, the servers and the processes,\n    \
     and judge every answer (redis+postgres, 5 minutes). The last line says `violations 0`, or the shortest history that proves one.";

pub(crate) fn run(mut args: Parser) -> Result {
    let (mut pair, mut minutes, mut seed) = ("redis+postgres".to_owned(), 5.0, None);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("pair") => pair = args.value()?.string()?,
            Arg::Long("minutes") => minutes = args.value()?.parse::<f64>()?,
            Arg::Long("seed") => seed = Some(args.value()?.parse::<u64>()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if !(minutes > 0.0 && minutes.is_finite()) {
        return Err("a soak lasts some minutes, such as 5 or 0.5".into());
    }
    engine::require()?;
    let mut command = soak();
    command.env("SOAK_PAIR", pair).env("SOAK_SECONDS", format!("{:.0}", (minutes * 60.0).ceil()));
    if let Some(seed) = seed {
        command.env("SOAK_SEED", seed.to_string());
    }
    run_process(&mut command)
}

/// What every change is checked with: the tests of the soak itself, and short soaks.
pub(crate) fn short() -> Result {
    // One after the other: what takes its time there is measured.
    run_process(soak().env("SOAK_SHORT", "1").args(["--", "--test-threads=1"]))
}

fn soak() -> std::process::Command {
    let mut command = cargo();
    command.args(["test", "--workspace", "--all-features", "--test=soak"]);
    let exists = |image: &&&'static crate::table::Image| images::is_built(image);
    let built: Vec<_> = IMAGES.iter().filter(exists).copied().collect();
    command.envs(images::variables(&built));
    command
}
