//! The first complete picture.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::Context as _;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::{Sync, micros};
use crate::cleanup;
use crate::config::{SocketLb, SourceConfig};
use crate::datapath::attach::PacketHook;
use crate::snapshot::{Family, ObjectName};
use crate::sys::cgroup;

impl Sync {
    /// The first complete picture is written: start serving, and take away what the cluster no longer has.
    ///
    /// Programs come after what they go by: they drop what goes to an address of the service CIDRs that no service has, and
    /// until they are there, whoever served here before still does.
    pub(super) fn become_ready(&mut self, received: Instant) -> anyhow::Result<()> {
        self.finish_loading()?;
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
        self.follow_sockets()?;
        self.ready = true;
        let eligible = match self.snapshot.node() {
            Some(node) => !node.draining,
            None => matches!(self.config.source, SourceConfig::Manifests(_)),
        };
        self.health.set_node_eligible(eligible);
        self.health.set_ready();
        for family in [Family::V4, Family::V6] {
            // From now on what waits for too long counts, also where one Service has failed from the start.
            self.health.updated(family);
        }
        self.metrics.set_ready();
        self.measure();
        info!(
            services = seen.len(),
            service_ports = self.ledger.service_ports(),
            loaded_us = micros(self.first_event.unwrap_or(received)),
            written_us = micros(received),
            "serving"
        );
        self.remove_other_versions();
        Ok(())
    }

    /// Waits for programs that are still being loaded. Sockets are served meanwhile: what they connect to by a Service's
    /// address meets no packet program that it would need.
    fn finish_loading(&mut self) -> anyhow::Result<()> {
        if self.datapath.programs_are_coming() {
            self.follow_sockets()?;
            info!(
                sockets_served = self.config.socket_lb != SocketLb::Off,
                "waiting for the programs that see packets"
            );
            if let Err(error) = self.datapath.finish() {
                // Nothing served here before, and half of it is not what anybody asked for.
                self.datapath.detach_sockets()?;
                return Err(error.into());
            }
        }
        Ok(self.datapath.finish()?)
    }

    /// Attaches the socket hooks, or takes off what a former agent attached.
    fn follow_sockets(&mut self) -> anyhow::Result<()> {
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
        Ok(())
    }

    /// Programs of another table layout would go on translating, some of them before ours, by tables that nobody updates.
    fn remove_other_versions(&self) {
        let bpffs = self.config.bpffs.clone();
        let hook = self.datapath.packet_hook();
        let own = match hook {
            PacketHook::Clsact => self.datapath.devices().values(),
            PacketHook::Tcx => Default::default(),
        };
        let own = own.map(|chosen| chosen.name.clone()).collect();
        let remove = move || match cleanup::remove_other_versions(&bpffs, &own) {
            None => {}
            Some(report) if report.is_complete() => {
                info!(%report, "took off what an agent of another version left");
            }
            Some(report) => warn!(
                %report,
                "could not take off all that an agent of another version left, which goes by old tables; \
                 stop the agent, run `beeline cleanup` and start it again"
            ),
        };
        match hook {
            // No device may become ours meanwhile.
            PacketHook::Clsact => remove(),
            // The kernel waits for running programs with each of many links: beside everything else.
            PacketHook::Tcx => drop(spawn_blocking(remove)),
        }
    }
}
