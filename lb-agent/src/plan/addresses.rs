//! What each address is used for, counted, so that the last user takes the flag away.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_ebpf::abi::address::{
    CLUSTER_IP, EXTERNAL, LINGERING, LOOPBACK, NODE, NODE_LOCAL, TOMBSTONE,
};

use super::Write;
use super::draft::Draft;
use crate::model::FrontendKind;

/// Marks a record whose last write may not have been done. No set of flags looks like it.
const UNKNOWN: u32 = u32::MAX;
/// Flags that open the way to frontends: they go after the frontends.
const OPENING: u32 = CLUSTER_IP | EXTERNAL | OF_NODE;
/// Flags that an address has as one of the node's.
const OF_NODE: u32 = NODE | NODE_LOCAL | LOOPBACK;

/// The node's addresses by use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeAddresses<'a> {
    /// NodePorts are served on them.
    pub nodeport: &'a [IpAddr],
    /// NodePorts are served on them to the node's own processes.
    pub loopback: &'a [IpAddr],
    /// All that others may send to.
    pub all: &'a [IpAddr],
}

#[derive(Debug, Default)]
struct Uses {
    /// Flags in the kernel, 0 for none, or [`UNKNOWN`].
    written: u32,
    cluster_ip: u32,
    external: u32,
    tombstones: u32,
    /// Those of [`OF_NODE`].
    node: u32,
    /// When the last Service left.
    lingering: Option<u32>,
}

/// Uses of all addresses of both families.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    table: HashMap<IpAddr, Uses>,
    /// Addresses whose flags may have to be written.
    touched: Vec<IpAddr>,
}

impl Uses {
    fn flags(&self) -> u32 {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        bit(self.cluster_ip > 0, CLUSTER_IP)
            | bit(self.external > 0, EXTERNAL)
            | bit(self.tombstones > 0, TOMBSTONE)
            | bit(self.lingering.is_some(), LINGERING)
            | self.node
    }

    fn count(&mut self, kind: FrontendKind) -> Option<&mut u32> {
        match kind {
            FrontendKind::ClusterIp => Some(&mut self.cluster_ip),
            FrontendKind::ExternalIp | FrontendKind::LoadBalancer => Some(&mut self.external),
            // Filed under the unspecified address; the node's addresses carry the flag.
            FrontendKind::NodePort => None,
        }
    }
}

impl Addresses {
    /// A frontend on `address` begins.
    pub(super) fn claim(&mut self, address: IpAddr, kind: FrontendKind) {
        if kind == FrontendKind::NodePort {
            return;
        }
        let uses = self.touch(address);
        if let Some(count) = uses.count(kind) {
            *count += 1;
            uses.lingering = None;
        }
    }

    /// A frontend on `address` ends; flows through it may go on.
    pub(super) fn unclaim(&mut self, address: IpAddr, kind: FrontendKind, now: u32) {
        if kind == FrontendKind::NodePort {
            return;
        }
        let uses = self.touch(address);
        if let Some(count) = uses.count(kind) {
            *count = count.saturating_sub(1);
        }
        // There are no flows through one that was never opened, or was taken back.
        if uses.cluster_ip == 0 && uses.external == 0 && uses.written != 0 {
            uses.lingering = Some(now);
        }
    }

    pub(super) fn tombstone(&mut self, address: IpAddr, present: bool) {
        let uses = self.touch(address);
        uses.tombstones = if present {
            uses.tombstones + 1
        } else {
            uses.tombstones.saturating_sub(1)
        };
    }

    pub(super) fn set_node(&mut self, node: &NodeAddresses<'_>) {
        let mut wanted: HashMap<IpAddr, u32> = HashMap::new();
        for (list, flag) in [
            (node.nodeport, NODE),
            (node.all, NODE_LOCAL),
            (node.loopback, LOOPBACK),
        ] {
            list.iter()
                .for_each(|address| *wanted.entry(*address).or_default() |= flag);
        }
        for (address, uses) in &mut self.table {
            if uses.node != 0 && !wanted.contains_key(address) {
                uses.node = 0;
                self.touched.push(*address);
            }
        }
        for (address, flags) in wanted {
            self.touch(address).node = flags;
        }
    }

