//! What leaves towards a pod or the world: replies get the Service's address back, masqueraded packets this node's.

use lb_ebpf::abi::counter;

use super::flows::{Speaker, State, is_accepting};
use super::wire::{RST, SYN, Tuple};
use super::{Judgement, Met, Oracle};

impl Oracle {
    pub(super) fn judge_egress(&mut self, met: &Met<'_>, tuple: Option<Tuple>) -> Judgement {
        let Some(tuple) = tuple else {
            return met.passes();
        };
        self.note_outbound(met, tuple);
        let packet = &met.frame.packet;
        let key = (met.hook.side(), packet.protocol, tuple);
        if let Some(flow) = self.flows.reply(&key).cloned()
            && !flow.hairpin
        {
            if flow.state.is_over() && packet.flags().is_some_and(is_accepting) {
                // The endpoint accepts a new connection: the client dialled it directly, from the same port.
                self.flows.close(&flow.key);
                return met.passes();
            }
            let accepts_nothing = packet.flags().is_some_and(|f| f & (SYN | RST) == 0);
            let own = flow.masquerade.is_none() && !flow.direct;
            if flow.state == State::New && accepts_nothing && own {
                // The endpoint is in the middle of another conversation: the client's own with it, begun before.
                self.count(counter::FLOW_STEPPED_ASIDE);
                self.flows.renumber(&flow.key);
                return met.passes();
            }
            self.hear(&flow.key, Speaker::Endpoint, packet.flags());
            return met.continues_as(flow.asked().reversed());
        }
        if let Some(flow) = self.flows.leaving(packet.protocol, tuple)
            && let Some(outside) = flow.outside()
        {
            return met.continues_as(outside);
        }
        met.passes()
    }

    pub(super) fn hear(&mut self, key: &super::FlowKey, speaker: Speaker, flags: Option<u8>) {
        let now = self.now;
        if let Some(flow) = self.flows.get_mut(key) {
            flow.heard(speaker, flags, now);
        }
    }
}
