//! `cargo xtask soak`: runs the store on real servers that break, with processes that die.

use lexopt::{Arg, Parser, ValueExt};

use crate::Result;
use crate::beside::Programs;
use crate::help::Help;
use crate::process::{cargo, run as run_process};
use crate::table::IMAGES;
use crate::{engine, images};

pub(crate) const HELP: Help = Help {
    usage: "soak [--crowd] [--blips] [--departing] [--lost-server] [--failover] [--beside REVISION] [--pair CACHE+DATABASE] [--minutes N] [--seed SEED]",
    summary: "Uses sessions from several processes on servers that break, and judges every answer.",
    details: "The servers run in containers of the soak's own. Without a phase, it breaks the network, the servers and the processes, and then\nruns every phase. The last line of each part says `violations 0`, or shows the shortest history that proves a violation.",
    options: &[
        ("--crowd", "Runs this phase only: hundreds of writers of one session."),
        ("--blips", "Runs this phase only: a cache that is away for moments."),
        ("--departing", "Runs this phase only: callers that leave."),
        ("--lost-server", "Runs this phase only: one dead server of several."),
        (
            "--failover",
            "Runs this phase only: a database whose replica takes over; 20 s for each of four ways to go.",
        ),
        (
            "--beside REVISION",
            "Lets processes of this tag or commit work beside the present ones, after the network tests `mixed`.",
        ),
        ("--pair CACHE+DATABASE", "Uses this pair, such as near+redis+postgres. Defaults to redis+postgres."),
        ("--minutes N", "Lasts N minutes in all. Defaults to 5."),
        ("--seed SEED", "Repeats the plan of faults of an earlier run."),
    ],
    examples: &[
        ("soak --pair memcached+mysql --minutes 1", "every part, shortened"),
        ("soak --crowd --minutes 0.5", "one phase"),
        ("soak --beside v0.1.0 --minutes 2", "a rolling deployment, forth and back"),
        ("soak --failover --pair redis+mysql --minutes 2", "every way in which a primary of MySQL can go"),
    ],
};

/// The phases, as their flags name them.
const PHASES: [&str; 5] = ["crowd", "blips", "departing", "lost-server", "failover"];

pub(crate) fn run(mut args: Parser) -> Result {
    let (mut pair, mut minutes, mut seed) = ("redis+postgres".to_owned(), 5.0, None);
    let mut phases = Vec::new();
    let mut beside = None;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("beside") => beside = Some(args.value()?.string()?),
            Arg::Long("pair") => pair = args.value()?.string()?,
            Arg::Long("minutes") => minutes = args.value()?.parse::<f64>()?,
            Arg::Long("seed") => seed = Some(args.value()?.parse::<u64>()?),
            Arg::Long(flag) if PHASES.contains(&flag) => {
                phases.extend(PHASES.iter().copied().filter(|phase| *phase == flag));
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if !(minutes > 0.0 && minutes.is_finite()) {
        return Err("a soak lasts some minutes, such as 5 or 0.5".into());
    }
    if beside.is_some() && !phases.is_empty() {
        return Err("no phase runs beside an older revision: leave the flag out".into());
    }
    engine::require()?;
    let mut command = soak();
    command.env("SOAK_PAIR", pair).env("SOAK_PHASES", plan(&phases, minutes));
    if let Some(revision) = beside {
        let older = Programs::build(&revision)?;
        let mut mixed = test("network");
        mixed.env("MIXED_OLDER", older.node).env("CONFORMANCE_REQUIRE", "all").args(["--", "mixed"]);
        run_process(&mut mixed)?;
        command.env("SOAK_PHASES", format!("faults:{:.0}", (minutes * 60.0).ceil()));
        command.env("SOAK_BESIDE", older.soak).env("SOAK_BESIDE_SESSIONCTL", older.sessionctl);
    }
    if let Some(seed) = seed {
        command.env("SOAK_SEED", seed.to_string());
    }
    run_process(&mut command)
}

/// Returns each part with its seconds: the named phases for the same time each, or without names, faults for
/// half of the time and then all phases.
fn plan(phases: &[&str], minutes: f64) -> String {
    let part = |name: &str, share: f64| format!("{name}:{:.0}", (minutes * 60.0 * share).ceil());
    if phases.is_empty() {
        let faults = std::iter::once(part("faults", 0.5));
        return faults.chain(PHASES.map(|phase| part(phase, 0.1))).collect::<Vec<_>>().join(",");
    }
    let share = 1.0 / phases.len() as f64;
    phases.iter().map(|phase| part(phase, share)).collect::<Vec<_>>().join(",")
}

/// Runs the tests of the soak itself and short soaks. Part of `cargo xtask test --provision`.
pub(crate) fn short() -> Result {
    // One after the other, because they measure time.
    run_process(soak().env("SOAK_SHORT", "1").args(["--", "--test-threads=1"]))
}

fn soak() -> std::process::Command {
    test("soak")
}

/// Returns the command that runs a test target on the images that are there.
fn test(target: &str) -> std::process::Command {
    let mut command = cargo();
    command.args(["test", "--workspace", "--all-features", "--test", target]);
    let exists = |image: &&&'static crate::table::Image| images::is_built(image);
    let built: Vec<_> = IMAGES.iter().filter(exists).copied().collect();
    command.envs(images::variables(&built));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_without_flags_has_every_phase() {
        assert_eq!(plan(&[], 5.0), "faults:150,crowd:30,blips:30,departing:30,lost-server:30,failover:30");
    }

    #[test]
    fn plan_with_flags_has_only_their_phases() {
        assert_eq!(plan(&["crowd"], 0.5), "crowd:30");
        assert_eq!(plan(&["crowd", "blips"], 2.0), "crowd:60,blips:60");
    }
}