    /// Ends what has lingered since before `deadline`, and the oldest of more than `most`: others need the room.
    pub(super) fn end_lingering(&mut self, mut deadline: Option<u32>, most: usize) {
        let mut since: Vec<u32> = self
            .table
            .values()
            .filter_map(|uses| uses.lingering)
            .collect();
        if let Some(oldest) = since.len().checked_sub(most + 1) {
            let (_, last, _) = since.select_nth_unstable(oldest);
            deadline = deadline.max(Some(*last));
        }
        let Some(deadline) = deadline else { return };
        for (address, uses) in &mut self.table {
            if uses.lingering.is_some_and(|since| since <= deadline) {
                uses.lingering = None;
                self.touched.push(*address);
            }
        }
    }

    /// Takes over a record from the kernel.
    pub(super) fn adopt(&mut self, address: IpAddr, flags: u32, now: u32) {
        let uses = self.table.entry(address).or_default();
        uses.written = flags;
        uses.node = flags & OF_NODE;
        uses.lingering = (flags & LINGERING != 0).then_some(now);
    }

    /// Services of the kernel's are counted; what differs is written when all are known.
    pub(super) fn adopted(&mut self) {
        self.touched.clear();
    }

    /// All Services are known: what still has a Service's flags and no Service lingers.
    pub(super) fn finish_adoption(&mut self, now: u32) {
        for (address, uses) in &mut self.table {
            let orphan = uses.written & (CLUSTER_IP | EXTERNAL) != 0
                && uses.cluster_ip == 0
                && uses.external == 0;
            if orphan && uses.lingering.is_none() {
                uses.lingering = Some(now);
            }
            // One that waits for a failed plan's frontends goes on waiting.
            if uses.written != UNKNOWN {
                self.touched.push(*address);
            }
        }
    }

    /// The last write of this address may not have been done. The next one must not come before what its plan
    /// wanted to write first, so it waits for [`Addresses::settle`].
    pub(super) fn doubt(&mut self, address: IpAddr) {
        self.table.entry(address).or_default().written = UNKNOWN;
    }

    /// What a doubted address waited for is in this plan.
    pub(super) fn settle(&mut self, address: IpAddr) {
        self.touch(address);
    }

    /// Whether the kernel has `address` with these flags for `frontends` frontends and nothing else; then forgets that
    /// it has. The next write waits for [`Addresses::settle`] or for another user.
    pub(super) fn take_back(&mut self, address: IpAddr, flags: u32, frontends: u32) -> bool {
        let only = |uses: &&mut Uses| {
            let others = uses.tombstones > 0 || uses.node != 0;
            uses.written == flags && uses.cluster_ip + uses.external == frontends && !others
        };
        let uses = self.table.get_mut(&address).filter(only);
        uses.map(|uses| uses.written = 0).is_some()
    }

    /// The writes that are due: those that open an address, and those that close one.
    pub(super) fn flush(&mut self, draft: &mut Draft) {
        self.touched.sort_unstable();
        self.touched.dedup();
        for address in self.touched.drain(..) {
            let Some(uses) = self.table.get_mut(&address) else {
                continue;
            };
            let flags = uses.flags();
            if flags != uses.written {
                let closes = uses.written & !flags & OPENING != 0 || flags & OPENING == 0;
                let list = if closes {
                    &mut draft.closing
                } else if uses.written == 0 {
                    &mut draft.new_addresses
                } else {
                    &mut draft.opening
                };
                list.push(Write::Address { address, flags });
                uses.written = flags;
            }
            if flags == 0 {
                self.table.remove(&address);
            }
        }
        // A complete list of addresses is no measure for later changes.
        self.touched.shrink_to(64);
    }

    fn touch(&mut self, address: IpAddr) -> &mut Uses {
        self.touched.push(address);
        self.table.entry(address).or_default()
    }
}
