//! Is the node's service routing alive and fresh? Answers for probes, load balancers and `beeline status`.
//!
//! [`Health`] is the handle the agent's loop writes to; servers read it. The rules are kube-proxy's
//! (spec §3.5): a family is stale when an update has been waiting for [`STALE_AFTER`], an idle family is
//! healthy for ever, and so is one that never synced. "Ready" is therefore a question of its own.

pub mod http;
pub mod probes;
pub mod service;
pub mod status;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::snapshot::Family;
use status::AgentStatus;

/// Twice kube-proxy's default `syncPeriod` of 30 s.
pub const STALE_AFTER: Duration = Duration::from_secs(60);

/// Shared handle; a clone is another reference to the same state.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    v4: FamilyState,
    v6: FamilyState,
    node_eligible: bool,
    ready: bool,
    status: AgentStatus,
}

#[derive(Clone, Copy, Default)]
struct FamilyState {
    updated: Option<SystemTime>,
    /// When the oldest update that is not applied yet came in.
    oldest_queued: Option<Instant>,
}

/// The state of affairs at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// No family is stale.
    pub healthy: bool,
    /// See [`Health::set_node_eligible`].
    pub node_eligible: bool,
    /// See [`Health::set_ready`].
    pub ready: bool,
    /// IPv4, then IPv6; `None` before the family's first sync.
    pub families: [Option<FamilyVerdict>; 2],
}

/// One family's part of a [`Verdict`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FamilyVerdict {
    pub last_updated: SystemTime,
    pub healthy: bool,
}

impl Health {
    /// An update of this family was received and is not in the kernel yet.
    pub fn queued(&self, family: Family) {
        self.queued_at(family, Instant::now());
    }

    /// Everything received for this family is in the kernel.
    pub fn updated(&self, family: Family) {
        self.updated_at(family, SystemTime::now());
    }

    /// Whether load balancers may send new connections here (KEP-3836): the Node exists, is not being
    /// deleted and is not tainted for removal. `false` until told otherwise, as a missing Node is not.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state().node_eligible = eligible;
    }

    /// The first complete picture of the cluster is in the kernel.
    pub fn set_ready(&self) {
        self.state().ready = true;
    }

    /// Changes what `beeline status` is told about the agent.
    pub fn describe(&self, change: impl FnOnce(&mut AgentStatus)) {
        change(&mut self.state().status);
    }

    /// What [`Health::describe`] built up.
    pub fn status(&self) -> AgentStatus {
        let state = self.state();
        let mut status = state.status.clone();
        status.ready = state.ready;
        status.node_eligible = state.node_eligible;
        status.last_sync = state.v4.updated.max(state.v6.updated).map(timestamp);
        status
    }

    /// Judges the present moment.
    pub fn verdict(&self) -> Verdict {
        self.verdict_at(Instant::now())
    }

    pub(crate) fn queued_at(&self, family: Family, now: Instant) {
        self.state().family(family).oldest_queued.get_or_insert(now);
    }

    fn updated_at(&self, family: Family, now: SystemTime) {
        *self.state().family(family) = FamilyState {
            updated: Some(now),
            oldest_queued: None,
        };
    }

    pub(crate) fn verdict_at(&self, now: Instant) -> Verdict {
        let state = self.state();
        let families = [state.v4, state.v6].map(|family| {
            // As kube-proxy has it, the age of an update counts only once the family has synced.
            family.updated.map(|last_updated| FamilyVerdict {
                last_updated,
                healthy: family
                    .oldest_queued
                    .is_none_or(|since| now.saturating_duration_since(since) < STALE_AFTER),
            })
        });
        Verdict {
            healthy: families.iter().flatten().all(|family| family.healthy),
            node_eligible: state.node_eligible,
            ready: state.ready,
            families,
        }
    }

    /// A panic of another holder leaves plain values, none half-written that matters.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn family(&mut self, family: Family) -> &mut FamilyState {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// RFC 3339 in UTC, as Go prints a time in JSON.
pub fn timestamp(time: SystemTime) -> String {
    // Only years beyond 9999 fail; a clock that far off is shown as the epoch.
    k8s_openapi::jiff::Timestamp::try_from(time)
        .unwrap_or(k8s_openapi::jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_synced_is_healthy_but_not_ready() {
        let health = Health::default();
        health.queued_at(Family::V4, Instant::now());
        let verdict = health.verdict_at(Instant::now() + 10 * STALE_AFTER);
        assert_eq!(
            verdict,
            Verdict {
                healthy: true,
                node_eligible: false,
                ready: false,
                families: [None, None]
            }
        );
    }

    #[test]
    fn idle_stays_healthy_for_ever() {
        let health = Health::default();
        health.updated(Family::V4);
        assert!(
            health
                .verdict_at(Instant::now() + Duration::from_secs(1_000_000))
                .healthy
        );
    }

    #[test]
    fn the_oldest_waiting_update_decides_and_one_stale_family_is_enough() {
        let health = Health::default();
        let start = Instant::now();
        health.updated(Family::V4);
        health.updated(Family::V6);
        health.queued_at(Family::V6, start);
        health.queued_at(Family::V6, start + Duration::from_secs(59));
        assert!(
            health
                .verdict_at(start + STALE_AFTER - Duration::from_millis(1))
                .healthy
        );

        let stale = health.verdict_at(start + STALE_AFTER);
        assert!(!stale.healthy);
        assert_eq!(
            stale.families.map(|f| f.map(|f| f.healthy)),
            [Some(true), Some(false)]
        );

        health.updated(Family::V6);
        assert!(health.verdict_at(start + STALE_AFTER).healthy);
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        assert_eq!(timestamp(time), "2023-11-14T22:13:20.25Z");
    }
}
