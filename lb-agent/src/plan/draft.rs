//! A plan in the making: writes sorted into the phases of `plan`'s module documentation.

use lb_ebpf::abi::endpoint::EndpointState;

use super::claims::FrontendId;
use super::port::Range;
use super::udp::{Parting, UdpEndpoint};
use super::{Plan, Problem, Retired, Write};

/// Writes by phase, in the order they will be done.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) names: Vec<Write>,
    /// States of ids that nobody may miss: new ones, and those that only gain.
    pub(super) states: Vec<Write>,
    pub(super) blocks: Vec<Write>,
    /// Tombstones lifted and source ranges added.
    pub(super) permits: Vec<Write>,
    /// Under keys that held something before.
    pub(super) frontends: Vec<Write>,
    /// Under keys that held nothing.
    pub(super) new_frontends: Vec<Write>,
    /// Addresses that were nobody's.
    pub(super) new_addresses: Vec<Write>,
    pub(super) opening: Vec<Write>,
    pub(super) frontends_gone: Vec<Write>,
    /// States of ids that lose something.
    pub(super) late_states: Vec<Write>,
    /// Tombstones set and source ranges removed.
    pub(super) withdrawals: Vec<Write>,
    pub(super) closing: Vec<Write>,
    pub(super) names_gone: Vec<Write>,
    pub(super) retire: Retired,
    pub(super) problems: Vec<Problem>,

    /// Frontends to settle.
    pub(super) touched: Vec<FrontendId>,
    /// UDP endpoints that service ports had, and how they parted.
    pub(super) parted: Vec<(UdpEndpoint, Parting)>,
    /// Removals of an earlier, failed plan, to be done if they are still right.
    pub(super) outstanding: Vec<Write>,
}

impl Draft {
    pub(super) fn state(&mut self, id: u32, state: EndpointState, late: bool) {
        let list = if late {
            &mut self.late_states
        } else {
            &mut self.states
        };
        list.push(Write::EndpointState { id, state });
    }

    pub(super) fn range(&mut self, service: u32, (address, length): Range, allowed: bool) {
        let list = if allowed {
            &mut self.permits
        } else {
            &mut self.withdrawals
        };
        list.push(Write::SourceRange {
            service,
            address,
            length,
            allowed,
        });
    }

    pub(super) fn finish(self) -> Plan {
        let before = [
            &self.names,
            &self.states,
            &self.blocks,
            &self.permits,
            &self.frontends,
        ];
        let first = before.into_iter().map(Vec::len).sum();
        let fresh = first..first + self.new_frontends.len() + self.new_addresses.len();
        let phases = [
            self.names,
            self.states,
            self.blocks,
            self.permits,
            self.frontends,
            self.new_frontends,
            self.new_addresses,
            self.opening,
            self.frontends_gone,
            self.late_states,
            self.withdrawals,
            self.closing,
            self.names_gone,
        ];
        let mut writes = Vec::with_capacity(phases.iter().map(Vec::len).sum());
        phases
            .into_iter()
            .for_each(|mut phase| writes.append(&mut phase));
        Plan {
            writes,
            fresh,
            retire: self.retire,
            problems: self.problems,
        }
    }
}
