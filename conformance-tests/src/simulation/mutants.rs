//! Detection of the seeded faults of the protocol.
//!
//! A simulator that finds nothing proves nothing, unless it would have found something.

use std::ops::ControlFlow;

use super::explore::{Explored, Violation, explore};
use super::scenario::Scenario;
use super::sweep::on_all_cores;
use super::{Mutant, select_mutant};

/// For each fault, a scenario in which a store with it breaks a promise, with as few faults of the world as
/// that takes.
const SHOWN_IN: &[(Mutant, &str)] = &[
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
    (Mutant::TouchRepeated, "use@0+use@0/vacant/shared/0"),
    (Mutant::TouchNotDue, "use@0+use@1/vacant/shared/0"),
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
    (Mutant::NearKeptOnBypass, "load@1+load@1+overwrite@0/cached/near/0/ticks1"),
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
}

/// Detects `mutant`: its scenario must hold without it, and break with it.
///
/// # Errors
///
/// Returns an error if the mutant is not found, or if the scenario breaks without it.
pub fn detect(mutant: Mutant) -> Result<Detection, String> {
    let Some((_, name)) = SHOWN_IN.iter().find(|(listed, _)| *listed == mutant) else {
        return Err(format!("no scenario is listed for {mutant:?}"));
    };
    let scenario: Scenario = name.parse()?;
    select_mutant(None);
    let (sound, violation) = explore(&scenario, false);
    if let Some(violation) = violation {
        return Err(format!("{} breaks without {mutant:?}: {}", violation.vector, violation.reason));
    }
    select_mutant(Some(mutant));
    let (mut explored, violation) = explore(&scenario, true);
    select_mutant(None);
    explored += sound;
    match violation {
        Some(violation) => Ok(Detection { mutant, explored, violation }),
        None => Err(format!("{mutant:?} was not found in {scenario}: the simulator is blind to it")),
    }
}

/// Detects all mutants, and passes each result to `progress`.
pub fn detect_all(progress: impl Fn(Result<Detection, String>) + Sync) {
    on_all_cores(Mutant::ALL, |&mutant| {
        progress(detect(mutant));
        ControlFlow::Continue(())
    });
}
