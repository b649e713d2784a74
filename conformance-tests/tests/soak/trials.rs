//! Tests of the soak itself, and short soaks.

mod histories;
mod proxy;

use std::path::PathBuf;
use std::time::Duration;

use conformance_tests::libtest_mimic::{Failed, Trial};

use super::checker::Kind;
use super::history::{Figures, Lie, MILLI, Nanos, SECOND};
use super::phases::{self, Omitted, Phase};
use super::report::Report;
use super::run::{Settings, run};
use crate::{Failure, block_on, load};

/// The variable that enables the tests that need the container engine.
const SHORT: &str = "SOAK_SHORT";

pub(crate) fn all() -> Vec<Trial> {
    let mut trials = vec![
        trial("run::a_pair_that_there_is_not_is_refused", unknown_pair_is_refused),
        trial("phases::unknown_phase_is_refused", unknown_phase_is_refused),
        trial("phases::a_process_that_recovers_late_is_found", late_recovery_is_found),
    ];
    trials.extend(histories::all());
    trials.extend(proxy::all());
    let runs_short = std::env::var_os(SHORT).is_some();
    if !runs_short {
        eprintln!("short soaks: IGNORED, {SHORT} is not set; `cargo xtask test --provision` sets it");
    }
    for trial in [
        trial(
            "run::process_that_does_not_start_fails_the_soak_the_soak",
            process_that_does_not_start_fails_the_soak,
        ),
        trial("run::soak_without_operations_fails", soak_without_operations_fails),
        trial("run::soak_that_breaks_nothing_fails", soak_that_breaks_nothing_fails),
        trial("run::proxies_that_inject_nothing_fail_the_soak", soak_with_idle_proxies_fails),
        trial("run::a_cache_that_lies_is_found_out", lying_cache_is_detected),
        trial("run::near_cache_that_answers_for_too_long_is_found_out", overdue_cache_is_detected),
        trial("herd::four_processes_with_64_loads_each_make_8_database_reads_at_most", load::herd),
        trial("outage::no_operation_fails_for_a_cache_that_is_killed", load::outage),
        trial("soak::redis+postgres", || soak("redis+postgres", 15)),
        trial("soak::memcached+mysql", || soak("memcached+mysql", 15)),
        trial("soak::near+redis+postgres", || near_soak("near+redis+postgres")),
        trial("soak::notified+moka+postgres", || near_soak("notified+moka+postgres")),
        trial("crowd::without_operations_fails", || {
            expect_failure(Phase::Crowd, Omitted::Operations, "which proves nothing")
        }),
        trial("blips::without_writes_fails", || {
            expect_failure(Phase::Blips, Omitted::Operations, "wrote 0 times a second, which proves nothing")
        }),
        trial("blips::without_a_blip_fails", || {
            expect_failure(Phase::Blips, Omitted::Faults, "broke no call of the cache, which proves nothing")
        }),
        trial("departing::without_departures_fails", || {
            expect_failure(
                Phase::Departing,
                Omitted::Departures,
                "left by their callers, which proves nothing",
            )
        }),
        trial("lost_server::without_a_death_fails", || {
            expect_failure(Phase::LostServer, Omitted::Faults, "nothing was dead, which proves nothing")
        }),
        trial("failover::without_a_fault_fails", || {
            expect_failure(Phase::Failover, Omitted::Faults, "the primary did not go, which proves nothing")
        }),
        trial("crowd::redis+postgres", || phase(Phase::Crowd, "redis+postgres", 5)),
        trial("blips::redis+postgres", || phase(Phase::Blips, "redis+postgres", 11)),
        trial("departing::redis+mysql", || phase(Phase::Departing, "redis+mysql", 6)),
        trial("failover::redis+postgres", || phase(Phase::Failover, "redis+postgres", 1)),
        trial("lost_server::memcached+sqlite", || phase(Phase::LostServer, "memcached+sqlite", 9)),
        trial("lost_server::redis-cluster+sqlite", || phase(Phase::LostServer, "redis-cluster+sqlite", 9)),
    ] {
        trials.push(trial.with_ignored_flag(!runs_short));
    }
    trials
}

fn trial(name: &str, test: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(error.to_string())))
}

fn soak(pair: &str, seconds: u64) -> Result<(), Failure> {
    let settings = Settings::new(pair, Duration::from_secs(seconds), fastrand::u64(..1 << 32))?;
    expect_clean(&block_on(run(settings))?)
}

/// A short soak of near caches, whose channels alone are broken: whatever else is broken is broken in other soaks.
fn near_soak(pair: &str) -> Result<(), Failure> {
    let settings = Settings::new(pair, Duration::from_secs(12), fastrand::u64(..1 << 32))?;
    expect_clean(&block_on(run(Settings { breaks_channels_only: true, ..settings }))?)
}

fn expect_clean(report: &Report) -> Result<(), Failure> {
    println!("{report}");
    if report.is_clean() { Ok(()) } else { Err("a promise was broken, see above".into()) }
}

fn phase(phase: Phase, pair: &str, seconds: u64) -> Result<(), Failure> {
    let settings = phases::Settings::new(pair, Duration::from_secs(seconds), fastrand::u64(..1 << 32))?;
    let verdicts = block_on(phases::run(phase, &settings))?;
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    if verdicts.iter().all(phases::verdict::Verdict::is_clean) {
        Ok(())
    } else {
        Err("a promise was broken, see above".into())
    }
}

