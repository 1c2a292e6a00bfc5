//! What clients send to endpoints themselves. It is no business of ours, unless the same client already speaks to that
//! endpoint through a Service, from the same port: two conversations would be one then, so the later gets another port
//! (spec §8, equal client ports).

use lb_ebpf::abi::counter;

use super::flows::{Flow, FlowKey, is_clean_syn};
use super::ingress::{continues, refused};
use super::wire::{Frame, UDP};
use super::{Judgement, Met, OPENED, Oracle};

impl Oracle {
    pub(super) fn judge_direct(&mut self, met: &Met<'_>, key: FlowKey) -> Judgement {
        let (side, protocol, tuple) = key;
        let packet = &met.frame.packet;
        if !packet.is_first() {
            return self.judge_unknown_protocol(met);
        }
        let opens = protocol == UDP || packet.flags().is_some_and(is_clean_syn);
        if let Some(flow) = self.forward(&key) {
            if !(flow.is_closing() && opens && protocol != UDP) {
                return self.goes_on(met, flow);
            }
            self.flows.close(&key);
        }
        if self.has_vanished(&key) {
            return refused(met);
        }
        let holder = self.flows.reply(&(side, protocol, tuple.reversed()));
        let Some(holder) = holder.filter(|flow| opens && !flow.hairpin) else {
            return self.judge_unknown_protocol(met);
        };
        if holder.state.is_over() || !holder.is_live(self.now) {
            let over = holder.key;
            self.flows.close(&over);
            return self.judge_unknown_protocol(met);
        }
        let got = Frame::read(&met.seen.frame)
            .ok()
            .and_then(|frame| frame.packet.tuple());
        let Some(got) = got else {
            return Err("must get another port, but is unreadable".into());
        };
        let mut sent = tuple;
        sent.source_port = got.source_port;
        self.judge_port(&key, sent, true)?;
        let flow = Flow {
            key,
            sent,
            masquerade: None,
            hairpin: false,
            direct: true,
            renumbered: false,
            state: OPENED,
            service: u32::MAX,
            endpoint: u32::MAX,
            generation: 0,
            first: self.now,
            last: self.now,
        };
        continues(met, &flow)?;
        self.count(counter::DIRECT_RENUMBERED);
        self.count(counter::FLOW_CREATED);
        self.flows.open(flow);
        Ok(())
    }
}
