//! This node's devices and addresses, as they come and go.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use super::Sync;
use crate::datapath::{self, Picture, Restored, Seat};

impl Sync {
    /// Takes in a new picture of this node's devices and addresses.
    pub(in crate::agent) fn see_node(&mut self, picture: Picture) -> anyhow::Result<()> {
        let mut own: Vec<IpAddr> = picture
            .addresses
            .iter()
            .map(|own| own.address)
            .filter(|address| !datapath::is_unroutable(*address))
            .collect();
        own.sort_unstable();
        own.dedup();
        self.node_changed |= own != self.own_addresses || self.picture.is_none();
        self.own_addresses = own;
        self.picture = Some(picture);
        if self.complete() {
            // Before the first write, they come with it.
            if self.ready {
                self.follow_devices()?;
            }
            if self.node_changed {
                self.write(Instant::now())?;
            }
        }
        Ok(())
    }

    /// Makes the right devices have packet programs. Waits for the Node object, which may tell an uplink from a
    /// pod's device.
    pub(super) fn follow_devices(&mut self) -> anyhow::Result<()> {
        let Some(picture) = &self.picture else {
            return Ok(());
        };
        let node_addresses = self.snapshot.node().map(|node| node.addresses.as_slice());
        let choice = picture.choose(&self.selection, node_addresses.unwrap_or_default());
        if choice.left_out != self.left_out {
            for (device, reason) in &choice.left_out {
                if !self.left_out.contains_key(device) {
                    warn!(
                        device,
                        reason, "left a device out: services are not served on it"
                    );
                }
            }
            self.left_out = choice.left_out;
            let shown = self.left_out.iter();
            let shown = shown.map(|(name, reason)| (name.clone(), (*reason).to_owned()));
            let shown = shown.collect();
            self.health
                .describe(|status| status.devices_left_out = shown);
        }
        let changes = self.datapath.set_devices(&choice.chosen)?;
        for (device, error) in &changes.failed {
            warn!(
                device,
                error, "could not attach the packet programs; trying again at the next change"
            );
        }
        self.describe_xdp();
        if !changes.attached.is_empty() || !changes.forgotten.is_empty() {
            info!(attached = ?changes.attached, forgotten = changes.forgotten.len(), "followed this node's devices");
        }
        Ok(())
    }

    /// Puts back what somebody else took away: attached programs, and the names of tables and programs (spec J5).
    pub(super) fn restore(&mut self) {
        let (restored, outcome) = self.datapath.restore();
        if restored != Restored::default() {
            warn!(
                names = restored.names,
                socket_hooks = restored.socket_hooks,
                devices = ?restored.devices,
                "somebody took programs off or removed their names: put back"
            );
        }
        if let Err(error) = outcome {
            warn!(%error, "could not put back what somebody took away; trying again");
        }
    }

    /// Loads programs that no device needs yet, aside, once everything else is done.
    pub(super) fn prepare_programs(&mut self) {
        if self.ready && !std::mem::replace(&mut self.prepared, true) {
            let late = Arc::clone(self.datapath.late());
            tokio::task::spawn_blocking(move || late.prepare());
        }
    }

    /// Tries again where XDP may have become possible, and notes what devices can send for it now.
    pub(super) fn follow_xdp(&mut self) {
        match self.datapath.follow_xdp() {
            Ok(()) => self.describe_xdp(),
            Err(error) => warn!(%error, "could not follow the devices' XDP; trying again"),
        }
    }

    /// Tells log and status, once each, where XDP sits and why it does not.
    fn describe_xdp(&mut self) {
        let seats = self.datapath.seats().into_iter();
        let seats: BTreeMap<String, Seat> = seats
            .map(|(name, seat)| (name.to_owned(), seat.clone()))
            .collect();
        if seats == self.seats {
            return;
        }
        for (device, seat) in &seats {
            if self.seats.get(device) == Some(seat) {
                continue;
            }
            match seat {
                Seat::On(mode) => info!(device, mode = mode.name(), "XDP serves this uplink"),
                Seat::Unwanted(reason) => info!(device, reason, "no XDP on this uplink"),
                Seat::Taken(reason) | Seat::Refused(reason) => {
                    warn!(
                        device,
                        reason, "no XDP on this uplink: tc does all of the work"
                    );
                }
            }
        }
        let reasons = seats.iter();
        let reasons =
            reasons.filter_map(|(name, seat)| Some((name.clone(), seat.reason()?.to_owned())));
        let reasons = reasons.collect();
        self.health.describe(|status| status.without_xdp = reasons);
        self.seats = seats;
    }
}
