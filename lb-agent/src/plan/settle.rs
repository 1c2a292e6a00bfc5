//! The end of every plan: who has which frontend, which UDP endpoints are gone, what is still owed.

use std::net::IpAddr;

use lb_ebpf::abi::address::Address6;
use lb_ebpf::abi::frontend::Frontend;
use lb_ebpf::abi::socket::TombstoneKey;

use super::claims::FrontendId;
use super::draft::Draft;
use super::ledger::Ledger;
use super::port::HeldPort;
use super::udp::UdpEndpoint;
use super::{Plan, Write, record};

impl Ledger {
    /// Decides who has each frontend that was touched, and completes the plan.
    pub(super) fn settle(&mut self, mut draft: Draft) -> Plan {
        let mut touched = std::mem::take(&mut draft.touched);
        touched.sort_unstable();
        touched.dedup();
        for key in touched {
            self.settle_frontend(key, &mut draft);
        }
        for (endpoint, parting) in std::mem::take(&mut draft.parted) {
            if self.udp.leave(endpoint, parting) {
                let key = tombstone_key(endpoint);
                if self.tombstones.insert(key, self.now).is_none() {
                    self.addresses.tombstone(unwide(key.address), true);
                }
                draft
                    .withdrawals
                    .push(Write::Tombstone { key, present: true });
            }
        }
        for write in std::mem::take(&mut draft.outstanding) {
            self.settle_outstanding(write, &mut draft);
        }
        self.addresses.flush(&mut draft);
        draft.finish()
    }

    fn settle_frontend(&mut self, key: FrontendId, draft: &mut Draft) {
        let ports = &self.ports;
        let port = |id: u32| ports.get(id as usize).and_then(Option::as_deref);
        let winner = self
            .claims
            .elect(key, |id| port(id).map(|port| port.rank(key)));
        let found = winner.and_then(|id| Some((id, port(id)?, port(id)?.frontend(key)?)));
        let Some((id, winner, frontend)) = found else {
            if self.claims.forget(key) {
                draft.frontends_gone.push(record::frontend(key, None));
            }
            return;
        };
        if winner.doubtful {
            // Its block may never have been written, so its frontends wait for its next plan. What another
            // service port left under the key, or may have left, must not stay: that block may go.
            if self
                .claims
                .written(key)
                .is_some_and(|held| held.service != id)
            {
                self.claims.clear_written(key);
                draft.frontends_gone.push(record::frontend(key, None));
            }
            return;
        }
        let mut wanted = winner.record(id, frontend);
        let same = |held: Frontend| {
            Frontend {
                generation: 0,
                generation_end: 0,
                ..held
            } == wanted
        };
        let held = self.claims.written(key);
        if !held.is_some_and(same) {
            self.generation = self.generation.wrapping_add(1);
            wanted.generation = self.generation;
            wanted.generation_end = self.generation;
            self.claims.set_written(key, wanted);
            let list = if held.is_some() {
                &mut draft.frontends
            } else {
                &mut draft.new_frontends
            };
            list.push(record::frontend(key, Some(wanted)));
        }
    }

    fn settle_outstanding(&mut self, write: Write, draft: &mut Draft) {
        match &write {
            Write::EndpointState { .. } => draft.late_states.push(write),
            Write::SourceRange {
                service,
                address,
                length,
                ..
            } => {
                let held =
                    |port: &HeldPort| port.ranges.binary_search(&(*address, *length)).is_ok();
                if !self.port(*service).is_some_and(held) {
                    draft.withdrawals.push(write);
                }
            }
            Write::Tombstone { key, present } => {
                if self.tombstones.contains_key(key) == *present {
                    draft.withdrawals.push(write);
                }
            }
            Write::NameGone { .. } => draft.names_gone.push(write),
            // `failed` keeps no others.
            Write::Endpoints4 { .. }
            | Write::Endpoints6 { .. }
            | Write::Name { .. }
            | Write::Frontend4 { .. }
            | Write::Frontend6 { .. }
            | Write::Frontend4Gone { .. }
            | Write::Frontend6Gone { .. }
            | Write::Address { .. } => {}
        }
    }

    pub(super) fn lift_tombstone(&mut self, key: TombstoneKey, draft: &mut Draft) {
        if self.tombstones.remove(&key).is_some() {
            self.addresses.tombstone(unwide(key.address), false);
            draft.permits.push(Write::Tombstone {
                key,
                present: false,
            });
        }
    }
}

pub(super) fn tombstone_key((address, port): UdpEndpoint) -> TombstoneKey {
    TombstoneKey {
        address,
        port,
        protocol: lb_ebpf::abi::UDP,
        zero: 0,
    }
}

/// A table's 16-byte address; mapped IPv4 becomes IPv4 again.
pub(super) fn unwide(bytes: Address6) -> IpAddr {
    bytes.into()
}
