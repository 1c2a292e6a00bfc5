//! Services that are not served as they ask, or not in every part, and why: what log and status tell of them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use tracing::warn;

use super::{Sync, shown};
use crate::plan::Conflict;
use crate::snapshot::ObjectName;

/// Whose reasons are known. A Service may have one of its own and lose frontends to others besides: either goes alone.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// What its last plan could not do, or the tables did not take.
    own: BTreeMap<ObjectName, String>,
    /// The first that each Service loses, and how many more.
    conflicts: BTreeMap<ObjectName, (Conflict, usize)>,
    /// Of which the ledger had these.
    contests: u64,
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

    /// Takes in the conflicts that are left when a burst is written. A Service that loses is logged once for the first,
    /// as it may lose as many as an object has room for.
    fn meet(&mut self, conflicts: impl Iterator<Item = Conflict>) {
        let mut lost: BTreeMap<ObjectName, (Conflict, usize)> = BTreeMap::new();
        for found in conflicts {
            match lost.entry(found.loser.service.clone()) {
                Entry::Vacant(first) => drop(first.insert((found, 0))),
                Entry::Occupied(mut known) => {
                    let (first, more) = known.get_mut();
                    *more += 1;
                    if found < *first {
                        *first = found;
                    }
                }
            }
        }
        for (loser, (first, more)) in &lost {
            if self.conflicts.get(loser).map(|(known, _)| known) != Some(first) {
                warn!(conflict = %first, more, "could not serve part of a Service");
            }
        }
        self.untold |= lost != self.conflicts;
        self.conflicts = lost;
    }

    /// Each such Service and a reason, if that changed since it was asked last.
    fn news(&mut self) -> Option<BTreeMap<String, String>> {
        std::mem::take(&mut self.untold).then(|| {
            let conflicts = self.conflicts.iter();
            let conflicts = conflicts.map(|(loser, (first, more))| match more {
                0 => (shown(loser), first.to_string()),
                _ => (shown(loser), format!("{first}; and {more} more like it")),
            });
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
        if self.refusals.contests != self.ledger.contests() {
            self.refusals.contests = self.ledger.contests();
            self.refusals.meet(self.ledger.conflicts());
        }
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

    fn conflict() -> Conflict {
        let id = |service: &str| ServicePortId {
            service: name(service),
            port: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        Conflict {
            loser: id("b"),
            address: [10, 96, 0, 1].into(),
            port: 80,
            winner: id("a"),
        }
    }

    #[test]
    fn d22_who_loses_stays_refused_though_its_plans_are_done() {
        let mut refusals = Refusals::default();
        refusals.meet([conflict()].into_iter());
        let told = refusals.news().expect("a new one");
        assert!(told["Service ns/b"].contains("ns/a"), "{told:?}");
        refusals.accepted(&name("b"));
        refusals.meet([conflict()].into_iter());
        assert_eq!(refusals.news(), None);
        refusals.meet([].into_iter());
        assert_eq!(refusals.news(), Some(BTreeMap::new()));
    }

    #[test]
    fn d22_who_loses_much_is_told_the_first_of_it() {
        let mut refusals = Refusals::default();
        let all = (0..1_000).rev().map(|port| Conflict { port, ..conflict() });
        refusals.meet(all);
        let told = refusals.news().expect("new");
        let told = &told["Service ns/b"];
        assert!(
            told.contains("port 0:") && told.ends_with("999 more like it"),
            "{told}"
        );
    }

    #[test]
    fn a_reason_of_its_own_outlives_a_conflict() {
        let mut refusals = Refusals::default();
        refusals.meet([conflict()].into_iter());
        refusals.refused(&name("b"), "the table is full".into());
        let full = BTreeMap::from([("Service ns/b".into(), "the table is full".into())]);
        assert_eq!(refusals.news(), Some(full.clone()));
        refusals.meet([].into_iter());
        assert_eq!(refusals.news(), Some(full));
        refusals.accepted(&name("b"));
        assert_eq!(refusals.news(), Some(BTreeMap::new()));
    }
}