/// Checks that a phase without its essential part reports that it proves nothing.
fn expect_failure(phase: Phase, omitted: Omitted, what: &str) -> Result<(), Failure> {
    let pair = match phase {
        Phase::LostServer => "memcached+sqlite",
        Phase::Failover => "redis+postgres",
        _ => "redis+sqlite",
    };
    let settings = phases::Settings::new(pair, Duration::from_secs(1), 7)?;
    let settings = phases::Settings { omitted: Some(omitted), processes: 2, ..settings };
    expect_error(block_on(phases::run(phase, &settings)), what)
}

fn late_recovery_is_found() -> Result<(), Failure> {
    use phases::blips::{Blip, recovery};
    let blip = Blip { since: 0, until: SECOND, next: 6 * SECOND };
    let hits = |from: Nanos| -> Vec<(Nanos, Figures)> {
        let figures = |at: Nanos| Figures { hits: at.saturating_sub(from) / MILLI, ..Figures::default() };
        (0..60).map(|n| n * SECOND / 10).map(|at| (at, figures(at))).collect()
    };
    // Hits at once, and hits later.
    assert_eq!(recovery(&hits(0), &[], &blip), Some(SECOND / 10));
    assert_eq!(recovery(&hits(4 * SECOND), &[], &blip), Some(3 * SECOND + SECOND / 10));
    assert_eq!(recovery(&hits(10 * SECOND), &[], &blip), None);
    // Degraded writes for a while, and until the next blip. Those of another blip do not count.
    assert_eq!(recovery(&hits(0), &[SECOND / 2, 3 * SECOND], &blip), Some(2 * SECOND));
    assert_eq!(recovery(&hits(0), &[2 * SECOND, 6 * SECOND - MILLI], &blip), None);
    assert_eq!(recovery(&hits(0), &[7 * SECOND], &blip), Some(SECOND / 10));
    Ok(())
}

fn unknown_phase_is_refused() -> Result<(), Failure> {
    let error = "storms".parse::<Phase>().err().ok_or("it was taken")?.to_string();
    assert!(error.contains("storms") && error.contains("crowd"), "{error}");
    let settings = phases::Settings::new("moka+sqlite", Duration::from_secs(1), 0)?;
    expect_error(block_on(phases::run(Phase::Blips, &settings)), "choose another pair")
}

fn pair(seconds: u64) -> Settings {
    Settings::new("redis+sqlite", Duration::from_secs(seconds), 7).expect("a pair")
}

fn process_that_does_not_start_fails_the_soak() -> Result<(), Failure> {
    let missing = Settings { program: PathBuf::from("/nonexistent/program"), ..pair(1) };
    expect_error(block_on(run(missing)), "could not be started")?;
    let ends = Settings { program: PathBuf::from("/bin/false"), ..pair(1) };
    expect_error(block_on(run(ends)), "could not be started")
}

fn soak_without_operations_fails() -> Result<(), Failure> {
    expect_error(
        block_on(run(Settings { tasks: 0, ..pair(1) })),
        "0 loads and 0 writes, which proves nothing",
    )
}

fn soak_that_breaks_nothing_fails() -> Result<(), Failure> {
    expect_error(block_on(run(pair(1))), "nothing was broken, which proves nothing")
}

fn soak_with_idle_proxies_fails() -> Result<(), Failure> {
    expect_error(block_on(run(Settings { idle_proxies: true, ..pair(12) })), "injected nothing")
}

fn lying_cache_is_detected() -> Result<(), Failure> {
    let report = block_on(run(Settings { lie: Some(Lie::Stale), ..pair(30) }))?;
    let Some(found) = &report.found else {
        return Err(format!("the lies were not detected\n{report}").into());
    };
    let said = report.to_string();
    assert!(matches!(found.violation.kind, Kind::Stale | Kind::Undead | Kind::OlderThanPromised), "{said}");
    assert!(said.contains("violations 1") && found.violation.history.len() < 40, "{said}");
    Ok(())
}

fn overdue_cache_is_detected() -> Result<(), Failure> {
    let near = Settings::new("near+redis+sqlite", Duration::from_secs(30), 7)?;
    let settings = Settings {
        lie: Some(Lie::Overdue),
        breaks_channels_only: true,
        generation: SECOND,
        processes: 2,
        ..near
    };
    let report = block_on(run(settings))?;
    let Some(found) = &report.found else {
        return Err(format!("the lies were not detected\n{report}").into());
    };
    assert!(matches!(found.violation.kind, Kind::Stale | Kind::Undead), "{report}");
    Ok(())
}

fn expect_error<T>(outcome: Result<T, Failure>, what: &str) -> Result<(), Failure> {
    match outcome {
        Ok(_) => Err("the soak succeeded".into()),
        Err(error) if error.to_string().contains(what) => Ok(()),
        Err(error) => Err(format!("it failed for another reason: {error}").into()),
    }
}

fn unknown_pair_is_refused() -> Result<(), Failure> {
    for pair in ["redis", "redis+oracle", "ram+postgres"] {
        let error = Settings::new(pair, Duration::from_secs(1), 0).err().ok_or("it was taken")?.to_string();
        assert!(error.contains(pair), "{error}");
    }
    Ok(())
}
