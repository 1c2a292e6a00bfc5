//! Services that are not served as they ask, or not in every part, and why: what log and status tell of them.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use super::{Sync, shown};
use crate::plan::Conflict;
use crate::snapshot::ObjectName;

/// Whose reasons are known. A Service may have one of its own and lose frontends to others besides: either goes alone.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// What its last plan could not do, or the tables did not take.
    own: BTreeMap<ObjectName, String>,
    conflicts: BTreeSet<Conflict>,
    /// Something is not told yet.
    untold: bool,
}

impl Refusals {
    /// The last plan of a Service left something undone.
    pub(super) fn refused(&mut self, service: &ObjectName, reason: String) {
        self.own.insert(service.clone(), reason);
        self.untold = true;
    }

    /// All of its last plan is done, or it is gone.
    pub(super) fn accepted(&mut self, service: &ObjectName) {
        self.untold |= self.own.remove(service).is_some();
    }

    /// Takes in the conflicts that are left when a burst is written; those that are new are logged.
    fn meet(&mut self, conflicts: BTreeSet<Conflict>) {
        for conflict in conflicts.difference(&self.conflicts) {
            warn!(%conflict, "could not serve part of a Service");
        }
        self.untold |= conflicts != self.conflicts;
        self.conflicts = conflicts;
    }

    /// Each such Service and a reason, if that changed since it was asked last.
    fn news(&mut self) -> Option<BTreeMap<String, String>> {
        std::mem::take(&mut self.untold).then(|| {
            let conflicts = self.conflicts.iter();
            let conflicts = conflicts.map(|found| (shown(&found.loser.service), found.to_string()));
            let own = self.own.iter();
            // The later one stays.
            conflicts
                .chain(own.map(|(service, reason)| (shown(service), reason.clone())))
                .collect()
        })
    }
}

impl Sync {
    /// Brings what is told up to date with what was written.
    pub(super) fn tell_refusals(&mut self) {
        self.refusals.meet(self.ledger.conflicts().collect());
        if let Some(refused) = self.refusals.news() {
            self.health.describe(|status| status.set_refused(refused));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServicePortId;
    use crate::snapshot::{Family, Protocol};

    fn name(name: &str) -> ObjectName {
        ObjectName {
            namespace: "ns".into(),
            name: name.into(),
        }
    }

    fn conflict() -> BTreeSet<Conflict> {
        let id = |service: &str| ServicePortId {
            service: name(service),
            port: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        BTreeSet::from([Conflict {
            loser: id("b"),
            address: [10, 96, 0, 1].into(),
            port: 80,
            winner: id("a"),
        }])
    }

    #[test]
    fn d22_who_loses_stays_refused_though_its_plans_are_done() {
        let mut refusals = Refusals::default();
        refusals.meet(conflict());
        let told = refusals.news().expect("a new one");
        assert!(told["Service ns/b"].contains("ns/a"), "{told:?}");
        refusals.accepted(&name("b"));
        refusals.meet(conflict());
        assert_eq!(refusals.news(), None);
        refusals.meet(BTreeSet::new());
        assert_eq!(refusals.news(), Some(BTreeMap::new()));
    }

    #[test]
    fn a_reason_of_its_own_outlives_a_conflict() {
        let mut refusals = Refusals::default();
        refusals.meet(conflict());
        refusals.refused(&name("b"), "the table is full".into());
        let full = BTreeMap::from([("Service ns/b".into(), "the table is full".into())]);
        assert_eq!(refusals.news(), Some(full.clone()));
        refusals.meet(BTreeSet::new());
        assert_eq!(refusals.news(), Some(full));
        refusals.accepted(&name("b"));
        assert_eq!(refusals.news(), Some(BTreeMap::new()));
    }
}
