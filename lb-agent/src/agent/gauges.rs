//! Figures for the metrics that cost something to read, or that several Services share.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use crate::datapath;
use crate::metrics::{Metrics, Policy};
use crate::model::{self, ServicePort, Verdict};
use crate::snapshot::Family;

/// Name, entries and capacity of a table.
type TableUsage = (&'static str, usize, usize);

/// Figures that are read only when somebody asks for metrics.
#[derive(Clone)]
pub(super) struct Gauges {
    usage: Arc<Mutex<Vec<TableUsage>>>,
    reader: Arc<datapath::Reader>,
}

impl Gauges {
    /// Nothing measured yet.
    pub(super) fn new(reader: datapath::Reader) -> Self {
        Self {
            usage: Arc::default(),
            reader: Arc::new(reader),
        }
    }

    /// Notes the tables' sizes.
    pub(super) fn measured(&self, usage: Vec<TableUsage>) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    /// Fills in table sizes and the programs' counters.
    pub(super) fn refresh(&self, metrics: &Metrics) {
        for &(table, entries, capacity) in self
            .usage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            metrics.table(table, entries, capacity);
        }
        match self.reader.counters() {
            Ok(counters) => metrics.datapath(&counters),
            Err(error) => warn!(%error, "could not read the programs' counters"),
        }
    }
}

/// Service ports to which new connections get no answer as a Local policy finds no endpoint here.
pub(super) fn without_local_endpoints(ports: &[ServicePort]) -> Vec<(Policy, Family)> {
    let mut without = Vec::new();
    for port in ports {
        for frontend in port
            .frontends
            .iter()
            .filter(|frontend| frontend.local_policy)
        {
            let policy = if frontend.kind == model::FrontendKind::ClusterIp {
                Policy::Internal
            } else {
                Policy::External
            };
            let known = (policy, port.id.family);
            if port.verdict(frontend) == Verdict::Drop && !without.contains(&known) {
                without.push(known);
            }
        }
    }
    without
}
