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
        if self.complete() && self.node_changed {
            // Which follows the devices, too.
            return self.write(Instant::now());
        }
        self.follow_devices()
    }

    /// Makes the right devices have packet programs, once the node is served: they come with the first write.
    pub(super) fn follow_devices(&mut self) -> anyhow::Result<()> {
        if self.ready {
            self.attach_devices()?;
        }
        Ok(())
    }

    /// As [`Sync::follow_devices`]. Waits for the Node object, which may tell an uplink from a pod's device.
    pub(super) fn attach_devices(&mut self) -> anyhow::Result<()> {
        let Some(picture) = &self.picture else {
            return Ok(());
        };
        let choice = picture.choose(&self.selection, &self.told.addresses);
        let changes = self.datapath.set_devices(&choice.chosen)?;
        self.tell_unserved(choice.left_out, changes.failed.into_iter().collect());
        self.describe_xdp();
        if !changes.attached.is_empty() || !changes.forgotten.is_empty() {
            info!(attached = ?changes.attached, forgotten = changes.forgotten.len(), "followed this node's devices");
        }
        Ok(())
    }

    /// Tells log and status, once each, which devices have no programs, by choice or because attaching failed, and why.
    fn tell_unserved(
        &mut self,
        left_out: BTreeMap<String, &'static str>,
        unattached: BTreeMap<String, String>,
    ) {
        if left_out == self.left_out && unattached == self.unattached {
            return;
        }
        for (device, reason) in &left_out {
            if !self.left_out.contains_key(device) {
                warn!(
                    device,
                    reason, "left a device out: services are not served on it"
                );
            }
        }
        for (device, error) in &unattached {
            if self.unattached.get(device) != Some(error) {
                warn!(
                    device,
                    error,
                    "could not attach the packet programs: services are not served on this device; trying again every \
                     few seconds"
                );
            }
        }
        let chosen = left_out.iter();
        let chosen = chosen.map(|(name, reason)| (name.clone(), (*reason).to_owned()));
        let shown = chosen.chain(unattached.clone()).collect();
        self.health
            .describe(|status| status.devices_left_out = shown);
        (self.left_out, self.unattached) = (left_out, unattached);
    }

    /// Tries again where programs could not be attached: what kept them off may have been a shortage of the moment.
    pub(super) fn follow_unattached(&mut self) -> anyhow::Result<()> {
        if !self.unattached.is_empty() {
            self.follow_devices()?;
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
