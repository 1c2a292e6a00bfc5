//! What was written, as health and metrics are told.

use std::time::Instant;

use tracing::{debug, warn};

use super::Sync;
use crate::metrics::{Extent, Policy};
use crate::snapshot::{Family, Kind};

impl Sync {
    /// Whether the source can follow changes of a kind.
    pub(super) fn connected(&mut self, kind: Kind, connected: bool) {
        self.metrics.source_connected(kind, connected);
        if connected {
            self.lost.remove(&kind);
        } else {
            self.lost.insert(kind);
        }
        let all = self.lost.is_empty();
        self.health.describe(|status| status.source_connected = all);
    }

    /// Tells health and metrics that everything received is written.
    pub(super) fn report(&mut self, received: Instant, extent: Extent) {
        let took = received.elapsed();
        for family in [Family::V4, Family::V6] {
            // What is not written makes the node stale after a while (spec §3.5).
            if self.ready && !self.node_changed && self.failed.leaves_node_in_sync() {
                self.health.updated(family);
                self.metrics.in_sync(family);
            }
            self.metrics.synced(family, took, extent);
            for policy in [Policy::Internal, Policy::External] {
                let count = self
                    .no_local
                    .values()
                    .flatten()
                    .filter(|without| **without == (policy, family))
                    .count();
                self.metrics.no_local_endpoints(policy, family, count);
            }
        }
        self.metrics.programmed(took);
        self.metrics.changes_pending(self.failed.len(), 0);
        debug!(?took, "wrote changes");
    }

    /// Notes the tables' sizes for the metrics.
    pub(super) fn measure(&mut self) {
        match self.datapath.tables().usage() {
            Ok(usage) => self.gauges.measured(usage),
            Err(error) => warn!(%error, "could not read the tables' sizes"),
        }
        self.metrics
            .size(self.ledger.service_ports(), self.ledger.endpoints());
    }
}
