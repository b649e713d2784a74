//! Detection of the seeded faults of the protocol.
//!
//! A simulator that finds nothing proves nothing, unless it would have found something.

use std::ops::ControlFlow;

use super::explore::{Explored, Violation, trace};
use super::scenario::Scenario;
use super::search::explore;
use super::sweep::on_all_cores;
use super::{Mutant, select_mutant};

/// For each fault, scenarios in which a store with it breaks a promise, with as few faults of the world as that takes: one,
/// or one for each promise that no other fault breaks. The tables of `docs` say which promise that is.
pub const SHOWN_IN: &[(Mutant, &str)] = &[
    (Mutant::NoLeaseCheck, "load@0+save@0/vacant/shared/0"),
    (Mutant::NoFence, "load@0+save@0/vacant/shared/1"),
    (Mutant::FenceOverwritten, "save@0+overwrite@0/vacant/shared/1"),
    (Mutant::NoPoisoning, "save@0+overwrite@1/vacant/shared/1"),
    (Mutant::NeverPruned, "save@0+overwrite@1/vacant/shared/2"),
    (Mutant::SettledOnUnknown, "load@0+save@0/vacant/shared/1"),
    (Mutant::UngatedFlight, "load@0+load@0+delete@0/vacant/shared/0"),
    (Mutant::UpsertingSave, "save@0+delete@0/vacant/shared/0"),
    (Mutant::FillAfterDelete, "load@0+delete@0/vacant/shared/0"),
    (Mutant::TtlTrusted, "load@0+reap@0/ending/shared/1"),
    (Mutant::FenceRetriedAsItWas, "overwrite@0+delete@0/vacant/shared/2"),
    (Mutant::LeaseRetriedAsItWas, "load@0+delete@0/vacant/shared/1"),
    (Mutant::PublishOverVacancy, "create@0+revoke@1/vacant/shared/0"),
    (Mutant::LateFollower, "load@0+load@0+delete@0/vacant/shared/0"),
    (Mutant::DegradedPublishes, "save@0+overwrite@1/vacant/shared/2"),
    (Mutant::CleanRepair, "save@0+overwrite@1/vacant/sensitive/1"),
    (Mutant::TouchPublishes, "touch@0+save@1/vacant/shared/0"),
    (Mutant::RevokeListsOnce, "rename@0+revoke@0/vacant/shared/0"),
    (Mutant::WritePastDeadline, "load@0+save@1/vacant/shared/2"),
    (Mutant::LosingIsOutage, "merge@0/vacant/shared/0/rival8"),
    (Mutant::QueueSkipped, "merge@0+merge@0/vacant/shared/0"),
    (Mutant::BaseNotRenewed, "merge@0+merge@0+merge@0/vacant/shared/0"),
    (Mutant::BatchAnswersEarly, "load@0+merge@0+merge@0/vacant/shared/0"),
    (Mutant::BreakerWaitsForQueue, "save@0+load@1/vacant/sensitive/2"),
    (Mutant::RepairBlocksOthers, "delete@0+delete-b@0/vacant/sensitive/2"),
    (Mutant::LeaderOwnsFlight, "load@0+load@0/vacant/shared/1"),
    (Mutant::CallerOwnsStatement, "load@0/vacant/shared/1"),
    (Mutant::CallerOwnsRevocation, "rename@0+revoke@0/vacant/shared/1"),
    (Mutant::CallerOwnsRevocation, "log-out@0+renew@0/vacant/shared/1"),
    (Mutant::TouchRepeated, "use@0+use@0/vacant/shared/0"),
    (Mutant::TouchNotDue, "use@0+use@1/vacant/shared/0"),
    (Mutant::AgeIgnored, "load@0+elsewhere@0/vacant/process/0"),
    (Mutant::AgeIgnored, "load@1+delete@0/vacant/failover/2"),
    (Mutant::AgeIgnored, "load@1+delete@0/vacant/fragile/3"),
    (Mutant::AgeIgnored, "load@1+delete@0/vacant/sensitive/2"),
    (Mutant::AgeIgnored, "load@1+elsewhere@0/vacant/near/0"),
    (Mutant::EvictionUnfenced, "load@1+save@0/cached/shared/2"),
    (Mutant::OutageFailsWrites, "save@0/vacant/sensitive/1"),
    (Mutant::FailClosedWrites, "load@1+save@0/cached/closed/1"),
    (Mutant::RotationNotedLate, "merge@0+renew@1/vacant/shared/0"),
    (Mutant::RightsRevealed, "open@0+cycle@0/vacant/shared/0"),
    (Mutant::LogoutNotFollowed, "log-out@0+renew@0/vacant/shared/0"),
    (Mutant::NearWithoutLease, "load@0+load@0+overwrite@0/ending/near/0"),
    (Mutant::NearBasisAtAnswer, "load@1+delete@0/cached/near/0/ticks2"),
    (Mutant::NearOlderAnswer, "load@1+delete@0/cached/near/0"),
    (Mutant::NearValuesKept, "load@1+delete@0/cached/near/1"),
    (Mutant::NearLeasesKept, "load@1+delete@0/ending/near/1"),
    (Mutant::NearOwnKept, "load@0+overwrite@0/cached/near/0"),
    (Mutant::NearOwnRemovedEarly, "load@0+load@0+overwrite@0/cached/near/0"),
    (Mutant::NearNoWait, "load@1+delete@0/cached/near/0"),
    (Mutant::NearWaitFromBeginning, "load@1+delete@0/cached/near/0/ticks1"),
    (Mutant::NearNoticeKeepsLease, "load@1+load@1+delete@0/ending/near/0"),
    (Mutant::NearNoticesLate, "load@1+delete@0/cached/near/0"),
    (Mutant::NearAlwaysFresh, "load@1+delete@0/cached/near/0"),
    (Mutant::NearFreshnessLast, "load@1+delete@0/cached/near/0"),
    (Mutant::NearStrictIgnored, "load@1+overwrite@0/cached/strict/0"),
    (Mutant::NearNeedsChannel, "load@0+load@0/vacant/deaf/0"),
    (Mutant::NearKeptOnBypass, "load@1+load@1+overwrite@0/cached/near/0/ticks1"),
    (Mutant::NearLedAtOnce, "load@1+follow@0+rename@0/cached/notified/0"),
    (Mutant::NotifiedFenceKept, "load@1+overwrite@0+overwrite@1/cached/notified/0/ticks1"),
    (Mutant::NotifiedKeptAtOpening, "load@1+overwrite@0+overwrite@1/vacant/notified/1"),
    (Mutant::NotifiedWaitFromFence, "load@1+delete@0/cached/notified/0/ticks2"),
    (Mutant::NotifiedStaleLookup, "load@1+delete@0/cached/notified/0"),
    (Mutant::NotifiedFillUnchecked, "load@1+load@1+delete@0/vacant/notified/0"),
];

