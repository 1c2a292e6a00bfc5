//! Services whose last writes failed, and what that says of the node.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::datapath::Failure;
use crate::snapshot::ObjectName;

/// What a failure is to be laid to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Blame {
    /// The Service asks for more than there is room for, or waits for one that does. The others are served.
    Service,
    /// The tables, which took what fits no better from any other Service.
    Tables,
}

impl Blame {
    pub(super) fn of(failure: &Failure) -> Self {
        if failure.is_its_own() {
            Self::Service
        } else {
            Self::Tables
        }
    }
}

/// Services to try again, each with the time when it failed.
#[derive(Debug, Default)]
pub(super) struct Failed(HashMap<ObjectName, (Blame, Instant)>);

impl Failed {
    pub(super) fn insert(&mut self, service: ObjectName, blame: Blame, now: Instant) {
        self.0.insert(service, (blame, now));
    }

    /// It is about to be tried.
    pub(super) fn forget(&mut self, service: &ObjectName) {
        self.0.remove(service);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes out those that failed `pause` before `now` at the latest. One that changes all the time keeps no other waiting.
    pub(super) fn take_due(&mut self, now: Instant, pause: Duration) -> Vec<ObjectName> {
        let due = self.0.extract_if(|_, (_, failed)| *failed + pause <= now);
        due.map(|(service, _)| service).collect()
    }

    /// Whether all that is to be had is written. A Service that cannot be written is named by `beeline status`, and
    /// no reason to take this node from the load balancers of all others (spec §3.5).
    pub(super) fn leaves_node_in_sync(&self) -> bool {
        self.0.values().all(|(blame, _)| *blame == Blame::Service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Health, STALE_AFTER};
    use crate::snapshot::Family;
    use crate::sys::bpf::Error;

    fn failure(errno: i32) -> Failure {
        Failure {
            plan: 0,
            from: 0,
            table: "frontends4",
            usage: None,
            error: Error::from_errno("update map", errno),
        }
    }

    fn name(name: &str) -> ObjectName {
        ObjectName {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    #[test]
    fn one_that_fails_again_and_again_keeps_no_other_waiting() {
        let (start, pause) = (Instant::now(), Duration::from_secs(3));
        let mut failed = Failed::default();
        failed.insert(name("once"), Blame::Service, start);
        for second in 0..4 {
            let now = start + Duration::from_secs(second);
            failed.insert(name("often"), Blame::Service, now);
        }
        let now = start + pause;
        assert_eq!(failed.take_due(now, pause), [name("once")]);
        assert_eq!(failed.take_due(now + pause, pause), [name("often")]);
        assert_eq!(failed.len(), 0);
    }

    /// Whether the node is healthy a minute after a change that failed so.
    fn healthy_after(failures: &[i32]) -> bool {
        let (health, mut failed) = (Health::default(), Failed::default());
        health.updated(Family::V4);
        let queued = Instant::now();
        health.queued_at(Family::V4, queued);
        for (number, errno) in failures.iter().enumerate() {
            failed.insert(
                name(&number.to_string()),
                Blame::of(&failure(*errno)),
                queued,
            );
        }
        if failed.leaves_node_in_sync() {
            health.updated(Family::V4);
        }
        health.verdict_at(queued + STALE_AFTER).healthy
    }

    /// Spec §3.5.
    #[test]
    fn a_service_that_does_not_fit_leaves_the_node_healthy() {
        assert!(healthy_after(&[]));
        assert!(healthy_after(&[libc::E2BIG, libc::ENOSPC, 0]));
    }

    /// Spec §3.5.
    #[test]
    fn tables_that_take_nothing_make_the_node_stale() {
        assert!(!healthy_after(&[libc::EPERM]));
        assert!(!healthy_after(&[libc::E2BIG, libc::ENOMEM]));
    }
}
