//! Datagrams that leave from a port that is a NodePort, too, and what comes back to them (spec §7, item 10).

use super::flows::{FlowKey, timeout};
use super::wire::{Tuple, UDP};
use super::{Hook, Met, Oracle};

impl Oracle {
    /// Remembers a whole datagram that leaves from a NodePort of this node and is no answer to a client.
    pub(super) fn note_outbound(&mut self, met: &Met<'_>, tuple: Tuple) {
        let packet = &met.frame.packet;
        // An IPv6 packet may say that it is the only fragment of its own (RFC 6946).
        let cut = packet
            .piece
            .is_some_and(|piece| piece.more || piece.offset > 0);
        let side = met.hook.side();
        let leaves = matches!(met.hook, Hook::OutEgress | Hook::PodEgress);
        if !leaves || packet.protocol != UDP || cut {
            return;
        }
        let node = self.tables.uses(tuple.source).node;
        let v4 = tuple.source.is_ipv4();
        if !node || !self.tables.has_node_port(v4, tuple.source_port, UDP) {
            return;
        }
        let back = tuple.reversed();
        if self.flows.known(&(side, UDP, back)).is_none() {
            self.outbound.insert(back, self.now);
        }
    }

    /// Whether what comes in under `key` answers such a datagram.
    pub(super) fn is_answered(&self, &(_, protocol, tuple): &FlowKey) -> bool {
        let lives = |last: &i64| self.now - last <= timeout::UDP;
        protocol == UDP && self.outbound.get(&tuple).is_some_and(lives)
    }
}