/// The faults whose runs the specification permits, because they lie below it or beside it, each with the reason.
pub const UNSPECIFIED: &[(Mutant, &str)] = &[
    (Mutant::NeverPruned, "a writer may wait for another for longer than it must"),
    (Mutant::RevokeListsOnce, "it knows one session, and no subject that has several"),
    (Mutant::LosingIsOutage, "what a caller is told about the cache is no step"),
    (Mutant::QueueSkipped, "it knows no queue of a process: every writer may be alone"),
    (Mutant::BaseNotRenewed, "it knows no queue, and so no read that a writer could spare"),
    (Mutant::BatchAnswersEarly, "it knows no answer of a writer"),
    (Mutant::BreakerWaitsForQueue, "when the cache is asked again is no step"),
    (Mutant::RepairBlocksOthers, "it knows one session, and no order of repairs"),
    (Mutant::LeaderOwnsFlight, "a load that stands still makes no step"),
    (Mutant::CallerOwnsStatement, "a load that ends may leave its lease, like one that dies"),
    (Mutant::CallerOwnsRevocation, "a writer that stands still makes no step"),
    (Mutant::TouchRepeated, "a touch leaves the row as it is"),
    (Mutant::TouchNotDue, "a touch leaves the row as it is"),
    (Mutant::AgeIgnored, "a fence that was lost excuses what is shown for ever"),
    (Mutant::OutageFailsWrites, "what a caller is told about the cache is no step"),
    (Mutant::FailClosedWrites, "a writer may go on without a fence, or not"),
];

/// A mutant that was detected.
#[derive(Clone, Debug)]
pub struct Detection {
    /// The mutant.
    pub mutant: Mutant,
    /// The size of the exploration.
    pub explored: Explored,
    /// The shortest run that shows the fault.
    pub violation: Violation,
    /// The reason why the specification does not permit that run, or why it does.
    pub specified: String,
}

/// Detects `mutant` in the first scenario that is listed for it.
///
/// # Errors
///
/// As [`detect_in`] does, and if no scenario is listed.
pub fn detect(mutant: Mutant) -> Result<Detection, String> {
    let listed = SHOWN_IN.iter().find(|(listed, _)| *listed == mutant);
    let (_, name) = listed.ok_or_else(|| format!("no scenario is listed for {mutant:?}"))?;
    detect_in(mutant, name)
}

/// Detects `mutant` in the scenario with this name, which must hold without it, and break with it.
///
/// # Errors
///
/// Returns an error if the mutant is not found, or if the scenario breaks without it.
pub fn detect_in(mutant: Mutant, scenario: &str) -> Result<Detection, String> {
    let scenario: Scenario = scenario.parse()?;
    select_mutant(None);
    let (sound, violation) = explore(&scenario, false);
    if let Some(violation) = violation {
        return Err(format!("{} breaks without {mutant:?}: {}", violation.vector, violation.reason));
    }
    select_mutant(Some(mutant));
    // What the reductions leave out must hide no fault.
    let (_, reduced) = explore(&scenario, false);
    let (mut explored, violation) = explore(&scenario, true);
    let traced = violation.as_ref().and_then(|found| trace(&found.vector));
    select_mutant(None);
    explored += sound;
    let blind = || format!("{mutant:?} was not found in {scenario}: the simulator is blind to it");
    let violation = violation.ok_or_else(blind)?;
    if reduced.is_none() {
        return Err(format!("{mutant:?} in {scenario} is hidden by what the search leaves out"));
    }
    let unspecified = UNSPECIFIED.iter().find(|(listed, _)| *listed == mutant).map(|(_, reason)| *reason);
    let specified = match (traced, unspecified) {
        (None, _) => "not covered by the specification".to_owned(),
        (Some((steps, Some(refusal))), _) => format!("the specification refuses step {steps}: {refusal}"),
        (Some((steps, None)), Some(reason)) => {
            format!("the specification permits all {steps} steps: {reason}")
        }
        (Some(_), None) => {
            return Err(format!("the specification permits the run of {mutant:?}: {}", violation.vector));
        }
    };
    Ok(Detection { mutant, explored, violation, specified })
}

/// Detects all mutants in [all scenarios](SHOWN_IN) that are listed for them, and passes each result to `progress`.
pub fn detect_all(progress: impl Fn(Result<Detection, String>) + Sync) {
    on_all_cores(SHOWN_IN, |(mutant, scenario)| {
        progress(detect_in(*mutant, scenario));
        ControlFlow::Continue(())
    });
}
