//! The first complete picture.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::Context as _;
use tracing::info;

use super::{Sync, micros};
use crate::config::{SocketLb, SourceConfig};
use crate::snapshot::ObjectName;
use crate::sys::cgroup;

impl Sync {
    /// The first complete picture is written: start serving, and take away what the cluster no longer has.
    ///
    /// Programs come after what they go by: they drop what goes to an address of the service CIDRs that no service has, and
    /// until they are there, whoever served here before still does.
    pub(super) fn become_ready(&mut self, received: Instant) -> anyhow::Result<()> {
        self.attach_devices()?;
        let seen: HashSet<ObjectName> = self
            .snapshot
            .services()
            .map(|service| service.name.clone())
            .collect();
        let plan = self.ledger.finish_adoption(&seen);
        if !plan.is_empty() {
            self.execute(vec![(None, plan)]);
        }
        match self.config.socket_lb {
            SocketLb::Off => {
                self.datapath.detach_sockets()?;
            }
            SocketLb::All | SocketLb::Host => {
                let directory = match &self.config.cgroup {
                    Some(directory) => cgroup::hierarchy(directory),
                    None => cgroup::root()
                        .context("find the cgroup v2 hierarchy; name it with --cgroup")?,
                };
                self.datapath.attach_sockets(&directory)?;
            }
        }
        self.ready = true;
        let eligible = match self.snapshot.node() {
            Some(node) => !node.draining,
            None => matches!(self.config.source, SourceConfig::Manifests(_)),
        };
        self.health.set_node_eligible(eligible);
        self.health.set_ready();
        self.metrics.set_ready();
        self.measure();
        info!(
            services = seen.len(),
            service_ports = self.ledger.service_ports(),
            loaded_us = micros(self.first_event.unwrap_or(received)),
            written_us = micros(received),
            "serving"
        );
        Ok(())
    }
}
